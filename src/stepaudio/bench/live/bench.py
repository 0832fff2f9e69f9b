"""A whole run: prepare what is said, start the server, play, judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepaudio.audio.pcm import Samples
from stepaudio.audio.resample import resample
from stepaudio.bench.live import clips as clip_source
from stepaudio.bench.live.clips import RATE, Clips
from stepaudio.bench.live.measure import Judge
from stepaudio.bench.live.player import Target
from stepaudio.bench.live.recording import Recording
from stepaudio.bench.live.run import Step, fare, find_most, play_all
from stepaudio.bench.live.scenarios import KINDS, Conversation, build
from stepaudio.bench.live.server import serving
from stepaudio.errors import InputError
from stepaudio.speech.bundle import Bundle
from stepaudio.speech.bundle_spec import read_spec
from stepaudio.speech.roles import Word

_INSTRUCTIONS = "Answer in two or three short sentences, in the language of the question."
_MOST_TOKENS = 120
_CLIPS = 12
"""Clips a language that conversations draw from."""
LEAST_A_STEP = 4
"""Conversations that one step of the search plays at least: twenty turns, or its p95 would be one turn's."""

Doing = Callable[[str, int], Callable[[], None]]
"""Called with what is done next and in how many steps; returns what to call after each."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is run. Without `url` a server of `bundle` is started; the bundle also speaks, without `recordings`, and
    judges what was heard. `limit` and `patience` are seconds."""

    bundle: str
    url: str | None = None
    api_key: str | None = None
    recordings: Path | None = None
    conversations: int = 6
    seed: int = 0
    speculation: bool = True
    sessions: int = 1
    idle: int = 0
    turn_detection: str = "semantic_vad"
    eagerness: str = "auto"
    acoustic: bool = False
    patience: float = 20.0

    @property
    def session(self) -> dict[str, Any]:
        """The fields of `session.update`."""
        detection = {"type": self.turn_detection}
        if self.turn_detection == "semantic_vad":
            detection["eagerness"] = self.eagerness
        return {
            "instructions": _INSTRUCTIONS,
            "max_output_tokens": _MOST_TOKENS,
            "audio": {"input": {"turn_detection": detection}},
            "stepaudio": {"acoustic": self.acoustic},
        }

    @property
    def setup(self) -> dict[str, Any]:
        """What a reader of the figures has to know, without the key."""
        known = {name: value for name, value in asdict(self).items() if name != "api_key"}
        return known | {"recordings": None if self.recordings is None else str(self.recordings)}


@dataclass(frozen=True, slots=True)
class Script:
    """What is going to be said."""

    conversations: list[Conversation]
    clips: Clips


def prepare(options: Options, count: int, doing: Doing) -> Script:
    """`count` conversations, made from the recordings or spoken by the bundle's voices."""
    with Bundle(read_spec(options.bundle)) as bundle:
        if options.recordings is None:
            total = sum(min(_CLIPS, len(texts)) for texts in clip_source.QUESTIONS.values())
            done = doing("speaking the questions", total)
            turns = clip_source.synthesise_turns(bundle, most=_CLIPS, seed=options.seed, done=done)
        else:
            turns = clip_source.read_folder(options.recordings, most=_CLIPS, seed=options.seed)
        clips = Clips(turns, clip_source.synthesise_backchannels(bundle, seed=options.seed))
    return Script(build(clips, conversations=count, seed=options.seed), clips)


async def compare(options: Options, script: Script, url: str, doing: Doing) -> list[Recording]:
    """Play every conversation, with and without speculation unless the options leave it out."""
    arms = (True, False) if options.speculation else (False,)
    return await play_all(
        script.conversations,
        script.clips.by_name(),
        _target(options, url),
        arms=arms,
        sessions=options.sessions,
        idle=options.idle,
        progress=doing("playing conversations", len(script.conversations) * len(arms) * len(KINDS)),
    )


async def search(options: Options, script: Script, url: str, *, most: int, limit: float, doing: Doing) -> list[Step]:
    """Find how many conversations, up to `most`, can be held at once with the p95 of the latency within `limit`.

    Every step plays as many rounds as give at least `LEAST_A_STEP` conversations.
    """

    async def measure(sessions: int) -> Step:
        some = script.conversations[: sessions * math.ceil(LEAST_A_STEP / sessions)]
        return await fare(
            some,
            script.clips.by_name(),
            _target(options, url),
            sessions=sessions,
            speculation=options.speculation,
            idle=options.idle,
            progress=doing(f"playing {sessions} conversations at once", len(some) * len(KINDS)),
        )

    return await find_most(measure, limit=limit, most=most)


@contextmanager
def server(options: Options) -> Iterator[str]:
    """The URL of the server to measure."""
    if options.url is not None:
        if not options.url.startswith(("http://", "https://", "ws://", "wss://")):
            raise InputError(
                f"'{options.url}' is no address of a server; it looks like http://127.0.0.1:8000", param="url"
            )
        yield options.url
    else:
        with serving(options.bundle) as url:
            yield url


@contextmanager
def judge(options: Options) -> Iterator[Judge]:
    """The bundle's transcriber, to tell which words were heard when."""
    with Bundle(read_spec(options.bundle)) as bundle:

        def listen(samples: Samples, language: str) -> tuple[Word, ...]:
            transcriber = bundle.transcriber
            at_rate = resample(samples, RATE, transcriber.rate)[: int(transcriber.max_seconds * transcriber.rate)]
            return transcriber.transcribe(at_rate, language=language, words=True).words

        yield listen


def _target(options: Options, url: str) -> Target:
    return Target(url, options.api_key, options.patience, options.session)
