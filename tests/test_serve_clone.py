"""Cloning and editing over HTTP."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from serve_fixtures.fakes import FakeBundle, recording
from serve_fixtures.live import Live, live

CLIP = ("clip.wav", recording(3), "audio/wav")


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(FakeBundle(), max_input_chars=1000) as running:
        yield running


def post(server: Live, path: str, *, clip: object = CLIP, **fields: object) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/audio/{path}", files={"file": clip}, data=fields, timeout=60)


def samples(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, np.int16) / 32768


def test_a_clip_speaks(server: Live) -> None:
    answer = post(server, "clone", input="one two three", response_format="pcm", transcript="hello")
    assert len(samples(answer)) == pytest.approx(0.3 * 24_000, abs=1)
    heard = post(server, "clone", input="one two", response_format="pcm", speed=2)
    assert len(samples(heard)) == pytest.approx(0.1 * 24_000, abs=1)


def test_the_default_format_is_mp3(server: Live) -> None:
    assert post(server, "clone", input="one").headers["content-type"] == "audio/mpeg"


def test_edits_are_made_one_after_the_other(server: Live) -> None:
    levels = [
        np.abs(samples(post(server, "edit", edit=edits, response_format="pcm"))).max()
        for edits in (["denoise"], ["emotion=sad", "denoise"])
    ]
    assert levels == pytest.approx([0.25, 0.125], rel=0.02)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("clone", {}, "input"),
        ("clone", {"input": "a" * 1001}, "input"),
        ("clone", {"input": "one", "style": "sad"}, "style"),
        ("clone", {"input": "one", "speed": 9}, "speed"),
        ("clone", {"input": "one", "mood": "sad"}, "mood"),
        ("clone", {"input": "one", "model": "llama"}, "model"),
        ("clone", {"input": "unspeakable"}, "input"),
        ("edit", {}, "edit"),
        ("edit", {"edit": "emotion"}, "edit"),
        ("edit", {"edit": "denoise=much"}, "edit"),
        ("edit", {"edit": "age=old"}, "edit"),
        ("edit", {"edit": "emotion=sleepy"}, "option"),
    ],
)
def test_what_cannot_be_is_refused(server: Live, path: str, fields: dict[str, object], param: str) -> None:
    answer = post(server, path, **fields)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["param"] == param


def test_bad_clips_are_refused_with_what_to_do(server: Live) -> None:
    for clip, message in ((recording(0.1), "at least 1 s"), (b"no sound", "not audio")):
        answer = post(server, "clone", clip=("clip.wav", clip), input="one")
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
