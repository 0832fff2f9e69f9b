"""nano-voice as a speaker: texts, voices, speeds, clones, adapting, with untrained models in miniature."""

import json

import numpy as np
import pytest
import soundfile
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load_file

import nano_voice
from stepaudio.data.codes import tokenize_manifest
from stepaudio.data.manifest import Utterance, write_manifest
from stepaudio.decoder.flow import Sampling
from stepaudio.errors import InputError, MissingError, NotFoundError, TextError
from stepaudio.speech.backends.phonemes import Pronunciation
from stepaudio.speech.nano_voice.adapt import Adaptation, learn, prepare
from stepaudio.speech.nano_voice.decoder import PACKAGED, VOICES, NanoDecoder, read_voices
from stepaudio.speech.nano_voice.listener import TOKENIZER, NanoTranscriber
from stepaudio.speech.nano_voice.report import page
from stepaudio.speech.nano_voice.speaker import CLONE, SPEEDS, NanoSpeaker, _TextShare
from stepaudio.speech.roles import Cloner, Reference, StyledSpeaker, Transcriber
from stepaudio.speech.say import say
from stepaudio.tokenizer.dual import DualTokenizer
from stepaudio.tokenizer.interleave import interleave

TEXT = "I like the cat. It sat on a hat!"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return nano_voice.folder(tmp_path_factory.mktemp("nano-voice"))


@pytest.fixture(scope="module")
def speaker(folder):
    made = NanoSpeaker(folder, steps=2)
    yield made
    made.close()


def sound(speech):
    return np.concatenate([one.samples for one in speech])


def test_it_is_a_speaker_that_clones_and_knows_speeds(speaker):
    assert isinstance(speaker, Cloner)
    assert isinstance(speaker, StyledSpeaker)
    assert [voice.name for voice in speaker.voices] == list(nano_voice.VOICE_NAMES)
    assert speaker.default_voice("en") == speaker.voices[0]
    assert speaker.default_voice("zh") is None


def test_the_texts_of_the_chunks_are_the_text_and_the_sound_is_whole_groups(speaker):
    spoken = list(say(speaker, TEXT))
    assert "".join(one.text for one in spoken).split() == TEXT.split()
    assert len(spoken) > 4
    assert len(sound(spoken)) % round(0.12 * speaker.rate) == 0


def test_the_same_text_sounds_the_same_and_another_voice_otherwise(speaker):
    first, again, other = (sound(speaker.speak("I like it", voice=name)) for name in ("anna", "anna", "bert"))
    assert_allclose(first, again)
    assert len(first) == len(other)
    assert not np.allclose(first, other, atol=1e-4)


def test_faster_is_shorter(speaker):
    usual, twice = (sound(speaker.speak("I like it", voice="anna", speed=speed)) for speed in (1.0, 2.0))
    assert len(twice) == pytest.approx(len(usual) / 2, rel=0.1)


def test_a_label_is_one_of_five_speeds(speaker):
    for label in SPEEDS:
        assert len(sound(say(speaker, f"({label}) I like it"))) > 0
    assert len(sound(say(speaker, "I like it", style="Very Fast"))) > 0
    with pytest.raises(InputError, match="very slow, slow, normal"):
        list(say(speaker, "(happy) I like it"))


def test_a_clone_has_one_voice_and_speeds(speaker):
    clone = speaker.cloned(Reference(nano_voice.tone(3), 24_000, ""))
    assert [voice.name for voice in clone.voices] == [CLONE]
    assert len(sound(say(clone, "I like it"))) > 0


def test_what_cannot_be_is_refused(speaker, folder, tmp_path):
    with pytest.raises(NotFoundError):
        speaker.speak("I like it", voice="nobody")
    with pytest.raises(TextError):
        list(speaker.speak("...", voice="anna"))
    with pytest.raises(InputError):
        list(speaker.speak("I like it", voice="anna", speed=9.0))
    with pytest.raises(MissingError):
        NanoDecoder(tmp_path)
    (tmp_path / VOICES).write_bytes(b"bad")
    with pytest.raises(InputError, match="damaged"):
        read_voices(tmp_path / VOICES)


def test_codes_stream_to_what_they_are_at_once(folder):
    decoder = NanoDecoder(folder, Sampling(2))
    random = np.random.default_rng(0)
    tokens = interleave(random.integers(0, 1024, 40), random.integers(0, 4096, 60))
    voice = decoder.voice("anna")
    stream = decoder.stream(voice)
    whole = np.concatenate([stream.push(tokens), stream.flush()])
    for size in (1, 5, 33):
        pieces = [stream.push(tokens[at : at + size]) for at in range(0, len(tokens), size)]
        assert_allclose(np.concatenate([*pieces, stream.flush()]), whole, atol=1e-5)
    assert len(whole) == 60 * 2 * 480


