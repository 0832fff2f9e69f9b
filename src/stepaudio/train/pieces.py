"""The units that a recogniser writes: pieces of words, learned from the text they are to write."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable, Sequence

BLANK, UNKNOWN, END = 0, 1, 2
"""CTC's blank, what has no piece, and the start and end of a sentence for an attention decoder."""
_SPACE = "▁"


class Pieces:
    """Text as ids of pieces and back: compatibility-normalised, lower case, white space as one space."""

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> Pieces:
        """At most `size` pieces that write the texts in few ids (unigram model, arXiv 1804.10959)."""
        import sentencepiece

        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(normalise(text) for text in texts),
            model_writer=model,
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            pad_id=BLANK,
            unk_id=UNKNOWN,
            eos_id=END,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
        return cls(model.getvalue())

    @property
    def names(self) -> list[str]:
        """Each id's piece; a leading ▁ is a space."""
        return [self._processor.id_to_piece(i) for i in range(len(self))]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(normalise(text))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return join(self.names, ids)

    def __len__(self) -> int:
        return int(self._processor.vocab_size())


def join(names: Sequence[str], ids: Iterable[int]) -> str:
    """The text of pieces, special ones left out."""
    return "".join(names[i] for i in ids if i > END).replace(_SPACE, " ").strip()


def normalise(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).lower()).strip()
