"""Miniature models in the exact layout of the released repositories, randomly initialised: every file and tensor name
of Step-Audio-TTS-3B, Step-Audio-EditX, Step-Audio-Chat and Step-Audio-Tokenizer, small widths."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from flow_models import DIT, UNET, flow_model
from lm_models import tiny_model, tiny_tokenizer
from oracles import released_campplus, released_tokenizer
from oracles.released_tokenizer import speech_like
from stepaudio.decoder.checkpoint import save_released
from stepaudio.decoder.vocoder import HIFT_22K, HIFT_24K, Hift, save_hift
from stepaudio.lm import checkpoint

SPEAKER_DIM = 12
SAID = "please write down what is said"


def write_tokenizer(folder: Path) -> Path:
    released_tokenizer.write(folder, released_tokenizer.Sizes())
    return folder


def write_chat(folder: Path) -> Path:
    """Step-Audio-Chat: a language model and its text tokenizer."""
    # Longer contexts than the model was made for are refused, so it is made for what the tests say.
    vocabulary = tiny_tokenizer().vocabulary.audio.stop
    checkpoint.save(tiny_model("bfloat16", vocab_size=-(-vocabulary // 64) * 64, max_seq_len=2048), folder)
    (folder / "tokenizer.model").write_bytes(tiny_tokenizer()._pieces.serialized_model_proto())
    return folder


def write_tts(folder: Path) -> Path:
    """Step-Audio-TTS-3B: both decoder folders of the 22.05 kHz generation."""
    write_chat(folder)
    for name in ("CosyVoice-300M-25Hz", "CosyVoice-300M-25Hz-Music"):
        _write_decoder(folder / name, UNET, HIFT_22K)
    return folder


def write_editx(folder: Path) -> Path:
    """Step-Audio-EditX: the decoder folder of the 24 kHz generation."""
    write_chat(folder)
    _write_decoder(folder / "CosyVoice-300M-25Hz", DIT, HIFT_24K)
    return folder


def _write_decoder(folder: Path, flow, hift) -> None:
    save_released(flow_model(dataclasses.replace(flow, mels=80, speaker=SPEAKER_DIM)), folder)
    torch.manual_seed(0)
    save_hift(Hift(dataclasses.replace(hift, channels=32, pitch_channels=8)), folder / "hift.pt")
    released_campplus.write(folder / "campplus.onnx", released_campplus.Sizes(dim=SPEAKER_DIM))


def write_voices(folder: Path) -> Path:
    """Voices as Step-Audio-TTS-3B comes with them: one, and how it raps."""
    folder.mkdir()
    for seed, name in enumerate(("Ting", "TingRAP")):
        soundfile.write(folder / f"{name}_prompt.wav", clip(seed=seed), 16_000)
    (folder / "speakers_info.json").write_text(json.dumps({"Ting": SAID, "TingRAP": SAID}))
    return folder


def clip(seconds: float = 1.2, seed: int = 0) -> np.ndarray:
    """Sound with silence around it, 16 kHz."""
    return np.pad(speech_like(seconds, seed), 4000)
