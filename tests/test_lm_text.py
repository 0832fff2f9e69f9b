from __future__ import annotations

import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_models import SENTENCES, tiny_tokenizer
from stepaudio.errors import InputError, MissingError
from stepaudio.lm.text import TextStream, TextTokenizer

SPELLINGS = ["<|EOT|>", "<|BOT|>", "<s>", "</s>", "<unk>", "<audio_1>", "<audio_5119>"]
anything = st.lists(st.text(max_size=6) | st.sampled_from([*SPELLINGS, "\n", " ", "<", "你好"]), max_size=6).map(
    "".join
)


def test_encoding_check_of_the_released_template():
    """`<s><|BOT|> assistant\\n<audio_1><|EOT|>` is BOS, BOT, the role with its dummy space, newline, audio,
    EOT."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode_markup("<s><|BOT|> assistant\n<audio_1><|EOT|>")
    role = tokenizer._pieces.EncodeAsPieces("assistant")
    assert role[0].startswith("▁")
    newline = tokenizer._pieces.PieceToId("\n")
    assert ids == [1, 4, *tokenizer._pieces.PieceToId(role), newline, tokenizer.vocabulary.text + 1, 3]


@settings(max_examples=150, deadline=None)
@given(text=anything)
def test_text_survives_and_never_becomes_a_control_or_audio_token(text):
    text = text.replace("\x00", "").replace("▁", "")  # SentencePiece cannot carry these two
    tokenizer = tiny_tokenizer()
    for ids in (tokenizer.encode(text), tokenizer.encode_continuation(text)):
        assert all(4 < id < tokenizer.vocabulary.text for id in ids)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([*tokenizer.encode("a"), *tokenizer.encode_continuation(text)]) == "a" + text


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(5, 405), max_size=12), cuts=st.lists(st.integers(1, 4), min_size=12, max_size=12))
def test_streamed_text_equals_decoded_text(ids, cuts):
    """Any ids, also bytes that are no whole characters, however they are cut."""
    tokenizer = tiny_tokenizer()
    stream, streamed, rest = TextStream(tokenizer), "", ids
    for cut in cuts:
        streamed += stream.push(rest[:cut])
        rest = rest[cut:]
    assert streamed + stream.flush() == tokenizer.decode(ids)
    assert stream.flush() == ""


def test_half_a_character_is_held_back():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode_continuation("é")  # two bytes, not in the tiny vocabulary
    assert len(ids) == 2
    stream = TextStream(tokenizer)
    assert stream.push(ids[:1]) == ""
    assert stream.push(ids[1:]) == "é"


def test_markup_reads_audio_and_refuses_what_does_not_exist():
    tokenizer = tiny_tokenizer()
    base = tokenizer.vocabulary.text
    # L=[5, 9], S=[1, 2, 3] printed and read
    string = "<audio_5><audio_9><audio_1025><audio_1026><audio_1027>"
    ids = [base + 5, base + 9, base + 1025, base + 1026, base + 1027]
    assert tokenizer.encode_markup(string) == ids
    assert tokenizer.decode(ids) == string
    with pytest.raises(InputError, match="audio_5120"):
        tokenizer.encode_markup("<audio_5120>")
    with pytest.raises(InputError, match="not in the vocabulary"):
        tokenizer.decode([base + 5120])


def test_files_that_are_no_step_audio_tokenizer(tmp_path):
    with pytest.raises(MissingError):
        TextTokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="SentencePiece"):
        TextTokenizer(tmp_path / "tokenizer.model")
    other = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=other, vocab_size=80, minloglevel=2
    )
    with pytest.raises(InputError, match="id 3"):
        TextTokenizer(other.getvalue())


def test_a_path_is_read(tmp_path):
    model = tmp_path / "tokenizer.model"
    model.write_bytes(tiny_tokenizer()._pieces.serialized_model_proto())
    assert TextTokenizer(model).encode("assistant") == tiny_tokenizer().encode("assistant")
