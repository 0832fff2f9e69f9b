"""An OpenAI-compatible endpoint over REST: transcriptions, speech, and chat with spoken turns."""

from __future__ import annotations

import base64
import json
import os
import time
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import numpy as np

from stepaudio.audio.encode import encode
from stepaudio.audio.io import probe, read
from stepaudio.errors import BackendError, InputError
from stepaudio.eval.items import Audio, Call, Clip, Kind, Reply, Request, Turn
from stepaudio.eval.store import key as digest
from stepaudio.eval.systems import MAX_TOKENS

_RATE = 16_000
_TIMEOUT = httpx.Timeout(120.0, connect=20.0)
_RETRIES = 3


class RestSystem:
    """`http://HOST/v1`, with `#MODEL` where the endpoint has several. Replies to spoken turns are spoken."""

    kinds: frozenset[Kind] = frozenset(("transcribe", "say", "converse"))

    def __init__(self, url: str, *, key: str | None = None) -> None:
        self.url, self.model = split_model(url)
        self.name = f"{urlsplit(self.url).netloc}-{self.model}".replace(":", "-").replace("/", "-")
        self.fingerprint = digest("rest", self.url, self.model, MAX_TOKENS)
        key = key or os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx.HTTPTransport(retries=_RETRIES)
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT, transport=transport)

    def parallel(self, kind: Kind) -> int:
        return 8 if kind == "converse" else 2

    def prepare(self, kind: Kind) -> None:
        """Nothing to load."""

    def run(self, request: Request) -> tuple[Reply, ...]:
        match request.kind:
            case "transcribe":
                return (self._transcribe(request),)
            case "say":
                return (self._say(request),)
            case "converse":
                return self._converse(request)
            case _:
                raise InputError(f"an endpoint cannot {request.kind}")

    def close(self) -> None:
        self._client.close()

    def _transcribe(self, request: Request) -> Reply:
        assert request.clip is not None
        files = {"file": ("audio.wav", _wav(request.clip), "audio/wav")}
        fields = {"model": self.model, "language": request.language, "response_format": "json"}
        started = time.perf_counter()
        body = self._post("/audio/transcriptions", files=files, data=fields).json()
        return Reply(str(body.get("text", "")), seconds=time.perf_counter() - started)

    def _say(self, request: Request) -> Reply:
        fields = {"model": self.model, "input": request.text, "voice": "alloy", "response_format": "wav"}
        started = time.perf_counter()
        first, data = None, b""
        try:
            with self._client.stream("POST", "/audio/speech", json=fields) as response:
                for piece in response.iter_bytes():
                    first = first or time.perf_counter() - started
                    data += piece
                self._check(response, data)
        except httpx.HTTPError as error:
            raise BackendError(f"{self.url}: {error or type(error).__name__}") from None
        return Reply(request.text, _audio(data), seconds=time.perf_counter() - started, first=first)

    def _converse(self, request: Request) -> tuple[Reply, ...]:
        messages: list[dict[str, Any]] = []
        if request.instructions:
            messages.append({"role": "system", "content": request.instructions})
        replies = []
        for turn in request.turns:
            messages.append({"role": "user", "content": _content(turn)})
            reply = self._chat(messages, request, spoken=turn.clip is not None)
            messages.append({"role": "assistant", "content": reply.text})
            replies.append(reply)
        return tuple(replies)

    def _chat(self, messages: list[dict[str, Any]], request: Request, *, spoken: bool) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        if spoken:
            body |= {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
        if request.tools:
            body["tools"] = [{"type": "function", "function": function(tool)} for tool in request.tools]
        started = time.perf_counter()
        message = self._post("/chat/completions", json=body).json()["choices"][0]["message"]
        sound = message.get("audio") or {}
        calls = tuple(_call(call["function"]) for call in message.get("tool_calls") or ())
        text = message.get("content") or sound.get("transcript") or ""
        audio = _audio(base64.b64decode(sound["data"])) if sound.get("data") else None
        return Reply(text, audio, calls, time.perf_counter() - started)

    def _post(self, path: str, **fields: Any) -> httpx.Response:
        try:
            response = self._client.post(path, **fields)
        except httpx.HTTPError as error:
            raise BackendError(f"{self.url}: {error or type(error).__name__}") from None
        self._check(response, response.content)
        return response

    def _check(self, response: httpx.Response, body: bytes) -> None:
        if response.status_code != 200:
            said = body[:300].decode("utf-8", "replace")
            raise BackendError(f"{self.url} answered {response.status_code}: {said}")


def split_model(url: str) -> tuple[str, str]:
    """The address and the model of `URL#MODEL`."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise InputError(
            f"{url!r} is no address of an endpoint; it looks like http://127.0.0.1:8000/v1", param="system"
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", "")), parts.fragment or "gpt-audio"


def function(tool: Any) -> dict[str, Any]:
    """A tool in OpenAI's shape."""
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


def parse_arguments(written: str) -> dict[str, Any]:
    """A call's arguments; empty when they are not a JSON object, which no reference accepts."""
    try:
        found = json.loads(written or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _call(called: dict[str, Any]) -> Call:
    return Call(str(called.get("name", "")), parse_arguments(called.get("arguments", "")))


def _content(turn: Turn) -> Any:
    if turn.clip is None:
        return turn.text
    data = base64.b64encode(_wav(turn.clip)).decode()
    return [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]


def _wav(clip: Clip) -> bytes:
    return encode(clip.samples(_RATE), _RATE, "wav")


def _audio(data: bytes) -> Audio | None:
    if not data:
        return None
    rate = probe(data).rate
    samples = read(data, rate=rate)
    return Audio(np.asarray(samples, np.float32), rate) if len(samples) else None
