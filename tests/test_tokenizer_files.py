import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from stepaudio.errors import AudioError, InputError
from stepaudio.tokenizer.files import tokenize
from stepaudio.tokenizer.interleave import interleave
from stepaudio.tokenizer.streaming import DualCodes


class ByLength:
    """A tokenizer whose codes count up to the length of the recording."""

    def encode(self, samples):
        return DualCodes(np.arange(len(samples) * 3 // 2880), np.arange(len(samples) // 640))


@pytest.fixture
def recordings(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 0.5)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(round(24000 * seconds)), 24000)
    return [tmp_path / "a.wav", tmp_path / "b.wav"]


def test_jsonl(tmp_path, recordings):
    out = tmp_path / "new" / "codes.jsonl"
    done = list(tokenize(recordings, out, ByLength()))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in recordings] == [d.file for d in done]
    assert [line["seconds"] for line in lines] == [1.0, 0.5]
    assert lines[0]["linguistic"] == list(range(16))
    assert lines[0]["semantic"] == list(range(25))
    assert lines[1]["tokens"] == interleave(range(8), range(12)).tolist()


def test_npz_splits_back_into_recordings(tmp_path, recordings):
    out = tmp_path / "codes.npz"
    list(tokenize(recordings, out, ByLength(), tail="drop"))
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["files"].tolist() == [str(path) for path in recordings]
        offsets = arrays["semantic_offsets"]
        parts = [arrays["semantic"][a:b].tolist() for a, b in pairwise(offsets)]
        assert parts == [list(range(25)), list(range(12))]
        assert arrays["tokens_offsets"].tolist() == [0, 40, 60]


def test_a_failure_leaves_the_output_as_it_was(tmp_path, recordings):
    out = tmp_path / "codes.npz"
    out.write_bytes(b"earlier")
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"not audio")
    with pytest.raises(AudioError):
        list(tokenize([*recordings, bad], out, ByLength()))
    assert out.read_bytes() == b"earlier"
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(("files", "out"), [([], "a.npz"), (["x.wav"], "a.txt")])
def test_refuses(tmp_path, files, out):
    with pytest.raises(InputError):
        list(tokenize([tmp_path / f for f in files], tmp_path / out, ByLength()))
