"""Any Hugging Face causal language model as the start: its text, with the audio vocabulary added.

Only safetensors are read, and no code that comes with a model is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stepaudio.errors import InputError, MissingError
from stepaudio.lm.grammar import Vocabulary
from stepaudio.lm.text import TextTokenizer
from stepaudio.train.lm import Scorer
from stepaudio.train.world import World


class HfText(TextTokenizer):
    """A Hugging Face tokenizer where one of SentencePiece is expected; the audio block begins behind its last id.

    Its end-of-text token ends turns and opens them, unless it has a token that begins a sequence.
    """

    def __init__(self, folder: Path) -> None:
        auto = _transformers().AutoTokenizer
        try:
            self.tokenizer: Any = auto.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} has no tokenizer that can be read: {error}") from error
        end = self.tokenizer.eos_token_id
        if end is None:
            raise InputError(f"the tokenizer of {folder} has no token that ends a text")
        begin = end if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        unknown = end if self.tokenizer.unk_token_id is None else self.tokenizer.unk_token_id
        self.vocabulary = Vocabulary(len(self.tokenizer), unk=unknown, bos=begin, eot=end, bot=begin)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    encode_continuation = encode

    def decode(self, ids: Iterable[int]) -> str:
        parts = []
        for id in ids:
            audio = id in self.vocabulary.audio
            parts.append(f"<audio_{id - self.vocabulary.text}>" if audio else self.tokenizer.decode([id]))
        return "".join(parts)


class HfScorer(Scorer):
    """A causal language model of transformers. Documents are rows of a padded batch: whatever its attention is, they
    cannot see each other."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.lm = model

    @classmethod
    def load(cls, folder: Path, vocabulary: int) -> HfScorer:
        """Read a model and let it know `vocabulary` ids; new ones begin near the mean of the others.

        Raises InputError for a folder that holds none.
        """
        auto = _transformers().AutoModelForCausalLM
        try:
            model = auto.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no causal language model that can be read: {error}") from error
        if model.get_input_embeddings().num_embeddings < vocabulary:
            model.resize_token_embeddings(vocabulary, pad_to_multiple_of=64)
        return cls(model)

    def forward(self, tokens_1T: Tensor, lengths: Sequence[int], places_N: Tensor) -> Tensor:
        rows = tokens_1T[0].split(list(lengths))  # type: ignore[no-untyped-call]
        tokens_BT = pad_sequence(list(rows), batch_first=True)
        lengths_B = torch.tensor(lengths, device=tokens_BT.device)
        real_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < lengths_B[:, None]
        hidden_BTC = self.lm.get_decoder()(input_ids=tokens_BT, attention_mask=real_BT.long(), use_cache=False)[0]
        logits_NV: Tensor = self.lm.get_output_embeddings()(hidden_BTC[real_BT][places_N])
        return logits_NV

    def blocks(self) -> Iterable[nn.Module]:
        layers: Iterable[nn.Module] = self.lm.get_decoder().layers
        return layers

    def vocabulary_weights(self) -> Sequence[Tensor]:
        weights = (self.lm.get_input_embeddings().weight, self.lm.get_output_embeddings().weight)
        return weights[:1] if weights[0] is weights[1] else weights

    def flops(self, lengths: Sequence[int], trained: int) -> float:
        c = self.lm.config
        body = sum(parameter.numel() for block in self.blocks() for parameter in block.parameters())
        attention: float = 2 * c.num_hidden_layers * c.hidden_size * sum(n * n for n in lengths)
        head: int = self.lm.get_output_embeddings().weight.numel()
        return 3.0 * (2 * body * sum(lengths) + attention + 2 * head * trained)

    def save(self, folder: Path, world: World) -> None:
        tensors = {name: world.whole(tensor) for name, tensor in self.lm.state_dict().items()}
        if world.first:
            self.lm.save_pretrained(folder, state_dict=tensors)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingError("a Hugging Face model needs transformers; run: pip install 'stepaudio[hf]'") from error
    return transformers
