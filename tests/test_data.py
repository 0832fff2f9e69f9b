"""Data: manifests, sentences, synthesis that survives being killed, augmentation."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.data import plan, text
from stepaudio.data.augment import augment, band_limited, in_room, noisy, resampled
from stepaudio.data.manifest import Utterance, read_manifest, write_manifest
from stepaudio.data.synthesis import Line, Spoken, synthesize
from stepaudio.data.text import Sentence
from stepaudio.errors import AudioError, InputError, MissingError, TextError


class Hummer:
    """A teacher whose voice is a tone per letter; takes its time over each line."""

    def __init__(self, pause=0.0):
        self.pause = pause

    def say(self, line):
        time.sleep(self.pause)
        if not line.text.isascii():
            raise TextError("it hums letters only")
        t = np.arange(2400) / 24000
        tones = [np.sin(2 * np.pi * (200 + 20 * ord(letter) + line.seed) * t) for letter in line.text]
        ends = tuple(100 * (i + 1) for i in range(len(line.text)))
        return Spoken((0.3 * np.concatenate(tones)).astype(np.float32), line.text, line.text, ends)


def slow_hummer():
    return Hummer(0.02)


def hum(count, teacher="hummer"):
    return [Line(f"hum {'abc'[i % 3]}{i}", "en", "one", teacher, "test", "train", i) for i in range(count)]


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_one_sentence_in_25_is_tested_and_never_moves():
    splits = [plan.split_of(f"sentence number {i}") for i in range(20_000)]
    assert splits.count("test") / 20_000 == pytest.approx(1 / 25, abs=0.005)
    assert splits.count("dev") / 20_000 == pytest.approx(24 / 25 / 100, abs=0.003)
    assert plan.split_of("  Sentence NUMBER   7") == splits[7]
    digest = hashlib.sha256("".join(split[0] for split in splits).encode()).hexdigest()
    assert digest[:8] == "b85879b9"  # models that are out there were trained on this division


# ------------------------------------------------------------------ manifests

words = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1).filter(str.strip)


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(
            Utterance,
            audio=st.just(Path("a/b.flac")),
            text=words,
            duration=st.floats(0.01, 1e4),
            spoken=st.text(max_size=20).filter(lambda s: s == s.encode("utf-8", "ignore").decode()),
            language=st.sampled_from(["", "en", "zh"]),
            seed=st.integers(0, 2**40),
            split=st.sampled_from(["train", "test"]),
            phonemes=st.just("ab"),
            ends=st.just((10, 20)),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_manifests_come_back_as_they_were_written(tmp_path_factory, utterances):
    folder = tmp_path_factory.mktemp("m")
    write_manifest(folder / "manifest.jsonl", utterances)
    expected = [replace(utterance, audio=folder / utterance.audio) for utterance in utterances]
    assert read_manifest(folder / "manifest.jsonl") == expected


def test_manifests_of_others_and_splits(tmp_path):
    lines = [
        {"path": "x.wav", "text": "eins", "lang": "de", "seconds": 1.5, "licence": "CC0"},
        {"audio": "y.wav", "text": "zwei", "duration": 2, "split": "test"},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = read_manifest(tmp_path / "m.jsonl")
    assert (first.language, first.duration, first.audio) == ("de", 1.5, tmp_path / "x.wav")
    assert read_manifest(tmp_path / "m.jsonl", split="train") == [first]
    assert read_manifest(tmp_path / "m.jsonl", split="test") == [second]
    with pytest.raises(InputError, match="split 'dev'"):
        read_manifest(tmp_path / "m.jsonl", split="dev")
    with pytest.raises(MissingError):
        read_manifest(tmp_path / "other.jsonl")


def test_a_recording_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.wav").write_text("no audio")
    for name in ("broken.wav", "gone.wav"):
        with pytest.raises(AudioError, match=name):
            Utterance(tmp_path / name, "a", 1.0).samples(16_000)


def test_an_entry_whose_times_do_not_match_is_refused(tmp_path):
    entry = {"audio": "x.wav", "text": "a", "duration": 1, "phonemes": "ab", "ends": [10]}
    (tmp_path / "m.jsonl").write_text(json.dumps(entry))
    with pytest.raises(InputError, match="line 1"):
        read_manifest(tmp_path / "m.jsonl")


# ------------------------------------------------------------------ synthesis


def test_synthesis_writes_recordings_and_their_manifest(tmp_path):
    lines = [*hum(40), replace(hum(1)[0], text="é")]
    counted = list(synthesize(lines, tmp_path, {"hummer": Hummer}))
    assert sum(count for count, _ in counted) == 41
    utterances = read_manifest(tmp_path / "manifest.jsonl")
    assert [u.text for u in utterances] == [line.text for line in lines[:40]]
    assert sum(u.duration for u in utterances) == pytest.approx(sum(seconds for _, seconds in counted))
    for utterance in utterances:
        samples, rate = soundfile.read(utterance.audio)
        assert (rate, len(samples) / rate) == (24000, pytest.approx(utterance.duration, abs=1e-3))
    (refused,) = map(json.loads, (tmp_path / "refused.jsonl").read_text().splitlines())
    assert (refused["text"], refused["refused"]) == ("é", "it hums letters only")


def test_a_longer_list_keeps_what_is_there(tmp_path):
    list(synthesize(hum(64), tmp_path, {"hummer": Hummer}))
    before = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "audio").rglob("*.flac")}
    list(synthesize(hum(100), tmp_path, {"hummer": Hummer}, processes=2))
    assert all(os.stat(path).st_mtime_ns == stamp for path, stamp in before.items())
    assert len(read_manifest(tmp_path / "manifest.jsonl")) == 100
    list(synthesize(hum(100), tmp_path / "whole", {"hummer": Hummer}))
    ours = contents(tmp_path)
    assert all(ours[name] == digest for name, digest in contents(tmp_path / "whole").items())


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_data import hum, slow_hummer
from stepaudio.data.synthesis import synthesize
if __name__ == "__main__":
    for _ in synthesize(hum(160), Path(sys.argv[2]), {"hummer": slow_hummer}, processes=2):
        pass
"""


