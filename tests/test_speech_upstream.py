"""Prompts are read out of source that has the shape of the released one; the sentences here are made up."""

import pytest

from lm_models import tiny_tokenizer
from stepaudio.errors import InputError
from stepaudio.lm.prompts import Prompts, Wording
from stepaudio.speech.step_audio.upstream import make_prompts

TTS = r"""
import torch
raise SystemExit("this was run")

class Model:
    def __init__(self):
        self.prompts = {
            "sys_prompt_for_rap": "rap it",
            "sys_prompt_for_vocal": "hum it",
            "sys_prompt_wo_spk": 'read "it"\nout',
            "sys_prompt_with_spk": "read it like [{}]",
            "other": "not a prompt",
        }
"""
PROMPTS = r"""
AUDIO_EDIT_SYSTEM_PROMPT = '''you edit
# Emotion
'''
AUDIO_EDIT_CLONE_SYSTEM_PROMPT_TPL = "be {speaker}, who says {prompt_text}: {prompt_wav_tokens}"
"""
EDIT = r"""
class Model:
    def _build_audio_edit_instruction(self, audio_text, edit_type, edit_info=None, text=None):
        audio_text = audio_text.strip() if audio_text else ""
        if edit_type in {"emotion", "speed"}:
            if edit_info == "remove":
                instruct_prefix = f"no emotion: {audio_text}\n"
            else:
                instruct_prefix=f"more {edit_info}: {audio_text}\n"
        elif edit_type == "style":
            if edit_info == "remove":
                instruct_prefix = f"no style: {audio_text}\n"
            else:
                instruct_prefix = f"{edit_info} style: {audio_text}\n"
        elif edit_type == "denoise":
            instruct_prefix = f"no noise"
        elif edit_type == "vad":
            instruct_prefix = "no silence"
        elif edit_type == "paralinguistic":
            instruct_prefix = f"say {text} for {audio_text}\n"
        else:
            raise ValueError(edit_type)
        return instruct_prefix
"""


def wording(folder, **files):
    for name, source in files.items():
        (folder / f"{name}.py").write_text(source)
    (folder / "prompts.toml").write_bytes(make_prompts(folder))
    return Wording.read(folder / "prompts.toml")


def test_prompts_of_the_speaking_model(tmp_path):
    found = wording(tmp_path, tts=TTS)
    assert (found.rap, found.hum, found.speak) == ("rap it", "hum it", 'read "it"\nout')
    assert found.speak_named == "read it like [{speaker}]"
    assert found.chat == Wording().chat


def test_prompts_of_the_editing_model(tmp_path):
    found = wording(tmp_path, prompts=PROMPTS, tts=EDIT)
    assert found.edit == "you edit\n# Emotion\n"
    assert found.clone == "be {name}, who says {text}: {audio}"
    assert found.edit_emotion == found.edit_speed == "more {option}: {text}\n\n"
    assert (found.edit_emotion_remove, found.edit_style_remove) == ("no emotion: {text}\n\n", "no style: {text}\n\n")
    assert found.edit_style == "{option} style: {text}\n\n"
    assert (found.edit_denoise, found.edit_trim) == ("no noise\n", "no silence\n")
    assert found.edit_paralinguistic == "say {target} for {text}\n\n"


def test_prompts_are_what_the_released_code_builds(tmp_path):
    """Token for token: parts encoded as the released code encodes them."""
    tokenizer = tiny_tokenizer()
    audio = [tokenizer.vocabulary.text, tokenizer.vocabulary.text + 1024]
    prompts = Prompts(tokenizer, wording(tmp_path, prompts=PROMPTS, tts=EDIT))
    turn = [*tokenizer.encode("more sad: hi\n\n"), *audio, *tokenizer.encode_continuation("\n")]
    system = tokenizer.encode("system\nyou edit\n# Emotion\n")
    human, assistant = tokenizer.encode("human\n"), tokenizer.encode("assistant\n")
    expected = [1, 4, *system, 3, 4, *human, *turn, 3, 4, *assistant]
    assert prompts.edit("emotion", audio, text="hi", option="sad") == expected


def test_other_files_are_refused(tmp_path):
    (tmp_path / "tts.py").write_text("x = 1")
    with pytest.raises(InputError, match="rearranged"):
        make_prompts(tmp_path)
    (tmp_path / "tts.py").write_text("x = ")
    with pytest.raises(InputError, match="not Python"):
        make_prompts(tmp_path)
