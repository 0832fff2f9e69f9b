"""Files that are there whole or not at all."""

import contextlib
import os
import threading

import pytest

from full_disk import full_disk
from stepaudio.files import replacing


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "figures.json"
    target.write_text("old")
    with replacing(target) as half:
        assert half.suffix == ".json"
        half.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["figures.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_goes_wrong_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "figures.json"
    target.write_text("old")
    with contextlib.suppress(error), replacing(target) as half:
        half.write_text("ne")
        raise error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["figures.json"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "figures.json"
    target.write_text("old")
    with pytest.raises(OSError, match=r"too large: .*figures\.json"), full_disk(100_000), replacing(target) as half:
        half.write_bytes(bytes(200_000))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["figures.json"]


def test_the_error_names_the_file_that_was_wanted(tmp_path):
    with (
        pytest.raises(OSError, match=r"nowhere/figures\.json"),
        replacing(tmp_path / "nowhere" / "figures.json") as half,
    ):
        half.write_text("new")


def test_a_link_is_followed_and_a_pipe_is_written_as_it_is(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with replacing(tmp_path / "link.txt") as half:
        half.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    heard = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()))
    reader.start()
    with replacing(tmp_path / "pipe") as half:
        half.write_text("through")
    reader.join(60)
    assert heard == ["through"]
    assert (tmp_path / "pipe").is_fifo()
