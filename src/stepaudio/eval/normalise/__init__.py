"""What counts as the same text: published normalisers, by name.

| name | for | tokens | rules |
|---|---|---|---|
| `whisper_en` | LibriSpeech, English in general | words | OpenAI's: contractions, numbers, spelling, fillers |
| `kaldi_en` | the older LibriSpeech figures | words | case alone |
| `seed_en` | SEED-TTS test-en | words | punctuation but the apostrophe removed, case |
| `seed_zh` | SEED-TTS test-zh, hard | characters | punctuation removed, simplified, Latin letters one by one |
| `wenet_zh` | AISHELL, WenetSpeech | characters, Latin words | WeNet's: tags, punctuation removed, upper case |
| `wenet_tn_zh` | the same, when a model writes digits | characters, Latin words | numbers read out first, simplified |

The figure of a report carries the name of its normaliser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from stepaudio.errors import NotFoundError
from stepaudio.eval.normalise.chinese import chinese_reading, seed_zh, simplified, wenet_tn_zh, wenet_zh
from stepaudio.eval.normalise.english import kaldi_en, seed_en, whisper_en, whisper_english

__all__ = ["DEFAULT", "NORMALISERS", "Normaliser", "chinese_reading", "find", "simplified", "whisper_english"]


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Text to the tokens that an error rate counts."""

    name: str
    unit: Literal["word", "character"]
    tokens: Callable[[str], list[str]]

    @property
    def metric(self) -> str:
        """What the rate over these tokens is called."""
        return "WER" if self.unit == "word" else "CER"


NORMALISERS = {
    each.name: each
    for each in (
        Normaliser("whisper_en", "word", whisper_en),
        Normaliser("kaldi_en", "word", kaldi_en),
        Normaliser("seed_en", "word", seed_en),
        Normaliser("seed_zh", "character", seed_zh),
        Normaliser("wenet_zh", "character", wenet_zh),
        Normaliser("wenet_tn_zh", "character", wenet_tn_zh),
    )
}
DEFAULT = {"en": "whisper_en", "zh": "wenet_tn_zh"}
"""By language; what is not listed is scored as `kaldi_en`."""


def find(name: str | None, language: str) -> Normaliser:
    """The normaliser of that name, or the default of a language. Raises NotFoundError."""
    chosen = name or DEFAULT.get(language, "kaldi_en")
    if chosen not in NORMALISERS:
        raise NotFoundError(f"no normaliser is called {chosen!r}; known: {', '.join(NORMALISERS)}", param="normaliser")
    return NORMALISERS[chosen]
