"""A tokenized manifest, and other text, as the documents of a recipe's layout."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stepaudio.data.codes import read_tokenized
from stepaudio.data.manifest import Utterance
from stepaudio.errors import InputError
from stepaudio.lm.nano import COUNTS, NanoVocabulary, known_phonemes, load_vocabulary, save_vocabulary
from stepaudio.lm.prompts import Prompts
from stepaudio.lm.text import SPECIALS, TextTokenizer
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.documents import Document, NanoDocuments, PaperDocuments, SpeakingRate

_HELD_OUT = 60
"""Documents of each kind that are judged."""

Spoken = Sequence[tuple[Utterance, DualCodes]]
Maker = Callable[[Utterance, DualCodes], Document | None]


@dataclass(frozen=True)
class Corpus:
    """Documents by kind, those held out, and the vocabulary they are written in.

    `keep(folder)` writes what is needed beside a checkpoint to read its ids.
    """

    documents: Mapping[str, Sequence[Document]]
    held_out: Sequence[Document]
    vocabulary: int
    streams: Mapping[str, range]
    keep: Callable[[Path], None]


def nano_corpus(manifest: Path, tokenizer: str, *, start: Path | None = None) -> Corpus:
    """Speaking and hearing English in the nano layout, from the manifest's splits train and dev.

    `tokenizer` is the name under which the manifest was tokenized. `start` is a model whose vocabulary is kept. Raises
    MissingError when something is not there, and InputError without utterances that have timed phonemes.
    """
    train, dev = _spoken(manifest, tokenizer, lambda u: u.language in ("", "en") and bool(u.ends))
    said = [utterance for utterance, _ in train]
    known = NanoVocabulary(known_phonemes(utterance.phonemes for utterance in said))
    vocabulary = known if start is None else load_vocabulary(start)
    made = NanoDocuments(vocabulary, SpeakingRate(said))
    makers: dict[str, Maker] = {"tts": made.tts, "asr": made.asr}
    streams = {
        "count": COUNTS,
        "linguistic": vocabulary.linguistic,
        "semantic": vocabulary.semantic,
        "moments": vocabulary.places,
    }
    return Corpus(
        _made(train, makers),
        [document for own in _made(dev[:_HELD_OUT], makers).values() for document in own],
        vocabulary.size,
        streams,
        lambda folder: save_vocabulary(folder, vocabulary),
    )


def paper_corpus(
    manifest: Path, tokenizer: str, text: TextTokenizer, keep: Callable[[Path], None], *, lines: Iterable[str] = ()
) -> Corpus:
    """All five kinds in the paper's layout; `lines` are documents of text beside the manifest's own sentences, and
    `keep` writes the text's tokenizer."""
    train, dev = _spoken(manifest, tokenizer, lambda u: True)
    made = PaperDocuments(Prompts(text))
    rng = np.random.default_rng(0)
    makers: dict[str, Maker] = {
        "continuation": lambda utterance, codes: made.continuation(codes),
        "interleaved": lambda utterance, codes: made.interleaved(utterance, codes, rng),
        "asr": made.asr,
        "tts": made.tts,
        "text": lambda utterance, codes: made.text(utterance.text),
    }
    documents = _made(train, makers)
    documents["text"] += [made.text(line) for line in lines if line.strip()]
    v = text.vocabulary
    return Corpus(
        documents,
        [document for own in _made(dev[:_HELD_OUT], makers).values() for document in own],
        v.audio.stop,
        {"text": range(v.text), "linguistic": v.linguistic, "semantic": v.semantic},
        keep,
    )


def learn_text(texts: Iterable[str], pieces: int) -> bytes:
    """A SentencePiece model with the special tokens of a Step-Audio language model: its `tokenizer.model`."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=pieces,
        hard_vocab_limit=False,
        model_type="bpe",
        character_coverage=0.9995,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        control_symbols=list(SPECIALS)[3:],
        user_defined_symbols=["\n"],
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _spoken(manifest: Path, tokenizer: str, wanted: Callable[[Utterance], bool]) -> tuple[Spoken, Spoken]:
    """What is trained and what is held out."""
    known = [(u, codes) for u, codes in read_tokenized(manifest, tokenizer) if wanted(u)]
    train, dev = ([one for one in known if (one[0].split or "train") == split] for split in ("train", "dev"))
    if not train:
        raise InputError(f"{manifest} has no line to train on that this recipe can use")
    return train, dev


def _made(spoken: Spoken, makers: Mapping[str, Maker]) -> dict[str, list[Document]]:
    return {kind: [document for one in spoken if (document := make(*one)) is not None] for kind, make in makers.items()}
