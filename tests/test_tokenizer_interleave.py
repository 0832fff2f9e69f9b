import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio.errors import InputError
from stepaudio.tokenizer import interleave as il

linguistic = st.lists(st.integers(0, 1023), max_size=40)
semantic = st.lists(st.integers(0, 4095), max_size=60)
ratios = st.tuples(st.integers(1, 6), st.integers(1, 6))


def test_released_vector():
    tokens = il.interleave([5, 9], [1, 2, 3])
    assert il.to_lm_ids(tokens).tolist() == [65541, 65545, 66561, 66562, 66563]
    assert il.to_text(tokens) == "<audio_5><audio_9><audio_1025><audio_1026><audio_1027>"


def test_drop_rule_of_the_released_tokenizer():
    tokens = il.interleave(range(17), range(25), tail="drop")
    l_codes, s_codes = il.deinterleave(tokens)
    assert (len(tokens), len(l_codes), len(s_codes)) == (40, 16, 24)


def test_keep_puts_what_is_left_in_a_last_group():
    assert il.interleave([1, 2, 3], [4, 5, 6, 7]).tolist() == [1, 2, 1028, 1029, 1030, 3, 1031]


def interleave_by_loop(l_codes, s_codes, ratio, tail):
    """The rule in its plainest form."""
    a, b = ratio
    tokens, g = [], 0
    while True:
        l_part, s_part = l_codes[g * a : (g + 1) * a], s_codes[g * b : (g + 1) * b]
        whole = len(l_part) == a and len(s_part) == b
        if not (l_part or s_part) or (tail == "drop" and not whole):
            return tokens
        tokens += l_part + [1024 + s for s in s_part]
        g += 1


@given(linguistic, semantic, ratios, st.sampled_from(["keep", "drop"]))
def test_equals_the_loop(l_codes, s_codes, ratio, tail):
    expected = interleave_by_loop(l_codes, s_codes, ratio, tail)
    assert il.interleave(l_codes, s_codes, ratio=ratio, tail=tail).tolist() == expected


@given(linguistic, semantic, ratios)
def test_round_trip_through_ids_and_text(l_codes, s_codes, ratio):
    tokens = il.interleave(l_codes, s_codes, ratio=ratio)
    for back in (tokens, il.from_lm_ids(il.to_lm_ids(tokens)), il.from_text(il.to_text(tokens))):
        l_back, s_back = il.deinterleave(back, ratio=ratio)
        assert (l_back.tolist(), s_back.tolist()) == (l_codes, s_codes)


@pytest.mark.parametrize(
    "call",
    [
        lambda: il.interleave([1024], []),
        lambda: il.interleave([], [-1]),
        lambda: il.interleave([0.5], []),
        lambda: il.interleave([1], [1], ratio=(0, 3)),
        lambda: il.interleave([1], [1], tail="pad"),
        lambda: il.deinterleave([1024, 0]),
        lambda: il.deinterleave([5120]),
        lambda: il.from_lm_ids([65535]),
        lambda: il.from_lm_ids([70656]),
        lambda: il.from_text("<audio_1> <audio_2>"),
        lambda: il.from_text("<audio_5120>"),
    ],
)
def test_refuses(call):
    with pytest.raises(InputError):
        call()


def test_last_ids_of_the_vocabulary():
    assert il.to_lm_ids(il.interleave([1023], [4095])).tolist() == [66559, 70655]
    assert il.from_lm_ids(np.array([70655])).tolist() == [5119]
