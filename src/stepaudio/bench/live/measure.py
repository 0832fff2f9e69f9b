"""What a recording says: latencies, false cut-ins, missed turns, and how exactly the heard prefix is known.

Everything about sound is read from the recorded signals, on their one clock; only what speculation did comes from the
server's own events.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from stepaudio.audio.pcm import Samples
from stepaudio.bench.live.clips import RATE, audible_span
from stepaudio.bench.live.recording import Cut, Recording, Said
from stepaudio.errors import BusyError
from stepaudio.speech.roles import Word

_OVERLAP = 1.0
"""Seconds within which a barge-in should silence the agent."""
_UNIT = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:['’][^\W_\u3400-\u9fff]+)*")


@dataclass(frozen=True, slots=True)
class TurnMeasure:
    """One turn. `latency`: from the last audible sample of the user's to the first of the reply's, in seconds; None
    when there was no reply. `cut_in`: the agent became audible while the user had more to say. `stopped`: from the
    first audible sample of a barge-in until the agent was silent; None if it was not interrupted. `talked_over`: it
    was interrupted and still spoke after `_OVERLAP`; what ends by itself before is neither. `gave_way`: it fell silent
    at a murmur; None where there was none."""

    conversation: str
    turn: int
    kind: str
    language: str
    speculation: bool
    latency: float | None
    cut_in: bool
    stopped: float | None
    talked_over: bool
    gave_way: bool | None

    @property
    def missed(self) -> bool:
        return self.latency is None


@dataclass(frozen=True, slots=True)
class HeardMeasure:
    """An interrupted reply: words more or less in the server's history than were heard, by the truncation that the
    client sent, and by the server's own guess before that (None where it made none)."""

    conversation: str
    speculation: bool
    error: int
    guess_error: int | None
    words: int


def turns(recording: Recording) -> list[TurnMeasure]:
    """One measure for each turn of the conversation, said or not."""
    onsets = reply_onsets(recording)
    measured = []
    for number, turn in enumerate(recording.conversation.turns):
        lines = [said for said in recording.said if said.turn == number and not turn.lines[said.line].murmur]
        complete = len(lines) == sum(not line.murmur for line in turn.lines)
        start, end = (_begin(lines[0]), _end(lines[-1])) if lines else (np.inf, np.inf)
        later = [said.start for said in recording.said if said.turn > number]
        until = min(later, default=np.inf)
        replies = [onset for onset in onsets if end <= onset < until] if complete else []
        interrupted = turn.kind == "barge_in" and bool(lines) and _plays_at(recording, start)
        goes_on = interrupted and _plays_at(recording, start + _OVERLAP)
        stop = next((cut.at - start for cut in recording.cuts if start <= cut.at <= end + 1.0), None)
        measured.append(
            TurnMeasure(
                conversation=recording.conversation.name,
                turn=number,
                kind=turn.kind,
                language=recording.conversation.language,
                speculation=recording.speculation,
                latency=min(replies) - end if replies else None,
                cut_in=any(start < onset < end for onset in onsets),
                stopped=stop if interrupted else None,
                talked_over=goes_on and stop is None,
                gave_way=_gave_way(recording, number),
            )
        )
    return measured


def refused(recording: Recording) -> int:
    """Replies that the server told it would not make in time."""
    ended = [event["response"]["status_details"] or {} for event in recording.of_type("response.done")]
    return sum(details.get("error", {}).get("code") == BusyError.code for details in ended)


def reply_onsets(recording: Recording) -> list[float]:
    """When each response became audible, those that never did left out."""
    onsets: dict[str, float] = {}
    for chunk in recording.chunks:
        span = audible_span(chunk.samples[: chunk.played])
        if span is not None:
            onsets.setdefault(chunk.response_id, chunk.start + span[0] / RATE)
    return sorted(onsets.values())


def _begin(said: Said) -> float:
    return said.start + (audible_span(said.samples) or (0, 0))[0] / RATE


def _end(said: Said) -> float:
    return said.start + (audible_span(said.samples) or (0, len(said.samples)))[1] / RATE


def _plays_at(recording: Recording, time: float) -> bool:
    return any(chunk.start <= time < chunk.end for chunk in recording.chunks)


