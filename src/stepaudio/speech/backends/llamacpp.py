"""Replies from a GGUF model through llama.cpp, inside this process.

The prompt is written here (`prompts.chatml`) rather than by llama.cpp's chat templates: token counts are exact, the
open turn `<|im_start|>user\n` can be evaluated before its text is known, and a caller's text cannot open a turn.
llama.cpp keeps the evaluated prompt of each slot and, for conversations that lost their slot, in host memory, so
that a reply pays only for the tokens that are new.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from stepaudio.errors import BackendError, BusyError, Cancelled, InputError
from stepaudio.speech import prompts
from stepaudio.speech.backends.llama_server import load
from stepaudio.speech.roles import Finish, Message, ReplyEvent, Sampling, TextDelta, Tool, ToolCall
from stepaudio.speech.threads import pump
from stepaudio.speech.toolcalls import Attempt, CallError, CallFinder, Toolbox

_POLL_SECONDS = 0.02
_LIKELIEST = 20  # next tokens to look at
_ENDING = re.compile(r"\s*[.?!。？！\n]|<\|im_end")


class LlamaCppResponder:
    """A `Responder` over one GGUF model that speaks ChatML (Qwen2.5 and its kin).

    `slots` replies run at once, each with `context` tokens of its own; further callers wait up to `queue_seconds`
    and then get BusyError. `system` is the system prompt of conversations that bring none of their own (None:
    `prompts.spoken`); it is evaluated here, once. Raises MissingError when `model` is not there and IntegrityError
    when it cannot be loaded.
    """

    def __init__(
        self,
        model: Path,
        *,
        context: int = 4096,
        slots: int = 2,
        threads: int = 2,
        system: str | None = None,
        queue_seconds: float = 10.0,
    ) -> None:
        if min(context, slots, threads) < 1:
            raise InputError("context, slots and threads must be at least 1")
        self.context_tokens = context
        self._system = system
        self._queue_seconds = queue_seconds
        self._slots = slots
        self._free = threading.Semaphore(slots)
        self._closed = threading.Event()
        self._key = secrets.token_urlsafe(24)
        self._server = load(model, context=context, slots=slots, threads=threads, key=self._key)
        if self._tokens("<|im_start|>") != 1:
            self.close()
            raise InputError(f"{model} does not speak ChatML; serve it elsewhere and use the backend `openai`")
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

        With tools, the model first chooses under a grammar whether to answer or which tool to call, and the
        arguments of a call are written under the grammar of its schema, so that a `ToolCall` is always valid. A call
        inside a written answer is taken too; when its arguments are wrong it is written again under the grammar.
        Where a call would be of a tool that does not exist, or repeat one that was just answered, the model answers
        without tools. Text after a call ends the reply: small models invent its result.
        """
        toolbox = Toolbox(tools, tool_choice)
        sampling = sampling or Sampling()
        words = self._prompt(messages, ())
        with self._slot(cancel):
            if not tools or tool_choice == "none":
                reply = _Reply(self, words, words, frozenset(), sampling, cancel)
                yield from reply.words()
            else:
                reply = _Reply(self, self._prompt(messages, tools), words, _answered(messages), sampling, cancel)
                yield from reply.words_or_calls(toolbox) if tool_choice == "auto" else reply.forced_call(toolbox)
            yield reply.finish()

    def warm(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        words: str = "",
        cancel: threading.Event | None = None,
    ) -> float | None:
        """Evaluate a history and the first words of its next user turn; see `Responder.warm`."""
        request = {"prompt": self._prompt(messages, tools, prompts.user_turn(words)), "max_tokens": 1}
        next_token = _NextToken()
        with self._slot(cancel):
            for _ in self.complete({**request, "logprobs": _LIKELIEST}, next_token, cancel):
                pass
        return next_token.ends if words else None

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        """Tokens that this history takes as a prompt, system prompt and tools included."""
        return self._tokens(self._prompt(messages, tools))

    def close(self) -> None:
        """Stop what is running and free the model, which is gone when the last reply has stopped.

        A closed responder raises BackendError.
        """
        self._closed.set()
        self._server = None

    def complete(
        self, request: Mapping[str, Any], usage: _Usage, cancel: threading.Event | None
    ) -> Generator[str, None, None]:
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
        with contextlib.closing(pump(work, cancel=cancel)) as chunks:
            for chunk in chunks:
                if "error" in chunk:
                    raise _failure(chunk["error"])
                if text := usage.read(chunk):
                    yield text
        self._open()

    def _tokens(self, text: str) -> int:
        connection = http.client.HTTPConnection(urlsplit(self._open().listening_address).netloc, timeout=10)
        body = json.dumps({"content": text, "parse_special": True})
        try:
            connection.request("POST", "/tokenize", body, {"Authorization": f"Bearer {self._key}"})
            return len(json.load(connection.getresponse())["tokens"])
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            raise BackendError(f"llama.cpp could not count tokens: {error}") from error
        finally:
            connection.close()

    def _check(self, cancel: threading.Event | None) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled("the reply was cancelled")
        self._open()

    def _open(self) -> Any:
        if self._closed.is_set():
            raise BackendError("this responder is closed; load the bundle again")
        return self._server

    def _prompt(self, messages: Sequence[Message], tools: Sequence[Tool], turn: str = prompts.ASSISTANT_TURN) -> str:
        system = prompts.spoken(tools=bool(tools)) if self._system is None else self._system
        offered = [prompts.answer_tool([tool.name for tool in tools]), *tools] if tools else ()
        return prompts.chatml(messages, offered, system=system) + turn

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


