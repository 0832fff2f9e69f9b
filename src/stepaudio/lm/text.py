"""Text and audio tokens as ids: a SentencePiece model, five special tokens, and the audio block after the
text.

Text that comes from outside never turns into a special or audio token, whatever it spells; only
`encode_markup`, for templates and data files, reads `<|EOT|>` or `<audio_17>` as tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from stepaudio.errors import InputError, MissingError
from stepaudio.lm.grammar import Vocabulary
from stepaudio.tokenizer.interleave import AUDIO_TOKENS

SPECIALS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<|EOT|>": 3, "<|BOT|>": 4}
_MARKUP = re.compile(r"(<s>|</s>|<\|EOT\|>|<\|BOT\|>|<audio_\d+>)")
_INSIDE_SPECIAL = re.compile(r"(?<=<)(?=unk>|s>|/s>|\|EOT\|>|\|BOT\|>)")


class TextTokenizer:
    """The tokenizer of a Step-Audio language model, read from its `tokenizer.model`."""

    def __init__(self, model: Path | bytes) -> None:
        """Raises MissingError for a missing file, InputError for one that is not a Step-Audio tokenizer."""
        if isinstance(model, Path):
            if not model.is_file():
                raise MissingError(f"{model} does not exist; a language model needs its tokenizer.model")
            model = model.read_bytes()
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"not a SentencePiece model: {error}") from error
        for name, id in SPECIALS.items():
            if self._pieces.IdToPiece(id) != name:
                raise InputError(f"not a Step-Audio tokenizer: id {id} is {self._pieces.IdToPiece(id)!r}, not {name!r}")
        self.vocabulary = Vocabulary(text=self._pieces.GetPieceSize())
        self._newline: list[int] = self._pieces.EncodeAsIds("\n")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text that stands at a beginning: SentencePiece puts its dummy space before it."""
        first, *rest = _INSIDE_SPECIAL.split(text)
        return [*self._pieces.EncodeAsIds(first), *(id for part in rest for id in self._continue(part))]

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of plain text that follows something: no dummy space."""
        return [id for part in _INSIDE_SPECIAL.split(text) for id in self._continue(part)]

    def _continue(self, text: str) -> list[int]:
        # As upstream does: behind a newline there is no dummy space, and the newline's own ids are dropped
        # again.
        ids: list[int] = self._pieces.EncodeAsIds("\n" + text)[len(self._newline) :]
        return ids

    def encode_markup(self, text: str) -> list[int]:
        """Ids of a rendered template, its `<s>`, `<|BOT|>`, `<|EOT|>` and `<audio_k>` read as tokens.

        A space right after a special token is the dummy space of what follows: `<|BOT|> assistant`. Raises
        InputError for an audio token that does not exist.
        """
        ids: list[int] = []
        for i, part in enumerate(_MARKUP.split(text)):
            if i % 2:
                ids.append(SPECIALS[part] if part in SPECIALS else self._audio_id(int(part[7:-1])))
            elif part:
                ids += self.encode(part.removeprefix(" ")) if i == 0 or part[0] == " " else self._continue(part)
        return ids

    def _audio_id(self, code: int) -> int:
        if code >= AUDIO_TOKENS:
            raise InputError(f"<audio_{code}> does not exist; the last is <audio_{AUDIO_TOKENS - 1}>")
        return self.vocabulary.text + code

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, audio tokens printed as `<audio_k>` and control tokens left out.

        Raises InputError for an id outside the vocabulary.
        """
        parts: list[str] = []
        pending: list[int] = []
        for id in ids:
            if id in self.vocabulary.audio:
                parts += self._join(pending, bool(parts)), f"<audio_{id - self.vocabulary.text}>"
                pending = []
            elif 0 <= id < self.vocabulary.text:
                pending.append(id)
            else:
                raise InputError(f"id {id} is not in the vocabulary")
        return "".join((*parts, self._join(pending, bool(parts))))

    def _join(self, ids: list[int], continued: bool) -> str:
        if not continued:
            return self._pieces.DecodeIds(ids)  # type: ignore[no-any-return]
        text: str = self._pieces.DecodeIds(self._newline + ids)
        return text.removeprefix("\n")


class TextStream:
    """Ids to text as they come: `push` returns what is certain, never half a character."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self.reset()

    def push(self, ids: Sequence[int]) -> str:
        self._pending.extend(ids)
        return self._text(final=False)

    def flush(self) -> str:
        """What is left: incomplete bytes come out as U+FFFD."""
        text = self._text(final=True)
        self.reset()
        return text

    def reset(self) -> None:
        self._context: list[int] = []  # what was said last: spaces depend on what stands before
        self._pending: list[int] = []

    def _text(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._context)
        text = self._tokenizer.decode([*self._context, *self._pending])[len(before) :]
        if not text or (text.endswith("\ufffd") and not final):
            return ""
        self._context, self._pending = self._pending, []
        return text
