"""What language models are trained on: documents of five kinds, and conversations.

A document is a sequence of tokens of which some are trained: predicted, given everything before them. `PaperDocuments`
makes those of the paper (arXiv 2502.11946 section 4) for a Step-Audio vocabulary, `NanoDocuments` those of the nano
layout (`stepaudio.lm.nano`).

| kind | tokens | trained |
|---|---|---|
| `continuation` | audio | all |
| `interleaved` | text and audio of one stretch of words after the other | all |
| `asr` | a request, audio, its text | the text |
| `tts` | a request, text, its audio | the audio |
| `text` | text | all |
| `chat` | a conversation whose earlier audio was replaced by text | the last reply |
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stepaudio.data.manifest import Utterance
from stepaudio.errors import InputError
from stepaudio.lm.nano import ASR, COUNTS, PLACES, NanoVocabulary, opening
from stepaudio.lm.prompts import Prompts, Turn
from stepaudio.tokenizer.interleave import RATIO
from stepaudio.tokenizer.streaming import DualCodes

GROUP_MS = 120


@dataclass(frozen=True)
class Document:
    """Tokens [T] int32 and which of them are trained [T] bool; the first never is.

    `targets` [T] are what is to be predicted, where that is not the tokens themselves: what the model shall never
    see.
    """

    kind: str
    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]
    targets: NDArray[np.int32] | None = None

    @classmethod
    def of(cls, kind: str, parts: Iterable[tuple[Sequence[int] | NDArray[np.int64], bool]]) -> Document:
        """Stretches of tokens that are trained or not."""
        known = [(np.asarray(tokens, dtype=np.int32), trained) for tokens, trained in parts]
        return cls(
            kind,
            np.concatenate([tokens for tokens, _ in known]),
            np.concatenate([np.full(len(tokens), trained) for tokens, trained in known]),
        )

    def __post_init__(self) -> None:
        if len(self.tokens) == 0 or self.trained[0] or not self.trained.any():
            raise InputError(f"a document ({self.kind}) needs a first token that is given and one that is trained")

    @property
    def count(self) -> int:
        """Trained tokens."""
        return int(self.trained.sum())


@dataclass(frozen=True)
class Word:
    """A word's phonemes, and when it and the pause behind it end in milliseconds."""

    phonemes: str
    end: int


def timed_words(utterance: Utterance) -> list[Word]:
    """The words that an utterance's phonemes tell apart."""
    found: list[Word] = []
    begun = False
    for symbol, end in zip(utterance.phonemes, utterance.ends, strict=True):
        if symbol == " ":
            found = [*found[:-1], replace(found[-1], end=end)] if found else []
        elif begun:
            found[-1] = Word(found[-1].phonemes + symbol, end)
        else:
            found.append(Word(symbol, end))
        begun = symbol != " "
    return found


class SpeakingRate:
    """How fast an utterance is spoken, as one of five levels that are equally frequent in `utterances`.

    The rate is the time that the teacher takes for the same phonemes on average over the time that was taken.
    """

    def __init__(self, utterances: Sequence[Utterance]) -> None:
        times: dict[str, list[int]] = {}
        for utterance in utterances:
            for symbol, time in _durations(utterance):
                times.setdefault(symbol, []).append(time)
        self._mean = {symbol: float(np.mean(own)) for symbol, own in times.items()}
        rates = [rate for rate in map(self.rate, utterances) if rate is not None]
        self._edges = np.quantile(rates, (0.2, 0.4, 0.6, 0.8)) if rates else np.ones(4)

    def rate(self, utterance: Utterance) -> float | None:
        """1 for the teacher's mean; None without known phonemes."""
        known = [(self._mean[symbol], time) for symbol, time in _durations(utterance) if symbol in self._mean]
        taken = sum(time for _, time in known)
        return sum(mean for mean, _ in known) / taken if taken else None

    def level(self, utterance: Utterance) -> int:
        rate = self.rate(utterance)
        return 2 if rate is None else int(np.searchsorted(self._edges, rate))


