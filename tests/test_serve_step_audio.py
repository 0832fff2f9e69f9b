"""A miniature Step-Audio release behind a live server: text to sound, and a clip to its voice."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from released_models import write_editx, write_tokenizer, write_tts, write_voices
from serve_fixtures.live import Live, live
from stepaudio.audio.encode import encode
from stepaudio.audio.io import read
from stepaudio.speech.bundle import Bundle
from stepaudio.speech.bundle_spec import read_spec

QUESTION = Path(__file__).parent.parent / "examples" / "question-en.flac"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("serve")
    write_tokenizer(home / "tokenizer")
    return home


def serve(home: Path, name: str, backend: str, vad: bool = False, **options: str) -> Bundle:
    lines = ['languages = ["en", "zh"]', "[speaker]", f'backend = "{backend}"', "steps = 1", "seed = 1"]
    lines += [f'{key} = "{home / value}"' for key, value in {"tokenizer": "tokenizer", **options}.items()]
    lines += ["[vad]", 'backend = "silero"', 'weights = { path = "silero-vad/silero_vad.onnx" }'] if vad else []
    (home / f"{name}.toml").write_text("\n".join(lines))
    return Bundle(read_spec(home / f"{name}.toml"))


@pytest.fixture(scope="module")
def tts(home: Path) -> Iterator[Live]:
    write_tts(home / "tts")
    write_voices(home / "voices")
    with serve(home, "mini-tts", "step_audio_tts", model="tts", voices="voices") as bundle, live(bundle) as running:
        yield running


def test_text_to_sound(tts: Live) -> None:
    assert [voice["id"] for voice in httpx.get(f"{tts.url}/v1/voices").json()["data"]] == ["Ting"]
    body = {"input": "read the text aloud.", "voice": "Ting", "response_format": "pcm", "instructions": "slow and sad"}
    answer = httpx.post(f"{tts.url}/v1/audio/speech", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    samples = np.frombuffer(answer.content, np.int16)
    assert samples.std() > 3
    body["instructions"] = "(sad)"
    assert httpx.post(f"{tts.url}/v1/audio/speech", json=body).json()["error"]["param"] == "style"


@pytest.mark.weights
def test_a_clip_to_its_voice_and_an_edit(home: Path) -> None:
    write_editx(home / "editx")
    clip = encode(np.tile(read(QUESTION), 2), 16_000, "wav")
    with serve(home, "mini-editx", "step_audio_editx", vad=True, model="editx") as bundle, live(bundle) as running:
        answers = [
            httpx.post(
                f"{running.url}/v1/audio/{path}",
                files={"file": clip},
                data={"response_format": "pcm", **fields},
                timeout=120,
            )
            for path, fields in (
                ("clone", {"input": "read the text aloud.", "transcript": "what is said"}),
                ("edit", {"edit": "emotion=happy", "transcript": "what is said"}),
                ("clone", {"input": "read the text aloud."}),
            )
        ]
    for answer in answers[:2]:
        assert answer.status_code == 200, answer.text
        assert np.frombuffer(answer.content, np.int16).std() > 3
    assert answers[2].json()["error"]["param"] == "transcript"
