"""A bundle in this process."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from stepaudio.errors import InputError
from stepaudio.eval.items import Audio, Call, Kind, Reply, Request, Turn
from stepaudio.eval.store import Store, key
from stepaudio.eval.systems import MAX_TOKENS
from stepaudio.eval.systems.remembering import RememberingResponder
from stepaudio.speech.answer import Answered, Called, Heard, Said, answer
from stepaudio.speech.bundle import load
from stepaudio.speech.bundle_spec import BundleSpec
from stepaudio.speech.roles import HearingResponder, Message, Responder, Sampling, Speech

_NEEDS: dict[Kind, tuple[str, ...]] = {
    "transcribe": ("vad", "transcriber"),
    "say": ("speaker",),
    "converse": ("transcriber", "responder", "speaker"),
}
_FIRST_WORDS = {"en": "Good morning.", "zh": "早上好。"}


class BundleSystem:
    """The abilities of a bundle. Replies are greedy, so one seed is all there is.

    With a `store`, bundles that answer with the same model write each answer once.
    """

    def __init__(self, name: str, store: Store | None = None) -> None:
        """Raises NotFoundError for an unknown bundle."""
        self._store = store
        self.bundle = load(name)
        self.name = self.bundle.name
        self.kinds = frozenset(kind for kind, roles in _NEEDS.items() if all(map(self.bundle.has, roles)))
        self.fingerprint = fingerprint(self.bundle.spec)

    def parallel(self, kind: Kind) -> int:
        # Two replies at once share every pass over the model's weights; the other kinds are timed one by one.
        return 2 if kind == "converse" else 1

    def prepare(self, kind: Kind) -> None:
        self.bundle.warm(*_NEEDS[kind])
        if "speaker" in _NEEDS[kind]:
            for text in (_FIRST_WORDS[language] for language in self.bundle.languages if language in _FIRST_WORDS):
                for _ in self.bundle.say(text):  # lexicons are read at the first word of a language
                    pass

    def run(self, request: Request) -> tuple[Reply, ...]:
        match request.kind:
            case "transcribe":
                return (self._transcribe(request),)
            case "say":
                return (self._say(request),)
            case "converse":
                return self._converse(request)
            case _:
                raise InputError(f"the bundle '{self.name}' cannot {request.kind}")

    def close(self) -> None:
        self.bundle.close()

    def _transcribe(self, request: Request) -> Reply:
        assert request.clip is not None
        samples = request.clip.samples(self.bundle.transcriber.rate)
        started = time.perf_counter()
        heard = self.bundle.transcribe(samples, language=request.language or None)
        return Reply(heard.text, seconds=time.perf_counter() - started)

    def _say(self, request: Request) -> Reply:
        started = time.perf_counter()
        chunks, first = [], None
        for chunk in self.bundle.say(request.text, language=request.language):
            if first is None and len(chunk.samples):
                first = time.perf_counter() - started
            chunks.append(chunk)
        return Reply(request.text, self._joined(chunks), seconds=time.perf_counter() - started, first=first)

    def _converse(self, request: Request) -> tuple[Reply, ...]:
        history: list[Message] = []
        replies = []
        for turn in request.turns:
            reply = self._answer(turn, history, request)
            history += [Message("user", reply.heard), Message("assistant", reply.text)]
            replies.append(reply)
        return tuple(replies)

    def _answer(self, turn: Turn, history: list[Message], request: Request) -> Reply:
        transcriber, speaker = self.bundle.transcriber, self.bundle.speaker
        asked = turn.clip.samples(transcriber.rate) if turn.clip else turn.text
        heard, chunks, calls, answered = turn.text, [], [], None
        for event in answer(
            transcriber,
            self._responder,
            speaker,
            asked,
            history=history,
            instructions=request.instructions,
            tools=request.tools,
            sampling=Sampling(max_tokens=MAX_TOKENS),
        ):
            match event:
                case Heard(transcript):
                    heard = transcript.text
                case Said(speech):
                    chunks.append(speech)
                case Called(call):
                    calls.append(Call(call.name, call.arguments))
                case Answered():
                    answered = event
        assert answered is not None  # the last event of every answer
        return Reply(answered.text, self._joined(chunks), tuple(calls), heard=heard)

    @property
    def _responder(self) -> Responder:
        responder = self.bundle.responder
        if self._store is None or isinstance(responder, HearingResponder):
            return responder
        spec = self.bundle.spec
        identity = fingerprint(replace(spec, roles={"responder": spec.roles["responder"]}))
        return RememberingResponder(responder, identity, self._store)

    def _joined(self, chunks: Iterable[Speech]) -> Audio | None:
        samples = np.concatenate([np.zeros(0, np.float32), *(chunk.samples for chunk in chunks)])
        return Audio(samples, self.bundle.speaker.rate) if len(samples) else None


def fingerprint(spec: BundleSpec) -> str:
    """Of the roles of a bundle, their options and the digests of their weights."""
    roles = {
        name: [
            role.backend,
            dict(role.weights),
            dict(role.optional_weights),
            {k: str(v) for k, v in role.options.items()},
        ]
        for name, role in spec.roles.items()
    }
    weights = {each.name: [file.sha256 for file in each.files] for each in spec.weights()}
    return key("bundle", roles, weights, MAX_TOKENS)
