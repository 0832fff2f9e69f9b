"""JSON that can be worked with, and told back to any client.

Python's parser takes more: numbers that are none, numbers of any size, halves of characters, nesting without end. Each
of them fails somewhere later, where nobody reckons with it.
"""

from __future__ import annotations

import json
import math
from typing import Any

from stepaudio.agent.errors import RequestError

_DEEPEST = 64
_LARGEST = 1 << 63


def parse_json(text: str) -> Any:
    """Raises RequestError for what is no JSON, and what `check_json` refuses."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RequestError(f"The message is not valid JSON: {error}.", code="invalid_event") from None
    except RecursionError:
        raise _too_deep() from None
    check_json(value)
    return value


def check_json(value: Any, depth: int = _DEEPEST) -> None:
    """Raises RequestError for a value that has parsed, and cannot be used all the same."""
    if depth < 0:
        raise _too_deep()
    match value:
        case str():
            if not value.isascii():
                _check_text(value)
        case float() if not math.isfinite(value):
            raise RequestError(f"{value} is not a number of JSON.", code="invalid_value")
        case int() if abs(value) >= _LARGEST:
            raise RequestError("A number in the message has more than 64 bits.", code="invalid_value")
        case dict():
            for name, child in value.items():
                check_json(name, depth)
                check_json(child, depth - 1)
        case list():
            for child in value:
                check_json(child, depth - 1)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(
            "A text in the message holds half a character (a lone surrogate).", code="invalid_value"
        ) from None


def _too_deep() -> RequestError:
    return RequestError(f"The message is nested more than {_DEEPEST} deep.", code="invalid_value")
