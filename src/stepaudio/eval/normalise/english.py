"""English: OpenAI's normaliser, SEED-TTS's, and none."""

from __future__ import annotations

import importlib.util
import string
from functools import cache
from typing import Any

from stepaudio.errors import MissingError

# The punctuation of the package zhon, which SEED-TTS's script removes together with ASCII's. U+2019 is in it, so a
# typographic apostrophe goes although a straight one stays.
CHINESE_MARKS = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】"
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏﹑﹔·！？｡。"
)
SEED_MARKS = str.maketrans("", "", (CHINESE_MARKS + string.punctuation).replace("'", ""))


def whisper_en(text: str) -> list[str]:
    return whisper_english(text).split()


def whisper_english(text: str) -> str:
    """OpenAI's English normaliser (Radford et al. 2022, appendix C)."""
    return str(_whisper()(text))


def kaldi_en(text: str) -> list[str]:
    """Upper case and white space, as Kaldi's recipes score LibriSpeech."""
    return text.upper().split()


def seed_en(text: str) -> list[str]:
    return text.translate(SEED_MARKS).lower().split()


@cache
def _whisper() -> Any:
    if importlib.util.find_spec("whisper_normalizer") is None:
        raise MissingError("scoring English needs the package whisper-normalizer; run: pip install 'stepaudio[eval]'")
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()
