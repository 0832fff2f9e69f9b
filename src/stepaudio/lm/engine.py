"""Continuous batching: any number of threads ask for tokens, one thread runs the model for all of them.

Every step of the model carries the next token of each reply and a piece of the prompts that wait, so a new
request joins and a finished one leaves between two steps. The key-value cache of a finished or cancelled
sequence stays until its slot is needed: a prompt that begins like a sequence in any slot takes over, or
copies, what they share. That is how a conversation's next turn, and a speculative reply beside it, cost only
their new tokens.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Condition, Event, Thread
from typing import Literal, Protocol

import numpy as np

from stepaudio.errors import BackendError, BusyError, Cancelled, InputError
from stepaudio.lm.cache import Cache, common_prefix
from stepaudio.lm.generate import Sampler, SamplingParams
from stepaudio.lm.grammar import Grammar
from stepaudio.lm.runner import Span, make_runner
from stepaudio.lm.step1 import Step1

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
PREFILL_TOKENS = {"cpu": 64, "cuda": 512}
"""Prompt tokens per step: more would be faster for the prompt, and stall the replies that run beside it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished generation. `tokens` holds no stop id; `cached_tokens` of the prompt were not computed
    again."""

    tokens: list[int]
    reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int


@dataclass(slots=True, eq=False)
class Generation:
    """A running request: iterate it for its tokens as they come; `reply` is there once it has ended."""

    prompt: Sequence[int]
    sampler: Sampler
    limit: int
    slot: int = -1
    done: int = 0  # prompt tokens in the cache
    cached: int = 0
    tokens: list[int] = field(default_factory=list)
    reply: Reply | None = None
    error: Exception | None = None
    _cancel: tuple[Event, ...] = ()  # ours, and the caller's if there is one
    _queue: SimpleQueue[int | None] = field(default_factory=SimpleQueue)

    def cancel(self) -> None:
        """Stop after the step that runs now. Its slot keeps what was computed, for a later prompt."""
        self._cancel[0].set()

    @property
    def cancelled(self) -> bool:
        return any(event.is_set() for event in self._cancel)

    def __iter__(self) -> Iterator[int]:
        """Tokens as they are drawn. Leaving the loop early cancels. Raises Cancelled and BackendError."""
        try:
            while (token := self._next()) is not None:
                yield token
        finally:
            self.cancel()
        if self.error is not None:
            raise self.error

    def _next(self) -> int | None:
        while True:
            try:
                return self._queue.get(timeout=POLL_SECONDS)
            except Empty:
                if self.cancelled:
                    raise Cancelled("the generation was cancelled") from None

    def _emit(self, token: int) -> None:
        self.tokens.append(token)
        self._queue.put(token)

    def _end(self, reason: Literal["stop", "length"] | None, error: Exception | None = None) -> None:
        if reason is not None:
            self.reply = Reply(self.tokens, reason, len(self.prompt), self.cached)
        self.error = error
        self._queue.put(None)


class Started(Protocol):
    """A request that was submitted, here or to a server."""

    reply: Reply | None

    def __iter__(self) -> Iterator[int]: ...


def finish(generation: Started, on_token: Callable[[int], None] | None = None) -> Reply:
    """Run a request to its end; `on_token` is called in this thread. Raises what iterating it raises."""
    for token in generation:
        if on_token is not None:
            on_token(token)
    assert generation.reply is not None
    return generation.reply


class Engine:
    """Generates with one model for many callers. Safe to use from several threads; `close` it when done."""

    def __init__(self, model: Step1, *, slots: int = 8, tokens: int | None = None, max_waiting: int = 64) -> None:
        """`slots` sequences of at most `tokens` (default: what the model was made for, up to 8192) at a
        time."""
        weight = model.model.embed_tokens.weight
        tokens = tokens or min(model.config.max_seq_len, 8192)
        self.cache = Cache(model.config, slots=slots, tokens=tokens, dtype=weight.dtype, device=weight.device)
        self.vocab_size = model.config.vocab_size
        self._runner = make_runner(model, self.cache)
        self._prefill_tokens = PREFILL_TOKENS.get(weight.device.type, 64)
        self._max_waiting = max_waiting
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._idle: list[int] = []  # slots with the remains of a sequence, least recently used first
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._work, name="lm-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
        cancel: Event | None = None,
    ) -> Generation:
        """Queue a request; setting `cancel` has the effect of `Generation.cancel`. Raises InputError for a
        prompt that cannot be run and BusyError when too many wait."""
        params = params or SamplingParams()
        if not prompt:
            raise InputError("the prompt is empty")
        if not 0 <= min(prompt) <= max(prompt) < self.vocab_size:
            raise InputError(f"prompt ids must be in [0, {self.vocab_size})")
        room = self.cache.tokens - len(prompt)
        if room < 1:
            raise InputError(
                f"a prompt of {len(prompt)} tokens leaves no room for a reply in {self.cache.tokens}; shorten it"
            )
        events = (Event(),) if cancel is None else (Event(), cancel)
        generation = Generation(list(prompt), Sampler(params, grammar), min(params.max_tokens, room), _cancel=events)
        with self._changed:
            if self._closed:
                raise BackendError("the language model was closed")
            if len(self._waiting) >= self._max_waiting:
                raise BusyError(f"{len(self._waiting)} requests already wait for the language model")
            self._waiting.append(generation)
            self._changed.notify()
        return generation

    def generate(
        self,
        prompt: Sequence[int],
        params: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
        on_token: Callable[[int], None] | None = None,
        cancel: Event | None = None,
    ) -> Reply:
        """Run a request to its end; `on_token` is called in this thread. Raises Cancelled soon after
        `cancel`."""
        return finish(self.submit(prompt, params, grammar=grammar, cancel=cancel), on_token)

    def close(self) -> None:
        """Cancel everything and stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=60)

    # ------------------------------------------------------------ the engine's own thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or self._running)
                if self._closed:
                    break
                self._admit()
            try:
                self._step()
            except Exception as error:
                log.exception("a step of the language model failed")
                self._fail_all(BackendError(f"the language model failed: {error}"))
        self._fail_all(Cancelled("the language model was closed"))

    def _admit(self) -> None:
        while self._waiting and len(self._running) < len(self.cache.sequences):
            generation = self._waiting.popleft()
            if generation.cancelled:
                generation._end(None, Cancelled("the generation was cancelled"))
                continue
            generation.slot, generation.cached = self._take_slot(generation.prompt)
            generation.done = generation.cached
            self._running.append(generation)

    def _take_slot(self, prompt: Sequence[int]) -> tuple[int, int]:
        """A slot for this prompt and how many of its tokens are already in it."""
        shared = {slot: common_prefix(held, prompt) for slot, held in enumerate(self.cache.sequences)}
        best = max(shared, key=lambda slot: shared[slot])
        # The last token is always computed: its logits are what the reply begins with.
        length = min(shared[best], len(prompt) - 1)
        held = len(self.cache.sequences[best])
        oldest = None if self.cache.free else self._idle[0]
        # Taking over a sequence loses its end: worth it when most of it is wanted, or it would go anyway.
        if best == oldest or (best in self._idle and 2 * length >= held):
            self._idle.remove(best)
            self.cache.truncate(best, length)
            return best, length
        if oldest is not None:
            self._idle.remove(oldest)
            self.cache.release(oldest)
        return self.cache.fork(best, length), length

    def _step(self) -> None:
        for generation in [g for g in self._running if g.cancelled]:
            self._leave(generation, None, Cancelled("the generation was cancelled"))
        budget = self._prefill_tokens
        active: list[tuple[Generation, Span]] = []
        for generation in self._running:
            if generation.tokens:
                active.append((generation, Span(generation.slot, generation.tokens[-1:])))
            elif budget:
                piece = generation.prompt[generation.done : generation.done + budget]
                budget -= len(piece)
                generation.done += len(piece)
                active.append((generation, Span(generation.slot, piece)))
        if not active:
            return
        logits_BV = self._runner.step([span for _, span in active]).cpu().numpy()
        for (generation, _), logits_V in zip(active, logits_BV, strict=True):
            if generation.done == len(generation.prompt):
                try:
                    self._draw(generation, logits_V)
                except Exception as error:  # of this sequence alone: its grammar, or numbers that are none
                    self._leave(generation, None, BackendError(f"no token could be drawn: {error}"))

    def _draw(self, generation: Generation, logits_V: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
        sampler = generation.sampler
        token = sampler.draw(logits_V, [*generation.prompt[-10:], *generation.tokens[-10:]])
        if token in sampler.params.stop:
            self._leave(generation, "stop")
            return
        generation._emit(token)
        if len(generation.tokens) >= generation.limit:
            self._leave(generation, "length")

    def _leave(
        self, generation: Generation, reason: Literal["stop", "length"] | None, error: Exception | None = None
    ) -> None:
        self._running.remove(generation)
        self._idle.append(generation.slot)
        generation._end(reason, error)

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            failed = [*self._running, *self._waiting]
            # What a failed step left in the cache is not to be trusted.
            for generation in self._running:
                self.cache.release(generation.slot)
            self._running.clear()
            self._waiting.clear()
        for generation in failed:
            generation._end(None, error)
