"""Miniature checkpoints in the released layout, from text to sound and from a clip to its voice."""

from threading import Event

import numpy as np
import pytest
import torch

from released_models import SAID, clip, write_chat, write_editx, write_tokenizer, write_tts, write_voices
from stepaudio.errors import AudioError, Cancelled, InputError, MissingError, NotFoundError, TextError
from stepaudio.speech.clone import clone, edit
from stepaudio.speech.prompts import with_audio
from stepaudio.speech.roles import (
    Cloner,
    Edit,
    Editor,
    Finish,
    HearingResponder,
    Message,
    Reference,
    Sampling,
    StyledSpeaker,
    TextDelta,
)
from stepaudio.speech.say import say
from stepaudio.speech.step_audio import model as models
from stepaudio.speech.step_audio.listener import StepAudioResponder, StepAudioTranscriber
from stepaudio.speech.step_audio.speaker import StepAudioEditor, StepAudioTts
from stepaudio.speech.step_audio.voices import list_voices

TEXT = "please write down what is said in the audio, word for word."


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("released")
    write_tokenizer(home / "tokenizer")
    write_voices(home / "voices")
    return home


@pytest.fixture(scope="module")
def tts(home):
    speaker = StepAudioTts(
        write_tts(home / "tts"), home / "tokenizer", voices=home / "voices", steps=2, seed=1, languages=["en", "zh"]
    )
    yield speaker
    speaker.close()


@pytest.fixture(scope="module")
def editx(home):
    speaker = StepAudioEditor(write_editx(home / "editx"), home / "tokenizer", steps=2, seed=1, languages=["en"])
    yield speaker
    speaker.close()


@pytest.fixture(scope="module")
def reference():
    return Reference(clip(seed=3), 16_000, SAID)


def samples_of(speech):
    return np.concatenate([chunk.samples for chunk in speech])


def test_text_to_sound(tts):
    assert (tts.rate, [voice.name for voice in tts.voices]) == (22_050, ["Ting"])
    chunks = list(say(tts, TEXT))
    assert "".join(chunk.text for chunk in chunks) == TEXT
    sound = samples_of(chunks)
    assert np.isfinite(sound).all()
    assert sound.std() > 1e-4
    assert len(sound) >= 0.12 * tts.rate


def test_the_same_seed_says_the_same(tts):
    np.testing.assert_array_equal(samples_of(say(tts, TEXT)), samples_of(say(tts, TEXT)))


def test_the_first_sound_comes_while_the_model_still_writes(tts):
    """The generation behind a clause has not ended when its first chunk is there."""
    chunks = tts.speak("the quick brown fox jumps over the lazy dog and runs away " * 3, voice="Ting")
    first = next(chunks)
    assert len(first.samples)
    assert tts._lm.engine._running
    chunks.close()


def test_speed_changes_the_length_by_that_much(tts):
    usual, fast = (samples_of(tts.speak(TEXT, voice="Ting", speed=speed)) for speed in (1.0, 2.0))
    assert len(fast) == pytest.approx(len(usual) / 2, abs=tts.rate / 50)


def test_cancelling_ends_it(tts):
    cancel = Event()
    chunks = tts.speak(TEXT, voice="Ting", cancel=cancel)
    cancel.set()
    with pytest.raises(Cancelled):
        list(chunks)


def test_styles_and_labels_reach_the_prompt(tts):
    assert isinstance(tts, StyledSpeaker)
    seen = prompts_of(tts)
    list(say(tts, "（四川话）hello there. the dog runs away."))
    assert [text for text, _ in seen] == ["(四川话)hello there.", "(四川话)the dog runs away."]
    seen.clear()
    chunks = list(say(tts, "hello there.", style="tired and slow"))
    assert [text for text, _ in seen] == ["(tired and slow)hello there."]
    assert "".join(chunk.text for chunk in chunks) == "hello there."


def test_rap_takes_the_voice_that_raps_and_the_music_decoder(tts):
    seen = prompts_of(tts)
    list(say(tts, "(RAP)hello there."))
    assert seen == [("(RAP)hello there.", "Ting")]
    assert set(tts._prompts["TingRAP"].decoded) == {"CosyVoice-300M-25Hz-Music"}


def prompts_of(speaker):
    """(text, voice) of every prompt that is made from now on."""
    seen, build = [], type(speaker)._prompt_ids

    def note(text, prompt, name):
        seen.append((text, name))
        return build(speaker, text, prompt, name)

    speaker._prompt_ids = note
    return seen


def test_bad_texts_and_voices_are_refused(tts):
    with pytest.raises(NotFoundError, match="Tingting"):
        list(tts.speak("hello", voice="Tingting"))
    with pytest.raises(TextError, match="nothing to say"):
        list(tts.speak("(happy)", voice="Ting"))
    with pytest.raises(InputError, match="style"):
        say(tts, "hello", style="(loud)")


# ---------------------------------------------------------------- clone and edit


@pytest.mark.parametrize("name", ["tts", "editx"])
def test_a_clip_to_its_voice(name, reference, request):
    speaker = request.getfixturevalue(name)
    assert isinstance(speaker, Cloner)
    chunks = list(clone(speaker, reference, TEXT))
    assert "".join(chunk.text for chunk in chunks) == TEXT
    assert samples_of(chunks).std() > 1e-4
    other = samples_of(clone(speaker, Reference(clip(seed=9), 16_000, SAID), TEXT))
    assert len(other) != len(samples_of(chunks)) or not np.allclose(other, samples_of(chunks))


def test_a_model_without_voices_says_what_to_do(editx):
    with pytest.raises(NotFoundError, match="stepaudio clone"):
        say(editx, "hello")