def _gave_way(recording: Recording, number: int) -> bool | None:
    """Whether the agent stopped at a murmur of this turn, before the next turn began."""
    turn = recording.conversation.turns[number]
    murmurs = [said for said in recording.said if said.turn == number and turn.lines[said.line].murmur]
    heard = [said for said in murmurs if _plays_at(recording, said.start)]
    if not heard:
        return None
    until = min((said.start for said in recording.said if said.turn > number), default=np.inf)
    return any(heard[0].start <= cut.at < until for cut in recording.cuts)


# ---------------------------------------------------------------- what was heard

Judge = Callable[[Samples, str], Iterable[Word]]
"""Says which words are in samples [T] at `RATE`, and when; the second argument is the language."""


def heard(recording: Recording, judge: Judge) -> list[HeardMeasure]:
    """One measure for each reply that was cut short and whose history the server told."""
    measured = []
    for cut in recording.cuts:
        text = recording.texts.get(cut.item_id, "")
        if cut.heard is None or not units(text):
            continue
        words = list(judge(recording.item_audio(cut.item_id), recording.conversation.language))
        true = words_heard(text, words, cut.played)
        guess = _guess(recording, cut)
        measured.append(
            HeardMeasure(
                conversation=recording.conversation.name,
                speculation=recording.speculation,
                error=len(units(cut.heard)) - true,
                guess_error=None if guess is None else len(units(guess)) - true,
                words=true,
            )
        )
    return measured


def units(text: str) -> list[str]:
    """Words, Chinese by the character, without case and punctuation."""
    return _UNIT.findall(text.casefold())


def words_heard(text: str, words: Sequence[Word], played: float) -> int:
    """How many of the words of `text` were heard in the first `played` seconds of its audio, where a judge heard
    `words`: up to the last one of which half was played, found in the text by aligning the two."""
    known, count = [], 0
    for word in words:
        parts = units(word.text)
        known += parts
        middles = (word.start + (i + 0.5) / len(parts) * (word.end - word.start) for i in range(len(parts)))
        count += sum(middle <= played for middle in middles)
    blocks = SequenceMatcher(None, known, units(text), autojunk=False).get_matching_blocks()
    position, before = 0, 0
    for block in blocks:
        if count <= block.a:  # between two places where they agree: in proportion
            gap, wide = block.a - before, block.b - position
            return position + round((count - before) / gap * wide) if gap else position
        if count <= block.a + block.size:
            return block.b + count - block.a
        before, position = block.a + block.size, block.b + block.size
    return position


def _guess(recording: Recording, cut: Cut) -> str | None:
    for event in recording.of_type("stepaudio.item.heard"):
        if event["item_id"] == cut.item_id and event["by"] == "playback":
            return str(event["text"])
    return None


# ---------------------------------------------------------------- numbers


def quantiles(values: Iterable[float]) -> dict[str, Any]:
    """n, mean, p50 and p95 (linearly interpolated); None for each of no values."""
    known = np.array(list(values), np.float64)
    if not len(known):
        return {"n": 0, "mean": None, "p50": None, "p95": None}
    return {
        "n": len(known),
        "mean": round(float(known.mean()), 4),
        "p50": round(float(np.quantile(known, 0.5)), 4),
        "p95": round(float(np.quantile(known, 0.95)), 4),
    }


def speculations(recordings: Iterable[Recording]) -> dict[str, Any]:
    """What speculation did, as the server tells: how many were settled and committed, their lead, and the waste."""
    told = [event for recording in recordings for event in recording.of_type("stepaudio.speculation")]
    committed = [event for event in told if event["committed"]]
    wasted = [event for event in told if not event["committed"]]
    reasons = sorted({event["reason"] for event in wasted})
    return {
        "started": len(told),
        "committed": len(committed),
        "commit_rate": round(len(committed) / len(told), 4) if told else None,
        "lead_seconds": quantiles(event["lead"] for event in committed),
        "wasted_tokens": sum(event["tokens"] for event in wasted),
        "wasted_seconds": round(sum(event["seconds"] for event in wasted), 3),
        "discarded": {reason: sum(event["reason"] == reason for event in wasted) for reason in reasons},
    }