def _durations(utterance: Utterance) -> Iterator[tuple[str, int]]:
    """Each phoneme with its milliseconds, pauses left out."""
    for symbol, begin, end in zip(utterance.phonemes, (0, *utterance.ends), utterance.ends, strict=False):
        if symbol != " ":
            yield symbol, end - begin


def groups(codes: DualCodes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The whole groups of codes: linguistic [G, 2] and semantic [G, 3]."""
    count = min(len(codes.linguistic) // RATIO[0], len(codes.semantic) // RATIO[1])
    return (
        codes.linguistic[: count * RATIO[0]].reshape(count, RATIO[0]),
        codes.semantic[: count * RATIO[1]].reshape(count, RATIO[1]),
    )


@dataclass(frozen=True)
class NanoDocuments:
    """Documents in the nano layout. Utterances need phonemes and their times."""

    vocabulary: NanoVocabulary
    rate: SpeakingRate

    def tts(self, utterance: Utterance, codes: DualCodes) -> Document | None:
        """None for an utterance without phonemes or without a whole group."""
        ids, spoken = self._ids(codes), utterance.phonemes
        if not spoken or not len(ids):
            return None
        parts: list[tuple[Sequence[int] | NDArray[np.int64], bool]] = [(opening(self.rate.level(utterance)), False)]
        begun = 0
        for number, group in enumerate(ids, 1):
            ended = bisect_right(utterance.ends, number * GROUP_MS)
            count = min(max(ended - begun, 0), PLACES)
            window = self.vocabulary.write(spoken[begun : begun + PLACES])
            parts += [(window, False), ([COUNTS[count], *group], True)]
            begun += count
        return Document.of("tts", parts)

    def asr(self, utterance: Utterance, codes: DualCodes) -> Document | None:
        """None for an utterance without phonemes or without a whole group."""
        ids = self._ids(codes)
        if not utterance.phonemes or not len(ids):
            return None
        moments = (np.arange(len(ids) * PLACES) + 0.5) * GROUP_MS / PLACES
        heard = np.searchsorted(utterance.ends, moments, side="right").clip(max=len(utterance.phonemes) - 1)
        symbols = ["".join(utterance.phonemes[i] for i in own) for own in heard.reshape(-1, PLACES)]
        written = np.array([self.vocabulary.write(own) for own in ("", *symbols)])
        tokens = hearing(self.vocabulary, ids)
        targets, trained = tokens.copy(), np.zeros(len(tokens), dtype=bool)
        places = targets[1:].reshape(len(written), -1)[:, -PLACES:]  # a view
        places[:] = written
        trained[1:].reshape(len(written), -1)[1:, -PLACES:] = True
        return Document("asr", tokens.astype(np.int32), trained, targets.astype(np.int32))

    def _ids(self, codes: DualCodes) -> NDArray[np.int64]:
        return group_ids(self.vocabulary, codes)


def group_ids(vocabulary: NanoVocabulary, codes: DualCodes) -> NDArray[np.int64]:
    """Ids of the whole groups of codes [G, 5]."""
    linguistic, semantic = groups(codes)
    return np.concatenate([linguistic + vocabulary.linguistic.start, semantic + vocabulary.semantic.start], axis=1)


def hearing(vocabulary: NanoVocabulary, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The tokens of hearing groups [G, 5]: each with four empty places for what the one before said, and the last
    group once more. Flat, [1 + 9 (G + 1)]."""
    empty = np.tile(vocabulary.write(""), (len(ids) + 1, 1))
    return np.concatenate([[ASR], np.concatenate([np.concatenate([ids, ids[-1:]]), empty], axis=1).reshape(-1)])


@dataclass(frozen=True)
class PaperDocuments:
    """Documents in the vocabulary and the prompts of a Step-Audio language model."""

    prompts: Prompts
    stretch: tuple[int, int] = (3, 8)
    """Fewest and most words of a stretch of an interleaved document."""

    def continuation(self, codes: DualCodes) -> Document:
        return self._of("continuation", [(self._audio(codes), True)])

    def text(self, text: str) -> Document:
        return self._of("text", [(self.prompts.tokenizer.encode(text), True)])

    def interleaved(self, utterance: Utterance, codes: DualCodes, rng: np.random.Generator) -> Document | None:
        """Text and audio take turns, a few words each. None when words and phonemes do not match."""
        words, spoken = timed_words(utterance), utterance.spoken.split()
        linguistic, semantic = groups(codes)
        if len(words) != len(spoken) or not len(linguistic):
            return None
        parts: list[tuple[Sequence[int] | NDArray[np.int64], bool]] = []
        first, begin = 0, 0
        while first < len(words):
            last = min(len(words), first + int(rng.integers(self.stretch[0], self.stretch[1] + 1)))
            end = len(linguistic) if last == len(words) else round(words[last - 1].end / GROUP_MS)
            parts.append((self.prompts.tokenizer.encode(" ".join(spoken[first:last])), True))
            if end > begin:
                part = DualCodes(linguistic[begin:end].reshape(-1), semantic[begin:end].reshape(-1))
                parts.append((self._audio(part), True))
            first, begin = last, max(begin, end)
        return self._of("interleaved", parts)

    def asr(self, utterance: Utterance, codes: DualCodes) -> Document:
        prompt = self.prompts.transcribe(self._audio(codes).tolist())
        return self._reply("asr", prompt, self.prompts.tokenizer.encode_continuation(utterance.text))

    def tts(self, utterance: Utterance, codes: DualCodes) -> Document:
        wording = self.prompts.wording.speak
        prompt = self.prompts.build([Turn("system", [wording]), Turn("human", [utterance.text])])
        return self._reply("tts", prompt, self._audio(codes).tolist())

    def chat(self, turns: Sequence[Turn], heard: Sequence[str | None] = ()) -> Document:
        """A conversation that ends with the assistant's reply, on which alone the loss is.

        `heard` are the transcripts of the turns, where there are any: every earlier turn's audio is replaced by its
        own, only the last question stays audio (arXiv 2502.11946 section 5.2.2). Raises InputError when the last turn
        is not the assistant's or an earlier turn's audio has no transcript.
        """
        if not turns or turns[-1].role != "assistant":
            raise InputError("a conversation to learn from ends with a turn of the assistant")
        texts = [*heard, *[None] * (len(turns) - len(heard))]
        earlier = [
            turn if index == len(turns) - 2 or all(isinstance(part, str) for part in turn.content)
            else replace(turn, content=[_required(texts[index], index)])
            for index, turn in enumerate(turns[:-1])
        ]  # fmt: skip
        reply: list[int] = []
        for part in turns[-1].content:
            reply += self.prompts.tokenizer.encode_continuation(part) if isinstance(part, str) else part
        return self._reply("chat", self.prompts.chat(earlier), reply)

    def _reply(self, kind: str, prompt: Sequence[int], reply: Sequence[int]) -> Document:
        return Document.of(kind, [(prompt, False), ([*reply, self.prompts.tokenizer.vocabulary.eot], True)])

    def _of(self, kind: str, parts: list[tuple[Sequence[int] | NDArray[np.int64], bool]]) -> Document:
        v = self.prompts.tokenizer.vocabulary
        return Document.of(kind, [([v.bos], False), *parts, ([v.eot], True)])

    def _audio(self, codes: DualCodes) -> NDArray[np.int64]:
        return codes.tokens(tail="drop") + self.prompts.tokenizer.vocabulary.text


def _required(text: str | None, index: int) -> str:
    if text is None:
        raise InputError(f"turn {index} of the conversation is audio without a transcript")
    return text
