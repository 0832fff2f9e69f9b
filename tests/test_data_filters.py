"""Which recordings are rejected, and the reason that stands in the manifest."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio.data.filters import REJECTED, Ears, Limits, judged, word_errors
from stepaudio.data.manifest import Utterance, read_manifest, write_manifest
from stepaudio.errors import InputError


def utterances(count=20):
    said = Utterance(Path("a.flac"), "this house is tall", 1.5, language="en", speaker="anna", teacher="hibari")
    return [replace(said, audio=Path(f"{n}.flac"), duration=1.5 + 0.01 * n) for n in range(count)]


def rejected(found):
    return {index: u.rejected for index, u in enumerate(found) if u.split == REJECTED}


def test_what_is_good_stays_as_it_is():
    ears = Ears(lambda u: "This, house, is tall!", lambda u: 3.0, lambda u: np.ones(2, np.float32))
    assert list(judged(utterances(), ears)) == utterances()


def test_words_that_are_not_heard_are_a_reason():
    ears = Ears(words=lambda u: "this house" if u.audio.stem == "3" else "this house is small")
    assert rejected(judged(utterances(), ears)) == {3: "heard as 'this house'"}


def test_numbers_are_compared_as_they_are_written():
    said = [replace(u, text="it cost 863 dollars in 1956", spoken="it cost eight hundred") for u in utterances()]
    assert rejected(judged(said, Ears(words=lambda u: "It cost $863 in 1956."))) == {}
    found = rejected(judged(said, Ears(words=lambda u: "It cost $900 in 1966.")))
    assert len(found) == len(said)
    said = [replace(u, text="我想喝茶。", spoken="wo3 xiang3 he1 cha2", language="zh") for u in utterances()]
    assert rejected(judged(said, Ears(words=lambda u: "我想喝茶"))) == {}


def test_a_strange_pace_is_a_reason():
    said = utterances()
    said[5] = replace(said[5], duration=4.0)
    said[6] = replace(said[6], teacher="kokoro", duration=4.0)  # alone among its teacher's: nothing to compare with
    assert rejected(judged(said, Ears())) == {5: f"pace of {4 / 15:.3f} s per symbol"}


def test_bad_sound_and_another_voice_are_reasons():
    ears = Ears(quality=lambda u: 1.0 if u.audio.stem == "2" else 3.0)
    assert rejected(judged(utterances(), ears)) == {2: "quality 1.00"}
    ears = Ears(voice=lambda u: np.array([0, 1] if u.audio.stem == "4" else [1, 0], np.float32))
    assert rejected(judged(utterances(), ears, Limits())) == {4: "similarity 0.00 to anna"}


def test_a_sample_is_heard_and_all_are_timed():
    heard = []
    said = utterances(40)
    said[1] = replace(said[1], duration=9.0)
    ears = Ears(words=lambda u: heard.append(u.audio.stem) or "nothing")
    found = rejected(judged(said, ears, sample=4))
    assert heard == ["0", "10", "20", "30"]
    assert set(found) == {0, 1, 10, 20, 30}


def test_nothing_learns_from_what_was_rejected(tmp_path):
    found = list(judged(utterances(), Ears(quality=lambda u: float(u.audio.stem == "7"))))
    write_manifest(tmp_path / "manifest.jsonl", found)
    with pytest.raises(InputError, match="no line of the split 'train'"):
        read_manifest(tmp_path / "manifest.jsonl", split="train")
    assert read_manifest(tmp_path / "manifest.jsonl", split=REJECTED)[0].rejected == "quality 0.00"


@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_word_errors_are_the_edit_distance(wanted, heard):
    table = np.zeros((len(wanted) + 1, len(heard) + 1), int)
    table[:, 0], table[0, :] = range(len(wanted) + 1), range(len(heard) + 1)
    for i, a in enumerate(wanted, 1):
        for j, b in enumerate(heard, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
    assert word_errors(wanted, heard) == table[-1, -1]
