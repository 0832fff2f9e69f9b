"""A language model behind an OpenAI-compatible completion server that takes token ids (vLLM serves Step-1).

Ids go in and ids come back, so prompts are the same to the bit as for the model in this process. Servers tell
the ids of a reply in different ways: vLLM in `token_ids`, or as `token_id:17` in place of the
log-probabilities' tokens; llama.cpp in the `id` of each log-probability. All three are understood.

What a server cannot do is checked here: a reply that breaks the grammar is refused. The repetition guard is
not applied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from stepaudio.errors import BackendError, BusyError, Cancelled, InputError, StepAudioError
from stepaudio.lm.engine import POLL_SECONDS, Reply, finish
from stepaudio.lm.generate import SamplingParams
from stepaudio.lm.grammar import Grammar

if TYPE_CHECKING:
    import httpx

QUEUED_CHUNKS = 256
Chunk = dict[str, Any]


@dataclass(slots=True, eq=False)
class RemoteGeneration:
    """A request to a server: iterate it once for its tokens as they come; `reply` is there once it has ended. The
    counterpart of `Generation`."""

    prompt: Sequence[int]
    stop: Sequence[int]
    grammar: Grammar | None
    _chunks: Generator[Chunk, None, None]
    _cancel: Event
    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    reply: Reply | None = None

    def cancel(self) -> None:
        """Stop; the iteration then raises Cancelled."""
        self._cancel.set()

    def __iter__(self) -> Iterator[int]:
        """Tokens as the server draws them. Leaving the loop early stops it. Raises Cancelled, InputError, BusyError and
        BackendError."""
        told, reason = 0, "length"
        try:
            for chunk in self._chunks:
                usage = chunk.get("usage") or {}
                self.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or self.cached
                told = usage.get("completion_tokens") or told
                for choice in chunk.get("choices") or ():
                    reason = choice.get("finish_reason") or reason
                    for token in _ids(choice):
                        if token in self.stop:
                            self.reply = Reply(self.tokens, "stop", len(self.prompt), self.cached)
                            return
                        self.grammar = _advance(self.grammar, token)
                        self.tokens.append(token)
                        yield token
        finally:
            self._chunks.close()
        # A server counts the id that ended the reply, and need not show it.
        if told and not told - (reason == "stop") <= len(self.tokens) <= told:
            raise BackendError(f"the server generated {told} tokens and told the ids of {len(self.tokens)}")
        self.reply = Reply(self.tokens, "stop" if reason == "stop" else "length", len(self.prompt), self.cached)


class RemoteEngine:
    """Generates on a server; the counterpart of `Engine`. Safe to use from several threads."""

    def __init__(self, url: str, model: str, *, api_key: str | None = None, timeout: float = 60.0) -> None:
        """`url` ends where `/completions` is appended, as in `http://localhost:8000/v1`; `timeout` is how
        long the server may be silent, in seconds."""
        import httpx

        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self._model = model

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
        cancel: Event | None = None,
    ) -> RemoteGeneration:
        """A request, sent when it is first iterated, which raises Cancelled soon after `cancel` is set, InputError when
        the server refuses the prompt, BusyError when it has no room, BackendError when it fails or breaks the grammar.
        """
        params = params or SamplingParams()
        own = Event()
        chunks = self._chunks(_request(self._model, prompt, params), (own,) if cancel is None else (own, cancel))
        return RemoteGeneration(prompt, params.stop, grammar, chunks, own)

    def generate(
        self,
        prompt: Sequence[int],
        params: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
        on_token: Callable[[int], None] | None = None,
        cancel: Event | None = None,
    ) -> Reply:
        """Run a request to its end; `on_token` is called in this thread. Raises as `submit` says."""
        return finish(self.submit(prompt, params, grammar=grammar, cancel=cancel), on_token)

    def close(self) -> None:
        self._client.close()

    def _chunks(self, request: Mapping[str, Any], cancel: Sequence[Event]) -> Generator[Chunk, None, None]:
        """The parsed events of a streamed reply. A thread reads them, so that a silent server can be left at
        once."""
        queue: Queue[Chunk | StepAudioError | None] = Queue(QUEUED_CHUNKS)
        left = Event()

        def put(item: Chunk | StepAudioError | None) -> None:
            while not left.is_set():
                try:
                    queue.put(item, timeout=POLL_SECONDS)
                    return
                except Full:
                    continue

        def read() -> None:
            try:
                for chunk in self._stream(request):
                    put(chunk)
                    if left.is_set():
                        return  # which closes the connection, and the server stops generating
            except StepAudioError as error:
                put(error)
            put(None)

        Thread(target=read, name="lm-remote", daemon=True).start()
        try:
            while True:
                if any(event.is_set() for event in cancel):
                    raise Cancelled("the generation was cancelled")
                try:
                    item = queue.get(timeout=POLL_SECONDS)
                except Empty:
                    continue
                if item is None:
                    return
                if isinstance(item, StepAudioError):
                    raise item
                yield item
        finally:
            left.set()

    def _stream(self, request: Mapping[str, Any]) -> Iterator[Chunk]:
        import httpx

        try:
            with self._client.stream("POST", "completions", json=request) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip()
                    if line.startswith("data:") and data != "[DONE]":
                        yield _parse(data)
        except httpx.HTTPError as error:
            raise BackendError(f"the language model server does not answer: {error or type(error).__name__}") from error


def _request(model: str, prompt: Sequence[int], params: SamplingParams) -> dict[str, Any]:
    request: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or -1,
        "stop_token_ids": list(params.stop),
        "stream": True,
        "stream_options": {"include_usage": True},
        "skip_special_tokens": False,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "logprobs": 1,
    }
    return request if params.seed is None else request | {"seed": params.seed}


def _parse(data: str) -> Chunk:
    try:
        chunk = json.loads(data)
    except json.JSONDecodeError as error:
        raise BackendError(f"the server sent something that is not JSON: {data[:200]}") from error
    if not isinstance(chunk, dict):
        raise BackendError(f"the server sent something that is not a completion: {data[:200]}")
    if "error" in chunk:
        raise BackendError(f"the server failed: {chunk['error']}")
    return chunk


def _ids(choice: Mapping[str, Any]) -> list[int]:
    """The ids that a choice of a streamed chunk adds. Raises BackendError when the server does not tell
    them."""
    if choice.get("token_ids") is not None:
        return [int(id) for id in choice["token_ids"]]
    logprobs = choice.get("logprobs") or {}
    if "content" in logprobs:
        return [int(entry["id"]) for entry in logprobs["content"]]
    named = [str(token) for token in logprobs.get("tokens") or ()]
    if all(token.startswith("token_id:") for token in named) and (named or not choice.get("text")):
        return [int(token.removeprefix("token_id:")) for token in named]
    raise BackendError("the server does not tell the ids of its tokens; vLLM and llama.cpp do")


def _advance(grammar: Grammar | None, token: int) -> Grammar | None:
    try:
        return grammar and grammar.advance(token)
    except InputError as error:
        raise BackendError(f"the server broke the grammar of the reply: {error}") from error


def _refusal(response: httpx.Response) -> StepAudioError:
    try:
        body = response.json()
        detail = body.get("error", body)
        message = str(detail.get("message", detail) if isinstance(detail, dict) else detail)
    except (json.JSONDecodeError, AttributeError):
        message = response.text[:500]
    if response.status_code in (400, 413, 422):
        return InputError(f"the language model server refused the request: {message}")
    if response.status_code in (429, 503):
        return BusyError(f"the language model server is busy: {message}")
    return BackendError(f"the language model server answered {response.status_code}: {message}")
