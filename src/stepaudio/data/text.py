"""Sentences to speak: broad in words and sounds, under licences that let the speech be used for anything.

English comes from WordNet 3.1's definitions and examples (WordNet licence) and from our own templates, whose slots are
filled with WordNet's words and numbers; Chinese from our own templates and the words of jieba's dictionary (MIT). Only
sentences whose every word occurs in at least `FAMILIAR` of them are taken: a word that is heard once teaches a small
model nothing and tells nothing when it is missed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from stepaudio.errors import MissingError

FAMILIAR = 10
_WORDS = range(3, 15)
"""Words in a sentence: one to six seconds."""
_PARTS = ("noun", "verb", "adj", "adv")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z' ,-]*[A-Za-z.!?]")
_SLOT = re.compile(r"{(\w+)}")


@dataclass(frozen=True)
class Sentence:
    text: str
    source: str


def english(wordnet: Path, seed: int = 0) -> list[Sentence]:
    """All of WordNet's plain sentences and a third as many from templates, shuffled, each text once.

    `wordnet` is the folder of its `data.*` files. Raises MissingError without them.
    """
    rng = np.random.default_rng((seed, 1))
    sentences = _familiar([*_wordnet(wordnet)])
    slots = _english_slots(wordnet)
    templates = _templates("en", slots)
    filled = [Sentence(_fill(templates, slots, rng), "template") for _ in range(len(sentences) // 3)]
    return _shuffled(sentences + filled, rng)


def chinese(count: int, seed: int = 0) -> list[Sentence]:
    """About `count` sentences from templates, each text once."""
    rng = np.random.default_rng((seed, 2))
    slots = _chinese_slots()
    templates = _templates("zh", slots)
    return _shuffled([Sentence(_fill(templates, slots, rng), "template") for _ in range(count)], rng)


def _shuffled(sentences: Sequence[Sentence], rng: np.random.Generator) -> list[Sentence]:
    unique = list({sentence.text.lower(): sentence for sentence in sentences}.values())
    return [unique[i] for i in rng.permutation(len(unique))]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())


def spoken(text: str, language: str) -> str:
    """English as its words in lower case, Chinese as pinyin with tone digits: what can be told from the sound alone.

    Numbers must be written out already.
    """
    if language != "zh":
        return " ".join(words(text.replace("’", "'")))
    try:
        from pypinyin import Style, lazy_pinyin
    except ImportError as error:
        raise MissingError("reading Chinese needs pypinyin: pip install 'stepaudio[local]'") from error
    return " ".join(lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True, errors="ignore"))


def _familiar(sentences: list[Sentence]) -> list[Sentence]:
    """The sentences that are left when no word may be rare among them."""
    while True:
        counts = Counter(word for sentence in sentences for word in set(words(sentence.text)))
        kept = [s for s in sentences if all(counts[word] >= FAMILIAR for word in words(s.text))]
        if len(kept) == len(sentences):
            return kept
        sentences = kept


def _wordnet(folder: Path) -> Iterator[Sentence]:
    for gloss in _glosses(folder):
        for example in re.findall(r'"([^"]+)"', gloss):
            yield from _plain(example, "wordnet-example")
        definition = re.sub(r'"[^"]*"|\([^)]*\)', "", gloss)
        for part in definition.split(";"):
            yield from _plain(part, "wordnet-definition")


def _plain(text: str, source: str) -> Iterator[Sentence]:
    text = " ".join(text.replace("`", "'").split()).strip(" ,;:-'")
    if _PLAIN.fullmatch(text) and len(words(text)) in _WORDS:
        yield Sentence(text, source)


def _glosses(folder: Path) -> Iterator[str]:
    for fields in _synsets(folder):
        yield fields[1].strip()


def _synsets(folder: Path, parts: Sequence[str] = _PARTS) -> Iterator[list[str]]:
    for part in parts:
        path = folder / f"data.{part}"
        if not path.is_file():
            raise MissingError(f"WordNet's {path.name} is not in {folder}; run: stepaudio pull wordnet")
        for line in path.read_text(encoding="latin-1").splitlines():
            if not line.startswith("  "):  # the licence
                yield line.split("|", 1)


def _english_slots(folder: Path) -> dict[str, list[str]]:
    def first_words(part: str) -> list[str]:
        """The first word of each synset that is one plain word."""
        found = (fields[0].split()[4] for fields in _synsets(folder, [part]))
        return [word.removesuffix("(a)").removesuffix("(p)") for word in found]

    counts = Counter(word for gloss in _glosses(folder) for word in words(gloss))
    known = {
        slot: sorted({w for w in first_words(part) if w.isalpha() and w.islower() and counts[w] >= 2 * FAMILIAR})
        for slot, part in (("noun", "noun"), ("verb", "verb"), ("adjective", "adj"))
    }
    proper = [word for word in first_words("noun") if word.isalpha() and word.istitle()]
    named = sorted({word for word in proper if counts[word.lower()] >= FAMILIAR})
    return known | {
        "name": named,
        "place": named,
        "number": [str(n) for n in range(1, 1000)],
        "small": [str(n) for n in range(2, 60)],
        "year": [str(n) for n in range(1900, 2030)],
        "hour": [f"{h}:{m:02}" for h in range(1, 13) for m in (10, 15, 20, 30, 45)] + ["noon", "midnight"],
        "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
        "month": [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ],
    }


def _chinese_slots() -> dict[str, list[str]]:
    try:
        import jieba
    except ImportError as error:
        raise MissingError("Chinese sentences need jieba: pip install 'stepaudio[local]'") from error
    entries: dict[str, list[tuple[int, str]]] = {}
    with jieba.get_dict_file() as lines:
        for line in lines:
            word, frequency, tag = line.decode("utf-8").split()
            entries.setdefault(tag, []).append((int(frequency), word))

    def common(tag: str, count: int) -> list[str]:
        """The most frequent words of two characters or three."""
        fit = [entry for entry in entries[tag] if len(entry[1]) in (2, 3)]
        return sorted(word for _, word in sorted(fit, reverse=True)[:count])

    return {
        "n": common("n", 2000),
        "v": common("v", 1000),
        "a": common("a", 300),
        "place": common("ns", 200),
        "number": [str(n) for n in range(2, 1000)],
        "small": [str(n) for n in range(1, 25)],
        "month": [str(n) for n in range(1, 13)],
        "day": list("一二三四五六日"),
    }


def _templates(language: str, slots: dict[str, list[str]]) -> list[str]:
    """The templates of a language that there are words for."""
    text = resources.files("stepaudio.data").joinpath("templates", f"{language}.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line for line in lines if all(slots[slot] for slot in _SLOT.findall(line))]


def _fill(templates: Sequence[str], slots: dict[str, list[str]], rng: np.random.Generator) -> str:
    template = templates[int(rng.integers(len(templates)))]
    return _SLOT.sub(lambda slot: slots[slot[1]][rng.integers(len(slots[slot[1]]))], template)
