"""Replies from a GGUF model through llama.cpp, inside this process.

The prompt is written here (`prompts.chatml`) rather than by llama.cpp's chat templates: token counts are exact, the
open turn `<|im_start|>user\n` can be evaluated before its text is known, and a caller's text cannot open a turn.
llama.cpp keeps the evaluated prompt of each slot and, for conversations that lost their slot, in host memory, so
that a reply pays only for the tokens that are new.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from stepaudio.errors import BackendError, BusyError, Cancelled, InputError, IntegrityError, MissingError
from stepaudio.speech import prompts
from stepaudio.speech.roles import Finish, Message, ReplyEvent, Sampling, TextDelta, Tool, ToolCall
from stepaudio.speech.threads import pump
from stepaudio.speech.toolcalls import CallError, CallFinder, Toolbox

# Prompts are evaluated in steps of this many tokens. llama.cpp looks at cancellations, and at the other slots,
# between steps only; larger steps gain little on a CPU.
_STEP_TOKENS = 32
# Evaluated prompts of conversations that lost their slot are kept in host memory up to this size
# (28 KiB per token with a 1.5B Qwen2.5, 12 KiB with a 0.5B).
_CACHE_MIB = 512
_POLL_SECONDS = 0.02
_SIGACTION_BYTES = 256  # more than `struct sigaction` takes on any platform


class LlamaCppResponder:
    """A `Responder` over one GGUF model that speaks ChatML (Qwen2.5 and its kin).

    `slots` replies run at once, each with `context` tokens of its own; further callers wait up to `queue_seconds`
    and then get BusyError. `system` is the system prompt of conversations that bring none of their own; it is
    evaluated here, once. Raises MissingError when `model` is not there and IntegrityError when it cannot be loaded.
    """

    def __init__(
        self,
        model: Path,
        *,
        context: int = 4096,
        slots: int = 2,
        threads: int = 2,
        system: str = prompts.SPOKEN,
        queue_seconds: float = 10.0,
    ) -> None:
        self.context_tokens = context
        self._system = system
        self._queue_seconds = queue_seconds
        self._slots = slots
        self._free = threading.Semaphore(slots)
        self._closed = threading.Event()
        self._key = secrets.token_urlsafe(24)
        self._server = _load(model, context, slots, threads, self._key)
        self.warm(())

    def respond(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        sampling: Sampling | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[ReplyEvent]:
        """Stream a reply; see `Responder.respond`.

        A call the model wrote badly is written again, once, under the grammar of the tool it named; a call of a
        tool that does not exist is answered with that error, once, and the model goes on. So a `ToolCall` is always
        valid, and text after a call (small models invent its result) ends the reply.
        """
        toolbox = Toolbox(tools, tool_choice)
        sampling = sampling or Sampling()
        reply = _Reply(self, self._prompt(messages, tools if tool_choice != "none" else ()), sampling, cancel)
        with self._slot(cancel):
            if not tools or tool_choice == "none":
                yield from map(TextDelta, reply.text())
            elif tool_choice == "auto":
                yield from reply.text_and_calls(toolbox)
            else:
                yield from reply.forced_call(toolbox)
            yield reply.finish()

    def warm(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        cancel: threading.Event | None = None,
    ) -> None:
        """Evaluate a history ahead of its next user turn, so that the reply to that turn starts sooner."""
        prompt = prompts.chatml(messages, tools, system=self._system) + prompts.USER_TURN
        with self._slot(cancel):
            for _ in self.complete({"prompt": prompt, "max_tokens": 1}, _Usage(), cancel):
                pass

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        """Tokens that this history takes as a prompt, system prompt and tools included."""
        server = self._open()
        connection = http.client.HTTPConnection(urlsplit(server.listening_address).netloc, timeout=10)
        body = {"content": self._prompt(messages, tools), "parse_special": True}
        try:
            connection.request("POST", "/tokenize", json.dumps(body), {"Authorization": f"Bearer {self._key}"})
            return len(json.load(connection.getresponse())["tokens"])
        except (OSError, ValueError, KeyError) as error:
            raise BackendError(f"llama.cpp could not count tokens: {error}") from error
        finally:
            connection.close()

    def close(self) -> None:
        """Stop what is running and free the model. A closed responder raises BackendError."""
        if self._closed.is_set():
            return
        self._closed.set()
        for _ in range(self._slots):
            self._free.acquire()
        self._server = None

    def complete(self, request: Mapping[str, Any], usage: _Usage, cancel: threading.Event | None) -> Iterator[str]:
        """Stream the text of one completion. The caller holds a slot; it is idle again when this ends."""
        server = self._open()

        def work(put: Callable[[dict[str, Any]], None], stop: threading.Event) -> None:
            def receive(chunk: dict[str, Any]) -> bool:
                put(chunk)
                return stop.is_set() or self._closed.is_set()

            server.handle_completions(
                {**request, "stream": True, "return_progress": True, "cache_prompt": True}, receive
            )

        # No bound on the queue: llama.cpp does not wait for its reader, and a reply is at most `context` tokens.
        for chunk in pump(work, cancel=cancel):
            if "error" in chunk:
                raise _failure(chunk["error"], self.context_tokens)
            if text := usage.read(chunk):
                yield text
        self._open()

    def _check(self, cancel: threading.Event | None) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled("the reply was cancelled")
        self._open()

    def _open(self) -> Any:
        if self._closed.is_set():
            raise BackendError("this responder is closed; load the bundle again")
        return self._server

    def _prompt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        return prompts.chatml(messages, tools, system=self._system) + prompts.ASSISTANT_TURN

    @contextlib.contextmanager
    def _slot(self, cancel: threading.Event | None) -> Iterator[None]:
        deadline = time.monotonic() + self._queue_seconds
        self._check(cancel)
        while not self._free.acquire(timeout=_POLL_SECONDS):
            self._check(cancel)
            if time.monotonic() > deadline:
                raise BusyError(f"all {self._slots} reply slots are busy; try again in a moment")
        try:
            yield
        finally:
            self._free.release()


@dataclass
class _Usage:
    """What one or more completions cost, and why the last one ended."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reason: Literal["stop", "length"] = "stop"

    def read(self, chunk: Mapping[str, Any]) -> str:
        """Take the counts out of a chunk and return its text."""
        choice = chunk["choices"][0] if chunk.get("choices") else {}
        if choice.get("finish_reason"):
            self.reason = "length" if choice["finish_reason"] == "length" else "stop"
        if counts := chunk.get("usage"):
            if not self.prompt:  # later completions of the same reply go over the same prompt again
                self.prompt = counts["prompt_tokens"]
                self.cached = counts["prompt_tokens_details"]["cached_tokens"]
            self.completion += counts["completion_tokens"]
        return str(choice.get("text") or "")


