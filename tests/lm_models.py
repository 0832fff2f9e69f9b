"""Small models and a tokenizer in the exact released layout, made on the spot."""

from __future__ import annotations

import io
from functools import cache

import sentencepiece
import torch

from stepaudio.lm.quantize import quantize
from stepaudio.lm.step1 import Config, Step1, preset
from stepaudio.lm.text import SPECIALS, TextTokenizer

KINDS = ("float32", "bfloat16", "int8")


def tiny_config(**changes: object) -> Config:
    """Two layers, six heads in two groups: not a power of two, like the released models."""
    small = {"hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 6}
    return preset("nano", **{**small, "head_dim": 32, "vocab_size": 5440, **changes})


def tiny_model(kind: str = "float32", seed: int = 0, **changes: object) -> Step1:
    # Larger weights than a fresh model has, so that attention is sharp and mistakes in it show.
    model = Step1(tiny_config(**changes)).initialise(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    if kind == "float32":
        return model
    model.bfloat16()
    if kind == "int8":
        quantize(model, "int8")
    return model


SENTENCES = [
    "the quick brown fox jumps over the lazy dog and runs away",
    "please write down what is said in the audio, word for word",
    "a helpful assistant answers briefly in the language of the user",
    "system human assistant function_output tool_json_schemas input",
    "read the text aloud in the voice of the speaker, happy or sad",
    "你好，今天天气怎么样？我们一起去公园走走吧。",
]


@cache
def tiny_tokenizer() -> TextTokenizer:
    """400 pieces with the released special ids; no normalisation, so that newlines and spaces survive."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        control_symbols=list(SPECIALS)[3:],
        user_defined_symbols=["\n"],
        minloglevel=2,
    )
    return TextTokenizer(model.getvalue())