@dataclass
class _NextToken(_Usage):
    """What the model takes for the next token."""

    ends: float | None = None
    """Probability that it ends the sentence."""

    def read(self, chunk: Mapping[str, Any]) -> str:
        choice = chunk["choices"][0] if chunk.get("choices") else {}
        for token in (choice.get("logprobs") or {}).get("content", ())[:1]:
            likeliest = token["top_logprobs"]
            self.ends = sum(math.exp(each["logprob"]) for each in likeliest if _ENDING.match(each["token"]))
        return super().read(chunk)


class _Reply:
    """One reply: the completions it takes and the events they become."""

    def __init__(
        self,
        responder: LlamaCppResponder,
        prompt: str,
        words_prompt: str,
        answered: frozenset[str],
        sampling: Sampling,
        cancel: threading.Event | None,
    ) -> None:
        self._responder = responder
        self._prompt = prompt
        self._words_prompt = words_prompt
        self._answered = answered
        self._sampling = sampling
        self._cancel = cancel
        self._usage = _Usage()
        self._called = False

    def words(self) -> Iterator[ReplyEvent]:
        """An answer by a model that is shown no tools."""
        with contextlib.closing(self._complete(self._words_prompt)) as pieces:
            for piece in pieces:
                yield TextDelta(piece)

    def words_or_calls(self, toolbox: Toolbox) -> Iterator[ReplyEvent]:
        """The model first names what it will do, then does it."""
        answer = prompts.answer_tool(toolbox.tools).name
        name = self._choose([answer, *toolbox.tools])
        written, tool = self._prompt, toolbox.tools.get(name)
        if tool is None:
            failed = yield from self._parts(toolbox)
            if failed is None:
                return
            written, tool = failed.written, failed.tool
        call = self._write_call(written, toolbox, tool) if tool is not None else None
        if call is not None and _key(call) not in self._answered:
            yield call
        elif self._usage.reason != "length":
            self._called = False
            yield from self.words()

    def forced_call(self, toolbox: Toolbox) -> Iterator[ReplyEvent]:
        names = list(toolbox.tools) if toolbox.choice == "required" else [toolbox.choice]
        name = self._choose(names) if len(names) > 1 else names[0]
        if call := self._write_call(self._prompt, toolbox, toolbox.tools[name]):
            yield call

    def _choose(self, names: Sequence[str]) -> str:
        """The name that the model would call, among these."""
        # The grammar starts inside the quotes: a prompt must not end where a token of the model would go on.
        prompt = f'{self._prompt}{prompts.CALL_OPENING}{{"name": "'
        alternatives = " | ".join(f'"{name}"' for name in names)
        request = {"prompt": prompt, "grammar": f'root ::= ({alternatives}) "\\""', "temperature": 0}
        name = "".join(self._responder.complete(request, self._usage, self._cancel)).removesuffix('"')
        if name not in names:
            raise BackendError(f"the model chose no tool but {name!r}; shorten the history or raise the context")
        return name

    def finish(self) -> Finish:
        usage = self._usage
        reason: Literal["stop", "length", "tool_calls"] = "tool_calls" if self._called else usage.reason
        return Finish(reason, usage.prompt, usage.cached, usage.completion)

    def _parts(self, toolbox: Toolbox) -> Generator[ReplyEvent, None, _Failed | None]:
        """Text and calls of one completion, up to the first call that cannot be taken."""
        finder = CallFinder()
        written = self._prompt
        with contextlib.closing(self._complete(written)) as pieces:
            for part in chain(chain.from_iterable(map(finder.push, pieces)), _last(finder)):
                if isinstance(part, str):
                    if self._called and part.strip():
                        break
                    written += part
                    if not self._called:
                        yield TextDelta(part)
                    continue
                try:
                    call = toolbox.parse(part.raw)
                except CallError as error:
                    return None if self._called else _Failed(written, error.tool)
                written += part.raw
                if call is None:
                    yield TextDelta(part.raw)
                elif _key(call) in self._answered:
                    return None if self._called else _Failed(written, None)
                else:
                    self._called = True
                    yield call
        return None

    def _write_call(self, written: str, toolbox: Toolbox, tool: Tool) -> ToolCall | None:
        """A call of `tool` after what is `written`, under the grammar of its schema; None when `max_tokens` cut it
        off."""
        opening = f'{prompts.CALL_OPENING}{{"name": {json.dumps(tool.name)}, "arguments":'
        # Closed unless the tool says otherwise: with open ones, small models go on to invent properties.
        schema = {"type": "object", "additionalProperties": False, **tool.parameters}
        arguments = "".join(self._complete(written + opening, schema=schema))
        if self._usage.reason == "length":
            return None
        try:
            call = toolbox.check(tool.name, arguments)
        except CallError as error:
            raise BackendError(f"the model wrote no usable call of {tool.name}: {error}") from error
        self._called = True
        return call

    def _complete(self, prompt: str, *, schema: Mapping[str, Any] | None = None) -> Generator[str, None, None]:
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
    """A call that cannot be taken: prompt and reply before it, and the tool to write it for again, if any."""

    written: str
    tool: Tool | None


def _answered(messages: Sequence[Message]) -> frozenset[str]:
    """The calls made since the user last spoke."""
    since = max((index for index, message in enumerate(messages) if message.role == "user"), default=0)
    return frozenset(_key(call) for message in messages[since:] for call in message.tool_calls)


def _key(call: ToolCall) -> str:
    return json.dumps([call.name, dict(call.arguments)], sort_keys=True)


def _last(finder: CallFinder) -> Iterator[str | Attempt]:
    """What is left in the finder once all text is in."""
    yield from finder.flush()


def _failure(error: Mapping[str, Any]) -> Exception:
    """What llama.cpp's error object means to the caller."""
    message = str(error.get("message", error))
    if error.get("type") == "exceed_context_size_error":
        return InputError(
            f"the conversation takes {error['n_prompt_tokens']} tokens but at most {error['n_ctx'] - 1} fit; "
            "shorten the history or raise the context",
            param="messages",
        )
    if error.get("type") == "invalid_request_error":
        return InputError(f"llama.cpp refused the request: {message}")
    return BackendError(f"llama.cpp failed: {message}")