class _Reply:
    """One reply: the completions it takes and the events they become."""

    def __init__(
        self, responder: LlamaCppResponder, prompt: str, sampling: Sampling, cancel: threading.Event | None
    ) -> None:
        self._responder = responder
        self._prompt = prompt
        self._sampling = sampling
        self._cancel = cancel
        self._usage = _Usage()
        self._called = False

    def text(self) -> Iterator[str]:
        return self._complete(self._prompt)

    def text_and_calls(self, toolbox: Toolbox) -> Iterator[ReplyEvent]:
        failed = yield from self._parts(self._prompt, toolbox)
        if failed is None:
            return
        if failed.error.tool is not None:
            yield self._write_call(failed.written, toolbox, failed.error.tool)
            return
        told = json.dumps({"error": str(failed.error)}, ensure_ascii=False)
        answer = Message("tool", told)
        failed = yield from self._parts(
            f"{failed.written}{failed.raw}{prompts.END}{prompts.turns([answer])}{prompts.ASSISTANT_TURN}", toolbox
        )
        if failed is not None:
            raise BackendError(f"the model wrote no usable tool call: {failed.error}")

    def forced_call(self, toolbox: Toolbox) -> Iterator[ReplyEvent]:
        name = toolbox.choice
        if name == "required":
            name = next(iter(toolbox.tools))
            if len(toolbox.tools) > 1:
                names = {"enum": list(toolbox.tools)}
                name = json.loads(
                    "".join(self._complete(self._prompt + prompts.CALL_OPENING + '{"name": ', schema=names))
                )
        yield self._write_call(self._prompt, toolbox, toolbox.tools[name])

    def finish(self) -> Finish:
        usage = self._usage
        reason: Literal["stop", "length", "tool_calls"] = "tool_calls" if self._called else usage.reason
        return Finish(reason, usage.prompt, usage.cached, usage.completion)

    def _parts(self, prompt: str, toolbox: Toolbox) -> Generator[ReplyEvent, None, _Failed | None]:
        """Text and calls of one completion, up to the first call that is not valid."""
        finder = CallFinder()
        written = prompt
        called = False
        for piece in _then_none(self._complete(prompt)):
            for part in finder.flush() if piece is None else finder.push(piece):
                if isinstance(part, str):
                    if called and part.strip():
                        return None
                    written += part
                    if not called:
                        yield TextDelta(part)
                    continue
                try:
                    call = toolbox.parse(part.raw)
                except CallError as error:
                    return _Failed(written, part.raw, error)
                written += part.raw
                if call is None:
                    yield TextDelta(part.raw)
                else:
                    called = self._called = True
                    yield call
        return None

    def _write_call(self, written: str, toolbox: Toolbox, tool: Tool) -> ToolCall:
        """A call of `tool` after what is `written`, under the grammar of its schema."""
        opening = f'{prompts.CALL_OPENING}{{"name": {json.dumps(tool.name)}, "arguments": '
        schema = {"type": "object", **tool.parameters}
        arguments = "".join(self._complete(written + opening, schema=schema))
        try:
            call = toolbox.check(tool.name, arguments)
        except CallError as error:
            cut = " (it was cut off at max_tokens)" if self._usage.reason == "length" else ""
            raise BackendError(f"the model wrote no usable call of {tool.name}{cut}: {error}") from error
        self._called = True
        return call

    def _complete(self, prompt: str, *, schema: Mapping[str, Any] | None = None) -> Iterator[str]:
        sampling = self._sampling
        request: dict[str, Any] = {
            "prompt": prompt,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # llama.cpp's own defaults would narrow the choice further than the caller asked for.
            "top_k": 0,
            "min_p": 0.0,
        }
        if sampling.seed is not None:
            request["seed"] = sampling.seed
        if schema is not None:
            request["json_schema"] = schema
        elif sampling.stop:
            request["stop"] = list(sampling.stop)
        return self._responder.complete(request, self._usage, self._cancel)


