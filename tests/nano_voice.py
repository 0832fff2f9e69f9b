"""nano-voice in miniature: a folder of untrained models, small enough for tests."""

import numpy as np
import torch

from stepaudio.decoder.dit import DiTConfig
from stepaudio.decoder.encoder import EncoderConfig
from stepaudio.decoder.flow import FlowConfig
from stepaudio.decoder.timbre import TimbreConfig
from stepaudio.decoder.vocos import VOCODER, Vocos, VocosConfig, save_vocos
from stepaudio.lm import checkpoint
from stepaudio.lm.nano import NanoVocabulary, save_vocabulary
from stepaudio.lm.step1 import Config, Step1
from stepaudio.speech.nano_voice.decoder import VOICES, save_voices
from stepaudio.speech.roles import Voice
from stepaudio.train.flow import FlowTraining, new_speech, save_speech

FLOW = FlowConfig(
    estimator=DiTConfig(dim=16, depth=1, heads=2, head_dim=8, ffn=32, frequencies=8),
    encoder=EncoderConfig(dim=16, heads=2, ffn=32, blocks=1, up_blocks=1),
    embedding=16,
    speaker=8,
    mel_mean=-5.0,
    mel_std=3.0,
)
TRAINING = FlowTraining(FLOW, TimbreConfig(dim=8, layers=2, speaker=8), batch_seconds=4.0)
VOCOS = VocosConfig(n_fft=960, hop=240, upsample=2, dim=16, hidden=32, blocks=1, ahead=2)
VOICE_NAMES = ("anna", "bert")


def folder(path):
    """Every file of nano-voice, of models that know nothing."""
    torch.manual_seed(0)
    speech = new_speech(TRAINING)
    torch.nn.init.normal_(speech.flow.estimator.final_layer.linear.weight, std=0.2)  # speakers shall differ
    torch.nn.init.normal_(speech.flow.spk_embed_affine_layer.weight)
    save_speech(speech, path)
    save_vocos(Vocos(VOCOS), path / VOCODER)
    save_voices(path / VOICES, {Voice(name, ("en",), "nobody"): torch.randn(8) for name in VOICE_NAMES})
    vocabulary = NanoVocabulary(" IɪkæthɛlOnsðəɹdŋA")
    model = Step1(Config(vocabulary.size, 32, 64, 1, 2, 2, max_seq_len=512)).initialise(0)
    checkpoint.save(model, path)
    save_vocabulary(path, vocabulary)
    return path


def tone(seconds, hertz=220.0, rate=24_000):
    time = np.arange(round(seconds * rate)) / rate
    harmonics = [np.sin(2 * np.pi * hertz * n * time) / n for n in range(1, 9)]
    return (0.2 * np.sum(harmonics, axis=0)).astype(np.float32)
