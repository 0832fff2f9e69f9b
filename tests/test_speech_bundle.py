"""Bundles: read, extended, refused, loaded once."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from stepaudio.errors import InputError, MissingError, NotFoundError
from stepaudio.speech import bundle as loading
from stepaudio.speech import bundle_spec
from stepaudio.speech.bundle import Bundle, load
from stepaudio.speech.bundle_spec import Backend, bundle_files, read_spec
from stepaudio.speech.weights import Store


class Toy:
    """A backend that counts."""

    made = 0
    closed = 0

    def __init__(self, *, size: int = 1, path: Path | None = None) -> None:
        time.sleep(0.02)
        type(self).made += 1
        self.size, self.path = size, path

    def close(self) -> None:
        type(self).closed += 1


@pytest.fixture(autouse=True)
def toy_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Toy.made = Toy.closed = 0
    backends = dict(bundle_spec.BACKENDS)
    backends["toy"] = Backend(f"{__name__}:Toy")
    backends["heavy"] = Backend(f"{__name__}:Toy", {"no_such_package": "pip install no-such-package"})
    monkeypatch.setattr(bundle_spec, "BACKENDS", backends)
    monkeypatch.setattr(loading, "BACKENDS", backends)
    monkeypatch.setenv("STEPAUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(loading, "_registry", {})


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_embedded_bundles_read() -> None:
    small, tiny = read_spec("small"), read_spec("tiny")
    assert small.languages == tiny.languages == ("en", "zh")
    assert tiny.roles["speaker"] == small.roles["speaker"]
    assert tiny.roles["responder"] != small.roles["responder"]
    assert sum(a.size for a in tiny.weights()) < sum(a.size for a in small.weights())


def test_one_line_swaps_the_responder(tmp_path: Path) -> None:
    spec = read_spec(
        write(
            tmp_path / "mine.toml", 'extends = "small"\nresponder = { backend = "openai", model = "m", base_url = "u" }'
        )
    )
    assert spec.name == "mine"
    assert spec.roles["responder"].options == {"model": "m", "base_url": "u"}
    assert spec.roles["transcriber"] == read_spec("small").roles["transcriber"]
    assert "qwen2.5-coder-1.5b" not in {artefact.name for artefact in spec.weights()}


def test_a_users_bundle_is_found_by_name(tmp_path: Path) -> None:
    write(tmp_path / "home/bundles/mine.toml", 'responder = { backend = "toy" }')
    assert "mine" in bundle_files()
    assert read_spec("mine").roles["responder"].backend == "toy"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "not valid TOML"),
        ('responder = { backend = "nope" }', "unknown backend 'nope'"),
        ("responder = { }", "needs a backend"),
        ("responder = 3", "needs a backend"),
        ('typo = { backend = "toy" }', "unknown key 'typo'"),
        ('responder = { backend = "toy", weights = { path = "nothing/x" } }', "no weights are called 'nothing'"),
        ('extends = "no-such-bundle"', "which is no bundle"),
        ('extends = "mine.toml"', "extends itself"),
        ("extends = 3", "extends must be text"),
        ("summary = 3", "summary must be text"),
        ('languages = "en"', "languages must be a list"),
        ("weights = 3", "weights must be a table"),
        ("[weights]\nmine = 3", "weights must be a table"),
        ('speaker = { backend = "toy", weights = 3 }', "weights must be a table"),
        ('speaker = { backend = "toy", optional_weights = { path = 3 } }', "optional_weights must be a table"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_spec(write(tmp_path / "mine.toml", text))


def test_unknown_names_are_met_with_known_ones(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'small'"):
        load("smal")
    with pytest.raises(NotFoundError, match="cannot read"):
        load(tmp_path / "none.toml")


def test_a_bundle_is_loaded_once_and_closed_once(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", 'responder = { backend = "toy", size = 5 }')
    first, second = load(path), load(path)
    assert first is second
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(first.responder)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Toy.made == 1
    assert all(one is found[0] for one in found)
    assert found[0].size == 5
    first.close()
    assert Toy.closed == 1
    with pytest.raises(InputError, match="is closed"):
        _ = first.responder
    assert load(path) is not first


def test_two_files_of_one_name_are_two_bundles(tmp_path: Path) -> None:
    one = load(write(tmp_path / "a/mine.toml", 'responder = { backend = "toy", size = 1 }'))
    two = load(write(tmp_path / "b/mine.toml", 'responder = { backend = "toy", size = 2 }'))
    assert one is not two


def test_absent_roles_packages_and_options_are_named(tmp_path: Path) -> None:
    bundle = load(
        write(tmp_path / "mine.toml", 'responder = { backend = "heavy" }\nspeaker = { backend = "toy", hue = 1 }')
    )
    with pytest.raises(InputError, match="has no transcriber"):
        _ = bundle.transcriber
    with pytest.raises(MissingError, match="pip install no-such-package"):
        _ = bundle.responder
    with pytest.raises(InputError, match="no option 'hue'"):
        _ = bundle.speaker
    url = load(write(tmp_path / "url.toml", 'responder = { backend = "openai", model = "m" }'))
    with pytest.raises(InputError, match="needs the option 'base_url'"):
        _ = url.responder


def test_weights_arrive_as_verified_paths(tmp_path: Path) -> None:
    data = tmp_path / "data.bin"
    data.write_bytes(b"weights")

    digest = hashlib.sha256(b"weights").hexdigest()
    path = write(
        tmp_path / "mine.toml",
        f"""
        [responder]
        backend = "toy"
        optional_weights = {{ path = "data/data.bin" }}
        [weights.data]
        licence = "CC0-1.0"
        files = [{{ path = "data.bin", size = 7, sha256 = "{digest}", from = "file:{data}" }}]
        """,
    )
    spec = read_spec(path)
    with Bundle(spec) as bundle:
        assert bundle.responder.path is None  # type: ignore[attr-defined]
    Store().pull(spec.weights()[0])
    with Bundle(spec) as bundle:
        found = bundle.responder.path  # type: ignore[attr-defined]
        assert found.read_bytes() == b"weights"


def test_warm_loads_side_by_side_and_reports_failures(tmp_path: Path) -> None:
    bundle = load(write(tmp_path / "mine.toml", 'responder = { backend = "toy" }\nspeaker = { backend = "toy" }'))
    bundle.warm()
    assert Toy.made == 2
    broken = load(write(tmp_path / "bad.toml", 'responder = { backend = "heavy" }\nspeaker = { backend = "toy" }'))
    with pytest.raises(MissingError):
        broken.warm()
