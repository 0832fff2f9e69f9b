"""A bundle, loaded: its roles as attributes, its abilities as methods.

A bundle is loaded once per process and shared by every session in it. Its roles are built when they are first used,
so that speaking does not load the language model.

```python
import stepaudio

bundle = stepaudio.load("small")
print(bundle.transcribe("question.wav").text)
for speech in bundle.say("Hello. How are you?"):
    play(speech.samples)                            # float32 [T] at bundle.speaker.rate
for event in bundle.answer("question.wav"):
    ...                                             # Heard, Wrote, Said, Called, Answered
```

The same methods on `bundle.aio` are coroutines and asynchronous iterators.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stepaudio.audio.resample import resample
from stepaudio.errors import InputError, MissingError
from stepaudio.speech.aio import run, stream
from stepaudio.speech.bundle_spec import BACKENDS, DEFAULT, ROLES, BundleSpec, RoleSpec, read_spec
from stepaudio.speech.roles import (
    Edit,
    Message,
    Reference,
    Responder,
    Samples,
    Sampling,
    Speaker,
    SpeakerEncoder,
    Speech,
    Tool,
    Transcriber,
    Transcript,
    TurnScorer,
)
from stepaudio.speech.weights import Store, resolve

if TYPE_CHECKING:
    from stepaudio.audio.io import Source
    from stepaudio.audio.vad import SileroVad
    from stepaudio.speech.answer import AnswerEvent
    from stepaudio.speech.transcribe import Segment


class Bundle:
    """The loaded models of one bundle, shared by every session of the process.

    Roles are attributes (`transcriber`, `responder`, `speaker`, `speaker_encoder`, `turn_scorer`, `vad`), built on
    first use; several threads may ask at once. Use it as a context manager, or call `close`.
    """

    def __init__(self, spec: BundleSpec, store: Store | None = None) -> None:
        self.spec = spec
        self.name = spec.name
        self.languages = spec.languages
        self._store = store or Store()
        self._built: dict[str, Any] = {}
        self._locks = {role: threading.Lock() for role in ROLES}
        self._closed = False

    @property
    def vad(self) -> SileroVad:
        return cast("SileroVad", self._get("vad"))

    @property
    def transcriber(self) -> Transcriber:
        return cast(Transcriber, self._get("transcriber"))

    @property
    def responder(self) -> Responder:
        return cast(Responder, self._get("responder"))

    @property
    def speaker(self) -> Speaker:
        return cast(Speaker, self._get("speaker"))

    @property
    def speaker_encoder(self) -> SpeakerEncoder:
        return cast(SpeakerEncoder, self._get("speaker_encoder"))

    @property
    def turn_scorer(self) -> TurnScorer:
        return cast(TurnScorer, self._get("turn_scorer"))

    def has(self, role: str) -> bool:
        """Whether the bundle fills this role."""
        return role in self.spec.roles

    def warm(self, *roles: str) -> None:
        """Load these roles now (by default those a spoken conversation needs), side by side."""
        wanted = roles or tuple(r for r in ("vad", "transcriber", "responder", "speaker") if self.has(r))
        failures: list[BaseException] = []

        def load(role: str) -> None:
            try:
                self._get(role)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=load, args=(role,), name=f"load-{role}") for role in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    # ------------------------------------------------------------ abilities

    def segments(
        self,
        source: Source | Samples,
        *,
        language: str | None = None,
        prompt: str | None = None,
        words: bool = False,
        cancel: Event | None = None,
    ) -> Iterator[Segment]:
        """Transcribe a recording of any length in constant memory, stretch by stretch.

        `source` is a path, bytes, a binary file, or samples [T] at the transcriber's rate.
        """
        from stepaudio.audio.io import stream as read_stream
        from stepaudio.speech.transcribe import transcribe

        transcriber = self.transcriber
        blocks = source if isinstance(source, np.ndarray) else read_stream(source, rate=transcriber.rate)
        return transcribe(
            transcriber, blocks, vad=self.vad, language=language, prompt=prompt, words=words, cancel=cancel
        )

    def transcribe(
        self,
        source: Source | Samples,
        *,
        language: str | None = None,
        prompt: str | None = None,
        words: bool = False,
        cancel: Event | None = None,
    ) -> Transcript:
        """The text of a whole recording; see `segments`."""
        from stepaudio.speech.transcribe import join

        return join(self.segments(source, language=language, prompt=prompt, words=words, cancel=cancel))

    def say(
        self,
        text: str | Iterable[str],
        *,
        voice: str | None = None,
        language: str | None = None,
        speed: float = 1.0,
        style: str | None = None,
        cancel: Event | None = None,
    ) -> Iterator[Speech]:
        """Speak text, or a stream of pieces of text; the first audio comes before the text ends."""
        from stepaudio.speech.say import say

        return say(self.speaker, text, voice=voice, language=language, speed=speed, style=style, cancel=cancel)

    def clone(
        self,
        clip: Source | Reference,
        text: str | Iterable[str],
        *,
        transcript: str | None = None,
        language: str | None = None,
        speed: float = 1.0,
        style: str | None = None,
        cancel: Event | None = None,
    ) -> Iterator[Speech]:
        """Speak text in the voice of a clip: 2 to 30 s of one person.

        `transcript` is what is said in the clip; without it the bundle's transcriber listens. A `Reference` is taken
        as it is. Raises AudioError for a clip that cannot serve, InputError when the speaker cannot clone.
        """
        from stepaudio.speech.clone import clone

        reference = clip if isinstance(clip, Reference) else self.reference(clip, transcript)
        return clone(self.speaker, reference, text, language=language, speed=speed, style=style, cancel=cancel)

    def edit(
        self,
        recording: Source | Reference,
        edits: Edit | Iterable[Edit],
        *,
        transcript: str | None = None,
        cancel: Event | None = None,
    ) -> Samples:
        """Change how a recording was spoken; several edits are made one after the other. Samples [T] at
        `speaker.rate`. See `clone` for `transcript` and what is raised."""
        from stepaudio.speech.clone import edit

        reference = recording if isinstance(recording, Reference) else self.reference(recording, transcript)
        return edit(self.speaker, reference, [edits] if isinstance(edits, Edit) else edits, cancel)

    def reference(self, clip: Source, transcript: str | None = None) -> Reference:
        """A checked clip and what is said in it, to clone or edit more than once."""
        from stepaudio.audio.io import read
        from stepaudio.speech.clone import LONGEST, RATE, make_reference

        samples = read(clip, rate=RATE, max_seconds=10 * LONGEST)

        def listen() -> str:
            if not self.has("transcriber"):
                raise InputError("this bundle cannot listen: say what is spoken in the clip", param="transcript")
            return self.transcribe(resample(samples, RATE, self.transcriber.rate)).text

        return make_reference(samples, RATE, transcript, self.vad, listen)

    def answer(
        self,
        question: Source | Samples | Message,
        *,
        history: Sequence[Message] = (),
        instructions: str | None = None,
        tools: Sequence[Tool] = (),
        voice: str | None = None,
        speed: float = 1.0,
        sampling: Sampling | None = None,
        cancel: Event | None = None,
    ) -> Iterator[AnswerEvent]:
        """Answer a spoken question (or a written `Message`) aloud: a stream of `stepaudio.speech.answer` events."""
        from stepaudio.audio.io import read
        from stepaudio.speech.answer import answer

        if isinstance(question, Message):
            asked: Samples | str = question.content
        elif isinstance(question, np.ndarray):
            asked = question
        else:
            asked = read(question, rate=self.transcriber.rate)
        return answer(
            self.transcriber,
            self.responder,
            self.speaker,
            asked,
            history=history,
            instructions=instructions,
            tools=tools,
            voice=voice,
            speed=speed,
            sampling=sampling,
            cancel=cancel,
        )

    @property
    def aio(self) -> AsyncBundle:
        """The same abilities for asyncio."""
        return AsyncBundle(self)

    def close(self) -> None:
        """Close every backend. Calling a role afterwards raises InputError."""
        self._closed = True
        with _registry_lock:
            if _registry.get(self.name) is self:
                del _registry[self.name]
        for role in reversed(ROLES):
            with self._locks[role]:
                if (backend := self._built.pop(role, None)) is not None:
                    backend.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _get(self, role: str) -> Any:
        with self._locks[role]:
            if self._closed:
                raise InputError(f"the bundle '{self.name}' is closed; load it again")
            if role not in self._built:
                if role not in self.spec.roles:
                    raise InputError(
                        f"the bundle '{self.name}' has no {role}; name one in its TOML file under [{role}]"
                    )
                self._built[role] = self._build(self.spec.roles[role])
            return self._built[role]

    def _build(self, spec: RoleSpec) -> Any:
        backend = BACKENDS[spec.backend]
        for module, remedy in backend.needs.items():
            if importlib.util.find_spec(module) is None:
                raise MissingError(f"the backend '{spec.backend}' needs the Python package '{module}'; run: {remedy}")
        make = _load_target(backend.target)
        arguments: dict[str, Any] = dict(spec.options)
        for name, reference in spec.weights.items():
            arguments[name] = self._path(reference)
        for name, reference in spec.optional_weights.items():
            artefact, _ = resolve(reference, self.spec.artefacts)
            arguments[name] = None if self._store.missing(artefact) else self._path(reference)
        accepted = inspect.signature(make).parameters
        if "vad" in accepted:
            arguments["vad"] = self.vad
        if unknown := sorted(set(arguments) - set(accepted)):
            raise InputError(
                f"the backend '{spec.backend}' has no option '{unknown[0]}'; it takes: {', '.join(accepted)}"
            )
        needed = [name for name, each in accepted.items() if each.default is each.empty and name not in arguments]
        if needed:
            raise InputError(f"the backend '{spec.backend}' needs the option '{needed[0]}' in the bundle's TOML file")
        return make(**arguments)

    def _path(self, reference: str) -> Path:
        artefact, path = resolve(reference, self.spec.artefacts)
        return self._store.verified(artefact) / path


class AsyncBundle:
    """A bundle's abilities as coroutines and asynchronous iterators, with the arguments of `Bundle`'s methods.

    The work runs in threads; leaving an iterator, or cancelling the task, stops it.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    async def transcribe(self, source: Source | Samples, **options: Any) -> Transcript:
        return await run(lambda cancel: self._bundle.transcribe(source, **options, cancel=cancel))

    def segments(self, source: Source | Samples, **options: Any) -> AsyncGenerator[Segment, None]:
        return stream(lambda cancel: self._bundle.segments(source, **options, cancel=cancel))

    def say(self, text: str | Iterable[str], **options: Any) -> AsyncGenerator[Speech, None]:
        return stream(lambda cancel: self._bundle.say(text, **options, cancel=cancel))

    def clone(
        self, clip: Source | Reference, text: str | Iterable[str], **options: Any
    ) -> AsyncGenerator[Speech, None]:
        return stream(lambda cancel: self._bundle.clone(clip, text, **options, cancel=cancel))

    async def edit(self, recording: Source | Reference, edits: Edit | Iterable[Edit], **options: Any) -> Samples:
        return await run(lambda cancel: self._bundle.edit(recording, edits, **options, cancel=cancel))

    def answer(self, question: Source | Samples | Message, **options: Any) -> AsyncGenerator[AnswerEvent, None]:
        return stream(lambda cancel: self._bundle.answer(question, **options, cancel=cancel))


def _load_target(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    return cast("Callable[..., Any]", getattr(importlib.import_module(module), name))


_registry: dict[str, Bundle] = {}
_registry_lock = threading.Lock()


def load(name_or_path: str | Path = DEFAULT) -> Bundle:
    """The bundle of that name (or TOML file), the same object for everyone in this process until it is closed.

    Nothing heavy happens yet: models are built at first use, or by `warm`. Raises NotFoundError for an unknown
    bundle and InputError for a malformed file.
    """
    with _registry_lock:
        spec = read_spec(name_or_path)
        bundle = _registry.get(spec.name)
        if bundle is None or bundle.spec != spec:
            bundle = _registry[spec.name] = Bundle(spec)
        return bundle
