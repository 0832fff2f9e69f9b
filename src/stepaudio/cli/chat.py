"""`stepaudio chat`: a conversation through the microphone and loudspeaker of this machine."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

import stepaudio
from stepaudio.cli.output import BundleOption, console
from stepaudio.errors import AudioError, MissingError
from stepaudio.speech.bundle_spec import DEFAULT

if TYPE_CHECKING:
    from stepaudio.audio.vad import VadStream
    from stepaudio.speech.bundle import Bundle
    from stepaudio.speech.roles import Message, Samples

_RATE = 16_000
_BLOCK = 512  # one window of the voice activity detector, 32 ms
_HEARD_BLOCKS = 600  # at most this many blocks (19 s) wait to be looked at
_SPEECH, _SILENCE = 0.5, 0.35  # probabilities at which speech starts and goes on
_PAUSE_SECONDS = 0.7
_BEFORE_SECONDS = 0.3
_MAX_TURN_SECONDS = 30.0


def chat(
    bundle: BundleOption = DEFAULT,
    voice: Annotated[str | None, typer.Option(help="A voice of `stepaudio voices`; by language if none.")] = None,
    instructions: Annotated[str | None, typer.Option(help="How to answer, in words.")] = None,
) -> None:
    """Talk with the bundle through the microphone; Ctrl-C ends it. Wear headphones, or it hears itself."""
    sound = _sound_device()
    out = console()
    models = stepaudio.load(bundle)
    with out.status("loading the models"):
        models.warm()
    history: list[Message] = []
    with _Microphone(sound) as microphone, sound.OutputStream(models.speaker.rate, channels=1, dtype="float32") as loud:
        out.print("Say something.")
        while True:
            question = next_turn(microphone.blocks(), models.vad.stream())
            try:
                history += _reply(models, question, history, voice, instructions, loud.write)
            except AudioError:
                continue  # a cough or a door: nothing was said
            microphone.drop()


def next_turn(blocks: Iterator[Samples], vad: VadStream) -> Samples:
    """The samples [T] of the next thing said: from shortly before speech starts until a pause after it."""
    import numpy as np

    before: deque[Samples] = deque(maxlen=round(_BEFORE_SECONDS * _RATE / _BLOCK))
    turn: list[Samples] = []
    silent = 0.0
    for block in blocks:
        speaks = float(vad.push(block).max(initial=0.0)) >= (_SILENCE if turn else _SPEECH)
        if not turn and not speaks:
            before.append(block)
            continue
        turn = turn or list(before)
        turn.append(block)
        silent = 0.0 if speaks else silent + len(block) / _RATE
        if silent >= _PAUSE_SECONDS or sum(map(len, turn)) >= _MAX_TURN_SECONDS * _RATE:
            break
    return np.concatenate(turn) if turn else np.zeros(0, np.float32)


def _reply(
    models: Bundle,
    question: Samples,
    history: list[Message],
    voice: str | None,
    instructions: str | None,
    play: Callable[[Samples], object],
) -> list[Message]:
    """Answer one turn aloud; returns the two messages it adds to the history."""
    from stepaudio.speech.answer import Answered, Heard, Said, Wrote
    from stepaudio.speech.roles import Message

    heard = answer = ""
    for event in models.answer(question, history=history, voice=voice, instructions=instructions):
        match event:
            case Heard(transcript):
                heard = transcript.text
                print(f"you   {heard}\nreply ", end="", flush=True)
            case Wrote(delta):
                print(delta, end="", flush=True)
            case Said(speech):
                play(speech.samples)
            case Answered(text):
                answer = text
                print()
    return [Message("user", heard), Message("assistant", answer)]


class _Microphone:
    """Blocks from the default input; when nobody takes them, the oldest are dropped."""

    def __init__(self, sound: Any) -> None:
        self._waiting: queue.Queue[Samples] = queue.Queue(_HEARD_BLOCKS)
        self._stream = sound.InputStream(_RATE, _BLOCK, channels=1, dtype="float32", callback=self._take)

    def __enter__(self) -> _Microphone:
        self._stream.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def blocks(self) -> Iterator[Samples]:
        while True:
            yield self._waiting.get()

    def drop(self) -> None:
        """Forget what was heard so far, the reply's own echo for one."""
        while not self._waiting.empty():
            self._waiting.get_nowait()

    def _take(self, block: Samples, *_: object) -> None:
        if self._waiting.full():
            self._waiting.get_nowait()
        self._waiting.put_nowait(block[:, 0].copy())


def _sound_device() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise MissingError("the microphone needs sounddevice; run: pip install 'stepaudio[mic]'") from None
    except OSError:
        raise MissingError("the system library PortAudio is missing; on Debian: apt install libportaudio2") from None
    try:
        sounddevice.check_input_settings(samplerate=_RATE, channels=1)
    except Exception as error:
        raise MissingError(f"no microphone can be used: {error}") from None
    return sounddevice
