"""Readings that do not depend on the language: markdown, addresses, letters of formulas, silent symbols."""

from __future__ import annotations

import re

from stepaudio.speech.reading import Rule

GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "ο": "omicron", "π": "pi", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "gamma",
    "Δ": "delta", "Θ": "theta", "Λ": "lambda", "Π": "pi", "Σ": "sigma", "Φ": "phi", "Ω": "omega",
}  # fmt: skip

_TLD = "com|org|net|edu|gov|io|ai|dev|app|cn|uk|de|fr|jp|eu|us|ca|au|info|me|tv|co"
_MARKS = {
    ".": "dot",
    "/": "slash",
    "-": "dash",
    "_": "underscore",
    "@": "at",
    ":": "colon",
    "?": "question mark",
    "=": "equals",
    "&": "and",
    "#": "hash",
    "%": "percent",
    "+": "plus",
    "~": "tilde",
}
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def address(match: re.Match[str]) -> str:
    """An e-mail address or URL, said part by part; the scheme and a leading www. are not said."""
    text = re.sub(r"^(https?|ftp)://(www\.)?|^www\.", "", match.group()).rstrip("/")
    words = []
    for part in re.findall(r"[A-Za-z]+|\d|[^A-Za-z\d]", text):
        words.append(_MARKS.get(part) or (DIGITS[int(part)] if part.isascii() and part.isdigit() else part))
    return " ".join(words)


def silent(_: re.Match[str]) -> str:
    return ""


def space(_: re.Match[str]) -> str:
    return " "


MARKDOWN: tuple[Rule, ...] = (
    # An image or link is said by its label, without reading the label as anything but words.
    (re.compile(r"!?\[([^\[\]\n]+)\]\([^()\s]*(?:\s\"[^\"]*\")?\)"), lambda m: m[1]),
    (re.compile(r"(?m)^[ \t]*(?:#{1,6}|[-*+•]|>+)[ \t]+"), silent),
    (re.compile(r"(?m)^[ \t]*(?:```+|~~~+)[^\n]*$|^[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$"), silent),
    (re.compile(r"\*{1,3}(?=\S)|(?<=[^\s\d])\*{1,3}|~~|`+|(?<!\w)_{1,3}(?=\w)|(?<=\w)_{1,3}(?!\w)"), silent),
)
ADDRESSES: tuple[Rule, ...] = (
    (re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+", re.ASCII), address),
    (re.compile(r"(?:https?|ftp)://[A-Za-z0-9\-._~:/?#@!$&'*+,;=%]*[A-Za-z0-9/=]"), address),
    (
        re.compile(
            rf"(?<![\w.@/-])(?:www\.)?(?:[a-z0-9-]+\.)+(?:{_TLD})(?![\w.@-]*\w)(?:/[\w\-./?=&%#~+]*[\w/])?",
            re.IGNORECASE | re.ASCII,
        ),
        address,
    ),
)
SILENT: tuple[Rule, ...] = (
    # Pictographs, ornaments, joiners and variation selectors: nothing to say.
    (
        re.compile(
            "[\U0001f000-\U0001faff\u2190-\u21ff\u2300-\u23ff\u2500-\u27bf\u2b00-\u2bff\ufe0f\u200b-\u200f"
            "\u20e3\u2022®™\ufeff\U000e0020-\U000e007f]+"
        ),
        space,
    ),
    # Letters of scripts that no voice here reads.
    (
        re.compile("[\u0370-\u1dff\u2c00-\u2dff\u3040-\u318f\ua000-\uabff\uac00-\ud7ff\ufb1d-\ufdff\ufe70-\ufeff]+"),
        space,
    ),
    (re.compile(r"[\[\]{}|\\^*_<>]"), space),
)