def test_text_follows_the_words_whose_groups_were_heard():
    said = Pronunciation(("Cats ", "sat", ", and ate."), "kˈæts sˈæt, ænd ˈAt.", (0,) * 6 + (1,) * 4 + (2,) * 10)
    share = _TextShare(said)
    assert share.words == ["kæts", "sæt", "ænd", "At"]
    for word in (0, 0, 1):
        share.drawn(word)
    assert [share.take(1), share.take(2), share.take(3)] == ["Cats ", "", "sat"]
    assert share.rest() == ", and ate."


def test_hearing_takes_english_of_a_bounded_length(folder):
    listener = NanoTranscriber(folder)
    try:
        assert isinstance(listener, Transcriber)
        heard = listener.transcribe(nano_voice.tone(1.5, rate=16_000))
        assert heard.duration == 1.5
        assert heard.language == "en"
        assert listener.transcribe(np.zeros(100, np.float32)).text == ""
        with pytest.raises(InputError, match="English"):
            listener.transcribe(nano_voice.tone(1), language="zh")
        with pytest.raises(InputError, match="20 s"):
            listener.transcribe(np.zeros(21 * 16_000, np.float32))
    finally:
        listener.close()


def test_adapting_moves_the_decoder_and_leaves_the_language_model(folder, tmp_path):
    said = []
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.flac", nano_voice.tone(1.2, 150 + 10 * number), 24_000)
        said.append(Utterance(f"{number}.flac", "a tone", 1.2, speaker="tina"))
    write_manifest(tmp_path / "manifest.jsonl", said)
    with DualTokenizer.load(TOKENIZER) as tokenizer:
        list(tokenize_manifest(tmp_path / "manifest.jsonl", tokenizer, TOKENIZER))
    voice, lines, weights = tmp_path / "voice", [], {}
    for share in (0.0, 1.0, 0.5):  # the same run, which is over after the first
        adaptation = Adaptation(steps=3, share=share)
        learn(tmp_path / "manifest.jsonl", tmp_path, voice, adaptation, folder, "tina", lines.append)
        weights[share] = load_file(voice / "flow.safetensors")
    before = load_file(folder / "flow.safetensors")
    assert all(torch.equal(kept, before[name]) for name, kept in weights[0.0].items())
    for name, half in weights[0.5].items():
        assert_allclose(half.float(), (weights[0.0][name].float() + weights[1.0][name].float()) / 2, atol=1e-3)
    assert (voice / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (voice / "flow.safetensors").read_bytes() != (folder / "flow.safetensors").read_bytes()
    assert [named.name for named in read_voices(voice / VOICES)[0]] == ["tina"]
    made = NanoSpeaker(voice, steps=2)
    assert len(sound(made.speak("I like it", voice="tina"))) > 0
    made.close()


def test_a_recording_that_cannot_be_read_stops_before_any_work(tmp_path):
    recordings = tmp_path / "tina"
    recordings.mkdir()
    with pytest.raises(InputError, match="no recordings"):
        prepare(recordings, tmp_path / "out", None, 10, print)
    soundfile.write(recordings / "a.wav", nano_voice.tone(1.2), 24_000)
    (recordings / "b.wav").write_text("no audio")
    with pytest.raises(InputError, match=r"b\.wav"):
        prepare(recordings, tmp_path / "out", None, 10, print)
    assert not (tmp_path / "out").exists()


def test_a_report_shows_every_sentence_before_and_after():
    interval = {"value": 0.2, "low": 0.1, "high": 0.3}
    said = [
        {at: {"text": text, "file": f"{number}.wav", "heard": f"{at} | {text}"} for at in ("before", "after")}
        for number, text in enumerate(["I like it", "you do"])
    ]
    figures = {"wer": interval, "similarity": interval}
    changes = dict.fromkeys(("same_person", "similarity_gain", "wer_change"), interval)
    counts = {"recordings": 30, "minutes": 3.5, "sentences": 2}
    text = page({**counts, "before": figures, "after": figures, **changes, "said": said}, "tina")
    assert text.count("20.0 % (10.0 to 30.0)") == 3
    assert text.count("0.200 (0.100 to 0.300)") == 4
    assert "| you do | [before / you do](samples/before/1.wav) | [after / you do](samples/after/1.wav) |" in text


# ---------------------------------------------------------------- the shipped weights


@pytest.fixture(scope="module")
def shipped():
    if not (PACKAGED / "model.safetensors").is_file():
        pytest.skip("nano-voice has no weights here")
    torch.set_num_threads(1)
    made = NanoSpeaker()
    yield made
    made.close()


def test_shipped_nano_voice_has_voices_and_says_a_sentence(shipped):
    assert len(shipped.voices) >= 4
    spoken = list(say(shipped, "Please close the window before you leave the room."))
    seconds = len(sound(spoken)) / shipped.rate
    assert 1.5 < seconds < 8
    assert np.abs(sound(spoken)).max() > 0.05


def test_shipped_weights_are_small(shipped):
    assert sum(path.stat().st_size for path in PACKAGED.iterdir()) < 40e6
    assert json.loads((PACKAGED / "nano.json").read_text())