@pytest.mark.parametrize(
    "change",
    [
        Edit("emotion", "happy"),
        Edit("style", "whisper"),
        Edit("speed", "faster"),
        Edit("paralinguistic", text="[sigh] please write"),
        Edit("denoise"),
        Edit("trim"),
    ],
)
def test_edits(editx, reference, change):
    assert isinstance(editx, Editor)
    edited = edit(editx, reference, [change])
    assert edited.std() > 1e-4


def test_edits_one_after_the_other(editx, reference):
    once = edit(editx, reference, [Edit("emotion", "happy")])
    assert len(once) >= 0.12 * editx.rate
    again = edit(editx, Reference(np.resize(once, 2 * editx.rate), editx.rate, SAID), [Edit("denoise")])
    assert again.std() > 1e-4


def test_edits_that_cannot_be(editx, tts, reference):
    with pytest.raises(InputError, match="sleepy"):
        edit(editx, reference, [Edit("emotion", "sleepy")])
    with pytest.raises(InputError, match="no edit"):
        edit(editx, reference, [])
    with pytest.raises(InputError, match="step-audio-editx"):
        edit(tts, reference, [Edit("denoise")])
    with pytest.raises(AudioError, match="30 s"):
        edit(editx, Reference(np.resize(clip(), 31 * 16_000), 16_000, SAID), [Edit("denoise")])


def test_clips_that_cannot_be(tts):
    with pytest.raises(TextError, match="transcript"):
        tts.cloned(Reference(clip(), 16_000, " "))
    with pytest.raises(AudioError, match="silent"):
        tts.cloned(Reference(np.zeros(16_000, np.float32), 16_000, SAID))


# ---------------------------------------------------------------- hear and answer


@pytest.fixture(scope="module")
def chat(home):
    return write_chat(home / "chat")


def test_sound_to_text(home, chat):
    transcriber = StepAudioTranscriber(chat, home / "tokenizer", languages=["en", "zh"])
    heard = transcriber.transcribe(clip())
    assert heard.duration == pytest.approx(len(clip()) / 16_000)
    assert heard.language in ("en", "zh")
    assert "<audio" not in heard.text
    with pytest.raises(InputError, match="30 s"):
        transcriber.transcribe(np.zeros(31 * 16_000, np.float32))
    with pytest.raises(InputError, match="'de'"):
        transcriber.transcribe(clip(), language="de")
    transcriber.close()


def test_a_spoken_question_is_heard_as_audio(home, chat):
    responder = StepAudioResponder(chat, home / "tokenizer")
    asked = [Message("system", "be brief"), Message("user", "what is said")]
    spoken = [asked[0], Message("user", "what is said", audio=clip())]
    ids = responder._prompt(spoken, ())
    audio = responder._lm.hear(clip())
    assert any(ids[i : i + len(audio)] == audio for i in range(len(ids)))
    assert responder.count_tokens(asked) < responder.count_tokens(spoken)
    for messages in (asked, spoken):
        *text, finish = responder.respond(messages, sampling=Sampling(max_tokens=12, temperature=0.7, seed=1))
        assert all(isinstance(event, TextDelta) for event in text)
        assert isinstance(finish, Finish)
        assert finish.prompt_tokens == responder.count_tokens(messages)
        assert finish.completion_tokens <= 12
    with pytest.raises(InputError, match="shorten"):
        list(responder.respond([Message("user", "the quick brown fox " * 2000)]))
    responder.close()


def test_what_was_read_ahead_is_not_read_again(home, chat):
    responder = StepAudioResponder(chat, home / "tokenizer")
    assert isinstance(responder, HearingResponder)
    told = [Message("system", "be brief"), Message("user", "hello"), Message("assistant", "hello there")]
    assert responder.warm(told, words="what is") is None
    asked = with_audio([*told, Message("user", "what is said")], responder, clip())
    *_, finish = responder.respond(asked, sampling=Sampling(max_tokens=1))
    assert finish.cached_tokens >= responder.count_tokens(told) - 8  # but for how a reply is opened
    responder.close()


def test_only_the_last_turn_is_heard_and_only_what_can_be(home, chat):
    responder = StepAudioResponder(chat, home / "tokenizer")
    told = [Message("user", "one"), Message("assistant", "two"), Message("user", "three"), Message("tool", "four")]
    heard = with_audio(told, responder, clip())
    assert [message.audio is not None for message in heard] == [False, False, True, False]
    assert with_audio(told, responder, np.zeros(31 * 16_000, np.float32)) is told
    assert with_audio(told[1:2], responder, clip()) == told[1:2]
    short = with_audio(told[:1], responder, clip()[:200])
    assert responder._prompt(short, ()) == responder._prompt(told[:1], ())
    responder.close()


def test_roles_share_one_model(home, chat):
    first = StepAudioTranscriber(chat, home / "tokenizer")
    second = StepAudioResponder(chat, home / "tokenizer")
    assert first._lm is second._lm
    first.close()
    list(second.respond([Message("user", "hello")], sampling=Sampling(max_tokens=2)))
    second.close()
    assert not any(key[0] == chat for key in models._open)


# ---------------------------------------------------------------- clips


def test_voices_on_disk(home, tmp_path):
    assert list(list_voices(home / "voices")) == ["Ting", "TingRAP"]
    with pytest.raises(MissingError, match="does not exist"):
        list_voices(tmp_path / "none")
    (tmp_path / "anna.wav").write_bytes(b"")
    with pytest.raises(MissingError, match="write into it what is said"):
        list_voices(tmp_path)
    (tmp_path / "anna.txt").write_text("hello\n")
    assert list_voices(tmp_path) == {"anna": (tmp_path / "anna.wav", "hello")}