def test_a_killed_synthesis_goes_on_and_ends_as_the_whole_one(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    command = [sys.executable, str(script), str(Path(__file__).parent), str(cut)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 300
    while not list(cut.glob("parts/*.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "manifest.jsonl").exists()
    assert len(list(cut.glob("parts/*.jsonl"))) < 5
    lines = hum(160)
    list(synthesize(lines, cut, {"hummer": Hummer}))
    list(synthesize(lines, whole, {"hummer": Hummer}))
    # Half a part that the kill left behind is no part.
    left = {name: digest for name, digest in contents(cut).items() if ".half" not in name}
    assert left == contents(whole)


def test_an_unknown_teacher_is_named(tmp_path):
    with pytest.raises(InputError, match=r"'nobody'.*hummer"):
        next(synthesize(hum(1, teacher="nobody"), tmp_path, {"hummer": Hummer}))


# ------------------------------------------------------------------ sentences

WORDNET = {
    "data.noun": '00001 03 n 02 river 0 bank 0 000 | the sea runs; "the river runs to the sea"\n',
    "data.verb": '00002 29 v 01 run 0 000 | move to the sea; "to the river runs the sea"\n',
    "data.adj": '00003 00 a 01 wet 0 000 | (usually) river of the sea; "the 3 rivers"\n',
    "data.adv": "00004 02 r 01 fast 0 000 | at speed; to the river; run\n",
}


@pytest.fixture
def wordnet(tmp_path):
    for name, line in WORDNET.items():
        (tmp_path / name).write_text("  1 the licence of WordNet stands here\n" + line)
    return tmp_path


def test_sentences_of_wordnet_are_plain_and_their_words_familiar(wordnet, monkeypatch):
    monkeypatch.setattr(text, "FAMILIAR", 2)
    found = {sentence.text: sentence.source for sentence in text.english(wordnet) if sentence.source != "template"}
    definitions = dict.fromkeys(["the sea runs", "to the river"], "wordnet-definition")
    examples = dict.fromkeys(["the river runs to the sea", "to the river runs the sea"], "wordnet-example")
    assert found == definitions | examples  # "move" and "of" occur once, "run" is too short


def test_wordnet_that_is_not_there(tmp_path):
    with pytest.raises(MissingError, match="stepaudio pull wordnet"):
        text.english(tmp_path)


def test_chinese_sentences():
    pytest.importorskip("jieba")
    sentences = text.chinese(50)
    assert len({s.text for s in sentences}) == len(sentences) > 40
    assert sentences == text.chinese(50)
    assert all(not set("{}") & set(s.text) for s in sentences)


def test_what_is_heard():
    assert text.spoken("It’s Tom's, isn't it?", "en") == "it's tom's isn't it"
    pytest.importorskip("pypinyin")
    assert text.spoken("你好，世界。", "zh") == "ni3 hao3 shi4 jie4"


def test_plans_grow_and_never_mix_splits():
    sentences = [Sentence(f"sentence number {i}", "test") for i in range(3000)]
    voices = ["af_kore", "am_echo", "zf_xiaobei", "zm_yunyang"]
    small, large = (plan.nano(sentences, sentences[:60], voices, size, 40) for size in (500, 1000))
    assert large[: len(small)] == small
    splits = {}
    for line in large:
        assert (line.split == "unheard") == (line.speaker in plan.UNHEARD)
        if line.split != "unheard":
            assert splits.setdefault(line.text, line.split) == line.split
    said = [line.speaker for line in large if line.teacher == "hibari"]
    counts = [said.count(speaker) for speaker in plan.HEARTS]
    assert max(counts) - min(counts) <= 1
    assert 20 < sum(line.split == "test" for line in large) < 70


# ------------------------------------------------------------------ augmentation


def speech(seconds=1.0):
    t = np.arange(round(16000 * seconds)) / 16000
    return (0.3 * np.sin(2 * np.pi * 440 * t) * (np.sin(2 * np.pi * 3 * t) > 0)).astype(np.float32)


def test_noise_has_the_level_that_was_asked_for():
    clean = speech()
    for colour in (0.0, 2.0):
        noise = noisy(clean, 10.0, colour, np.random.default_rng(0)) - clean
        assert 10 * np.log10(np.square(clean).mean() / np.square(noise).mean()) == pytest.approx(10, abs=0.01)


def test_a_slow_tape_is_longer_and_deeper():
    slow = resampled(speech(), 1.1)
    assert len(slow) == pytest.approx(17600, abs=2)
    spectrum = np.abs(np.fft.rfft(slow))
    assert spectrum.argmax() * 16000 / len(slow) == pytest.approx(400, abs=5)


def test_a_room_adds_what_comes_after():
    click = np.zeros(8000, dtype=np.float32)
    click[1000] = 1
    heard = in_room(click, 0.2, 6.0, np.random.default_rng(0))
    assert np.abs(heard[:1000]).max() < 1e-6
    assert np.abs(heard[1001:4000]).max() > 1e-3
    late = np.square(heard[1001:]).sum()
    assert 10 * np.log10(late) == pytest.approx(-6, abs=1.5)


def test_a_telephone_passes_the_middle():
    t = np.arange(16000) / 16000
    low, middle = (np.sin(2 * np.pi * hz * t).astype(np.float32) for hz in (60, 1000))
    assert np.abs(band_limited(low, 300, 3400)[4000:]).max() < 0.1
    assert np.abs(band_limited(middle, 300, 3400)[4000:]).max() > 0.9


def test_augmentation_is_repeatable_and_tells_its_stretch():
    clean = speech(2.0)
    stretched = 0
    for seed in range(40):
        (first, stretch), (second, _) = (augment(clean, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert first.dtype == np.float32
        assert np.isfinite(first).all()
        assert len(first) == pytest.approx(len(clean) * stretch, abs=2)
        stretched += stretch != 1
    assert 1 < stretched < 20
