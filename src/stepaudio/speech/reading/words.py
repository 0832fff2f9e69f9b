"""Where Chinese words begin and end."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any


@cache
def dictionary() -> Any:
    """jieba with its dictionary loaded, which takes about a second; None when it is not installed."""
    try:
        import jieba
    except ImportError:
        return None
    jieba.setLogLevel(logging.WARNING)  # it reports its dictionary on stderr
    jieba.initialize()
    return jieba


def starts_word(before: str, char: str) -> bool:
    """Whether a word starts with `char` where it follows `before`; False when there is no dictionary to ask."""
    words = dictionary()
    return words is not None and words.lcut(before[-8:] + char)[-1] == char