@dataclass(frozen=True)
class _Failed:
    """A call that is not valid: the prompt and reply before it, the call itself and what is wrong."""

    written: str
    raw: str
    error: CallError


def _then_none(pieces: Iterator[str]) -> Iterator[str | None]:
    yield from pieces
    yield None


def _failure(error: Mapping[str, Any], context: int) -> Exception:
    """What llama.cpp's error object means to the caller."""
    message = str(error.get("message", error))
    if error.get("type") == "exceed_context_size_error":
        return InputError(
            f"the conversation takes {error['n_prompt_tokens']} tokens but at most {context - 1} fit; "
            "shorten the history or raise the context",
            param="messages",
        )
    if error.get("type") == "invalid_request_error":
        return InputError(f"llama.cpp refused the request: {message}")
    return BackendError(f"llama.cpp failed: {message}")


def _load(model: Path, context: int, slots: int, threads: int, key: str) -> Any:
    xllamacpp = _import()
    _check_gguf(model)
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx = context * slots
    params.n_parallel = slots
    params.n_batch = params.n_ubatch = _STEP_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = _CACHE_MIB
    params.fit_params = False
    params.verbosity = -1
    # The binding always opens an HTTP server on a free loopback port; nobody else may use it.
    params.api_keys = [key]
    params.ui = params.endpoint_slots = False
    params.n_threads_http = 1
    try:
        with _signals_kept():
            return xllamacpp.Server(params)
    except RuntimeError as error:
        raise IntegrityError(
            f"llama.cpp cannot load {model}: the file is damaged or of a kind it does not know, or memory ran out; "
            "fetch it again with `stepaudio pull`"
        ) from error


def _import() -> Any:
    """Import xllamacpp with OpenMP threads that sleep at a barrier instead of spinning.

    Spinning gains a tenth on an idle machine and loses nine tenths when anything else wants the cores, such as a
    speaker at work on the first clause. OpenMP reads the policy when its library is loaded, and never again.
    """
    policy = "OMP_WAIT_POLICY"
    ours = policy not in os.environ
    if ours:
        os.environ[policy] = "passive"
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingError(
            f"xllamacpp cannot be imported ({error}); run: pip install 'stepaudio[local]', "
            "and install libgomp (Debian: apt install libgomp1) if that is what is missing"
        ) from error
    finally:
        if ours:
            del os.environ[policy]
    return xllamacpp


def _check_gguf(model: Path) -> None:
    if not model.is_file():
        raise MissingError(f"there is no model file {model}; fetch it with `stepaudio pull`")
    with model.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise IntegrityError(f"{model} is not a GGUF file; fetch it again with `stepaudio pull`")


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep this process's SIGINT and SIGTERM handlers, which llama.cpp's server replaces with its own.

    Goes through libc, since Python's `signal` module may only be used from the main thread and cannot see what C
    code installed.
    """
    if os.name != "posix":
        yield
        return
    libc = ctypes.CDLL(None)
    kept = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, action in kept.items():
        libc.sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in kept.items():
            libc.sigaction(int(number), action, None)
