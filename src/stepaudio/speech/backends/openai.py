"""Replies from any OpenAI-compatible chat endpoint: vLLM, llama-server, a hosted model.

Plain HTTP over the standard library, one connection per reply: a reply takes a second or more, so a pool would save
nothing, and closing the socket is what stops the model at once when the reply is cancelled.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import urlsplit

from stepaudio.errors import BackendError, BusyError, InputError
from stepaudio.speech.roles import Finish, Message, ReplyEvent, Sampling, TextDelta, Tool, ToolCall
from stepaudio.speech.threads import pump
from stepaudio.speech.toolcalls import CallError, Toolbox

_RETRY_STATUS = (429, 500, 502, 503, 504)
_LONGEST_WAIT = 5.0
_MAX_LINE = 1 << 20


class OpenAIResponder:
    """A `Responder` over `POST {base_url}/chat/completions` with `stream: true`.

    The API key is read from the environment variable `api_key_env` when that is set; without it none is sent.
    `timeout` seconds is the longest silence: to connect, to the first event, and between events. A request is
    tried `retries` times more while nothing has come back yet, never after. `context` is the model's own limit,
    for callers that plan with it; the endpoint enforces it.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        context: int = 32768,
        timeout: float = 30.0,
        retries: int = 2,
    ) -> None:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InputError(f"base_url must be an http or https URL, not {base_url!r}", param="base_url")
        self.context_tokens = context
        self.secure = url.scheme == "https"
        self.host, self.port = url.hostname, url.port
        self.path = url.path.rstrip("/") + "/chat/completions"
        self.endpoint = f"{url.scheme}://{url.hostname}{f':{url.port}' if url.port else ''}{self.path}"
        self._model = model
        self.api_key = os.environ.get(api_key_env, "")
        self.timeout = timeout
        self.retries = retries
        self._closed = threading.Event()

    def respond(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        sampling: Sampling | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[ReplyEvent]:
        """Stream a reply; see `Responder.respond`. Calls come when they are complete, after the text.

        Raises InputError when the endpoint refuses the request (also for its length), BusyError when it stays
        overloaded, BackendError for everything else, and for a tool call that is not valid for its schema.
        """
        if self._closed.is_set():
            raise BackendError("this responder is closed; load the bundle again")
        toolbox = Toolbox(tools, tool_choice)
        body = _body(self._model, messages, tools, tool_choice, sampling or Sampling())
        connection = _Connection(self)
        chunks: Generator[dict[str, Any], None, None] = pump(
            lambda put, stop: connection.post(body, put, stop),
            cancel=cancel,
            buffer=256,
            stop_work=connection.abort,
            # A connection attempt cannot be woken; it ends by its own timeout and nobody waits for it.
            wait=0.2,
        )
        with contextlib.closing(chunks):
            yield from _events(chunks, toolbox, self.endpoint)

    def warm(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        words: str = "",
        cancel: threading.Event | None = None,
    ) -> float | None:
        """Nothing: what an endpoint keeps of a prompt is its own affair."""
        return None

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        """An estimate on the high side (the endpoint keeps its tokenizer to itself): 3 bytes of UTF-8 per token."""
        body = _body("", messages, tools, "auto", Sampling())
        text = json.dumps([body["messages"], body.get("tools", [])], ensure_ascii=False)
        return len(text.encode()) // 3 + 1

    def close(self) -> None:
        """Refuse further replies; those that run end by themselves."""
        self._closed.set()


class _Connection:
    """One streaming request, its retries, and a way to abort it from another thread."""

    def __init__(self, owner: OpenAIResponder) -> None:
        self._owner = owner
        self._socket: socket.socket | None = None

    def abort(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def post(self, body: Mapping[str, Any], put: Callable[[dict[str, Any]], None], stop: threading.Event) -> None:
        for attempt in range(self._owner.retries + 1):
            try:
                response = self._open(body)
            except _Retry as failure:
                if attempt == self._owner.retries or stop.wait(min(failure.after, _LONGEST_WAIT)):
                    raise failure.error from failure.error.__cause__
                continue
            with contextlib.closing(response):
                self._read(response, put)
            return

    def _open(self, body: Mapping[str, Any]) -> http.client.HTTPResponse:
        owner = self._owner
        kind = http.client.HTTPSConnection if owner.secure else http.client.HTTPConnection
        connection = kind(owner.host, owner.port, timeout=owner.timeout)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "Connection": "close"}
        if owner.api_key:
            headers["Authorization"] = f"Bearer {owner.api_key}"
        try:
            connection.connect()
            self._socket = connection.sock  # the connection forgets it once the reply has begun
            connection.request("POST", owner.path, json.dumps(body).encode(), headers)
            response = connection.getresponse()
        except TimeoutError as error:
            connection.close()
            raise BackendError(f"{owner.endpoint} did not answer within {owner.timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            failure = BackendError(f"{owner.endpoint} cannot be reached: {error or type(error).__name__}")
            failure.__cause__ = error
            raise _Retry(failure, 0.2) from error
        if response.status == 200:
            return response
        with contextlib.closing(response):
            raise self._refusal(response)

    def _refusal(self, response: http.client.HTTPResponse) -> Exception:
        owner, status = self._owner, response.status
        try:
            said = _message(json.loads(response.read(_MAX_LINE)))
        except (OSError, ValueError, http.client.HTTPException):
            said = ""
        text = f"{owner.endpoint} answered {status} {response.reason}" + (f": {said}" if said else "")
        after = _seconds(response.headers.get("Retry-After"))
        if status == 429:
            return _Retry(BusyError(text, retry_after=after), after)
        if status in _RETRY_STATUS:
            return _Retry(BackendError(text), after)
        if status in (401, 403):
            return BackendError(f"{text}; check the API key")
        return InputError(text) if status in (400, 413, 422) else BackendError(text)

    def _read(self, response: http.client.HTTPResponse, put: Callable[[dict[str, Any]], None]) -> None:
        owner = self._owner
        try:
            # Bounded, so that an endpoint that never ends its line cannot fill memory.
            while line := response.readline(_MAX_LINE):
                field, _, value = line.partition(b":")
                if field != b"data":
                    continue
                if value.strip() == b"[DONE]":
                    return
                chunk = json.loads(value)
                if not isinstance(chunk, dict):
                    raise ValueError("an event is not a JSON object")
                put(chunk)
        except TimeoutError as error:
            raise BackendError(f"{owner.endpoint} fell silent for {owner.timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise BackendError(f"{owner.endpoint} broke off its reply: {error}") from error
        except ValueError as error:
            raise BackendError(f"{owner.endpoint} sent what is not an event stream: {error}") from error


class _Retry(Exception):
    """Nothing has come back yet and trying again may help, after `after` seconds."""

    def __init__(self, error: BackendError | BusyError, after: float) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


def _events(chunks: Iterator[dict[str, Any]], toolbox: Toolbox, endpoint: str) -> Iterator[ReplyEvent]:
    reason = ""
    usage: Mapping[str, Any] = {}
    calls: dict[int, dict[str, str]] = {}
    for chunk in chunks:
        if "error" in chunk:
            raise BackendError(f"{endpoint} failed: {_message(chunk)}")
        usage = chunk.get("usage") or usage
        choice = (chunk.get("choices") or [{}])[0]
        reason = choice.get("finish_reason") or reason
        delta = choice.get("delta") or {}
        if text := delta.get("content"):
            yield TextDelta(text)
        for part in delta.get("tool_calls") or ():
            call = calls.setdefault(int(part.get("index") or 0), {"id": "", "name": "", "arguments": ""})
            function = part.get("function") or {}
            call["id"] = part.get("id") or call["id"]
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""
    if not reason:
        raise BackendError(f"{endpoint} ended its reply without a finish_reason; the reply may be cut off")
    for _, call in sorted(calls.items()):
        yield _checked(call, toolbox, endpoint)
    kind: Literal["stop", "length", "tool_calls"] = "length" if reason == "length" else "stop"
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    yield Finish(
        "tool_calls" if calls else kind,
        int(usage.get("prompt_tokens") or 0),
        int(cached),
        int(usage.get("completion_tokens") or 0),
    )


def _checked(call: Mapping[str, str], toolbox: Toolbox, endpoint: str) -> ToolCall:
    try:
        if call["name"] not in toolbox.tools:
            raise CallError(f"there is no tool named {call['name']!r}")
        checked = toolbox.check(call["name"], call["arguments"])
    except CallError as error:
        raise BackendError(f"{endpoint} sent a tool call that cannot be used: {error}") from error
    return replace(checked, id=call["id"] or checked.id)


def _body(
    model: str, messages: Sequence[Message], tools: Sequence[Tool], tool_choice: str, sampling: Sampling
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [_wire(message) for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters),
                },
            }
            for tool in tools
        ]
        named = {"type": "function", "function": {"name": tool_choice}}
        body["tool_choice"] = tool_choice if tool_choice in ("auto", "none", "required") else named
    return body


def _wire(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(dict(call.arguments), ensure_ascii=False),
                },
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _message(body: Any) -> str:
    """The words of an error body, in any of the shapes that endpoints use."""
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message", error) if isinstance(error, dict) else error
    return str(said)[:500]


def _seconds(retry_after: str | None) -> float:
    try:
        return max(0.0, float(retry_after or 1.0))
    except ValueError:  # the other form is a date
        return 1.0
