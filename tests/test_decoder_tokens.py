"""Re-alignment: the published example, every partial group, and any way of cutting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio.decoder.tokens import PAD, TABLE_ROWS, RowBuffer, realign
from stepaudio.errors import InputError
from stepaudio.tokenizer.interleave import from_lm_ids, interleave


def test_published_example():
    tokens = from_lm_ids([65541, 65545, 66561, 66562, 66563])
    assert realign(tokens).tolist() == [[5, 1026], [9, 1027], [1024, 1028]]


def test_limits_of_the_table():
    rows = realign(interleave([1023, 0], [4095, 0, 4095]))
    assert rows.max() == 5120 == TABLE_ROWS - 1
    assert rows.tolist() == [[1023, 5120], [0, 1025], [1024, 5120]]


@pytest.mark.parametrize(("count", "rows"), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (5, 3), (8, 4), (9, 5), (10, 6)])
def test_partial_groups_keep_their_semantic_codes(count, rows):
    tokens = interleave([1, 2, 3, 4], [5, 6, 7, 8, 9, 10])[:count]
    assert len(realign(tokens)) == rows
    assert realign(tokens).tolist() == realign(interleave([1, 2, 3, 4], [5, 6, 7, 8, 9, 10]))[:rows].tolist()


def test_a_missing_linguistic_code_is_padding():
    assert realign(interleave([7], [1, 2, 3, 4])).tolist() == [[7, 1026], [PAD, 1027], [PAD, 1028], [PAD, 1029]]


codes = st.tuples(st.integers(0, 25), st.integers(0, 25))


@given(codes, st.lists(st.integers(0, 50)), st.integers(0, 2**32 - 1))
def test_cut_anywhere(counts, cuts, seed):
    rng = np.random.default_rng(seed)
    tokens = interleave(rng.integers(0, 1024, counts[0]), rng.integers(0, 4096, counts[1]))
    buffer = RowBuffer()
    for _ in range(2):  # a flushed buffer is as new
        pieces = [buffer.push(piece) for piece in np.split(tokens, sorted(cuts))] + [buffer.flush()]
        assert np.concatenate(pieces).tolist() == realign(tokens).tolist()


@given(st.lists(st.sampled_from([3, 2000]), max_size=17))
def test_what_the_whole_refuses_the_stream_refuses(tokens):
    try:
        expected = realign(tokens).tolist()
    except InputError:
        expected = None
    buffer = RowBuffer()
    try:
        got = np.concatenate([buffer.push(tokens), buffer.flush()]).tolist()
    except InputError:
        got = None
    assert got == expected


def test_bad_tokens():
    for tokens in ([5120], [-1], [1.5], [2000, 3]):
        with pytest.raises(InputError):
            realign(tokens)
