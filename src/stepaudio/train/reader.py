"""The reader: what turns the codes of the semantic branch back into text.

It is the upper half of the recogniser that trains the tokenizer, sees whole utterances in both directions, and is kept
beside the tokenizer, with a lexicon, because it measures what the codes still say (`stepaudio eval codes`).

Shapes: B utterances, T frames, D width, V pieces.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stepaudio.errors import InputError, MissingError
from stepaudio.files import save_tensors
from stepaudio.tokenizer.sanm import sinusoids
from stepaudio.train.lexicon import SILENCE, Lexicon
from stepaudio.train.pieces import BLANK, join

FILE = "reader.safetensors"


@dataclass(frozen=True)
class ReaderConfig:
    """Sizes. `phonemes_per_frame` places in each frame are read as one of a number of phonemes."""

    width: int = 192
    blocks: int = 3
    kernel: int = 15
    phonemes_per_frame: int = 2
    dropout: float = 0.0

    @property
    def heads(self) -> int:
        """Of 48 dimensions or more."""
        return max(1, self.width // 48)


class Reader(nn.Module):
    """Quantised frames [B, T, D] to frames that know their utterance; from them pieces by CTC and phonemes in time."""

    def __init__(self, config: ReaderConfig, vocabulary: int, phonemes: int) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.blocks)])
        self.norm = nn.LayerNorm(config.width)
        self.ctc = nn.Linear(config.width, vocabulary)
        self.phonemes = nn.Linear(config.width, config.phonemes_per_frame * phonemes) if phonemes else None

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        positions = sinusoids(torch.zeros_like(lengths_B), x_BTD.shape[1], self.config.width)
        real_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) < lengths_B[:, None]
        x_BTD = x_BTD + positions.to(x_BTD.dtype)
        for block in self.blocks:
            x_BTD = block(x_BTD, real_BT)
        y_BTD: Tensor = self.norm(x_BTD)
        return y_BTD

    def scores(self, x_BTD: Tensor) -> Tensor:
        """Log-probabilities of the pieces [B, T, V]."""
        scores: Tensor = self.ctc(x_BTD).float()
        return scores.log_softmax(dim=-1)


class _Block(nn.Module):
    """Self-attention, depthwise convolution and feed-forward, each pre-normed: a light Conformer (arXiv 2005.08100)."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.gate = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, config.kernel, padding=config.kernel // 2, groups=width)
        self.pointwise = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, real_BT: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self._attend(self.norm1(x_BTD), real_BT))
        gated = F.glu(self.gate(self.norm2(x_BTD))) * real_BT[..., None]
        convolved = self.depthwise(gated.transpose(1, 2)).transpose(1, 2)
        x_BTD = x_BTD + self.dropout(self.pointwise(F.silu(convolved)))
        y_BTD: Tensor = x_BTD + self.dropout(self.down(F.silu(self.up(self.norm3(x_BTD)))))
        return y_BTD

    def _attend(self, x_BTD: Tensor, real_BT: Tensor) -> Tensor:
        b, t, d = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=real_BT[:, None, None])
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return y


@dataclass(frozen=True)
class Literate:
    """A reader with what its outputs stand for, how much of the time each phoneme takes [P], and the words it knows."""

    reader: Reader
    pieces: list[str]
    phonemes: list[str]
    shares: NDArray[np.float32]
    lexicon: Lexicon

    @torch.inference_mode()
    def read(self, vectors_TD: Tensor) -> Reading:
        """What one utterance's quantised frames say."""
        x_BTD = self.reader(vectors_TD[None], torch.tensor([len(vectors_TD)]))
        text = greedy(self.reader.scores(x_BTD)[0], self.pieces)
        if self.reader.phonemes is None:
            return Reading(text, None, None)
        scores = self.reader.phonemes(x_BTD).float().view(-1, len(self.phonemes)).log_softmax(dim=-1)
        heard = torch.unique_consecutive(scores.argmax(dim=-1)).tolist()
        phonemes = "".join(self.phonemes[i] for i in heard).replace(SILENCE, "")
        # What the sound says for a phoneme is more than how likely it is: a rare one is likely by its sound alone.
        evidence = scores.numpy() - _SHARE_WEIGHT * np.log(self.shares)
        return Reading(text, phonemes, self.lexicon.decode(evidence, self.phonemes))


def greedy(scores_TV: Tensor, pieces: list[str]) -> str:
    """CTC's text of one utterance, the best piece of each frame."""
    best = torch.unique_consecutive(scores_TV.argmax(dim=-1))
    return join(pieces, best[best != BLANK].tolist())


@dataclass(frozen=True)
class Reading:
    """Text written piece by piece; where phonemes were taught, these and the words of the lexicon that they make."""

    text: str
    phonemes: str | None
    words: str | None


def save_reader(path: Path, known: Literate, *, dtype: torch.dtype = torch.float16) -> None:
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in known.reader.state_dict().items()}
    lexicon = known.lexicon
    numbers = {"counts": lexicon.counts, "pairs": lexicon.pairs, "pair_counts": lexicon.pair_counts}
    tensors |= {_LEXICON + name: torch.from_numpy(array).int() for name, array in numbers.items()}
    tensors["shares"] = torch.from_numpy(known.shares)
    facts = {
        "config": asdict(known.reader.config),
        "pieces": known.pieces,
        "phonemes": known.phonemes,
        "entries": lexicon.entries,
    }
    save_tensors(tensors, path, {"reader": json.dumps(facts, ensure_ascii=False)})


def load_reader(path: Path) -> Literate:
    """Raises MissingError without the file and InputError when it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingError(f"{path} is missing: this tokenizer has no reader to measure it with")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["reader"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        shares = tensors.pop("shares").numpy()
        numbers = [tensors.pop(_LEXICON + name).long().numpy() for name in ("counts", "pairs", "pair_counts")]
        reader = Reader(ReaderConfig(**facts["config"]), len(facts["pieces"]), len(facts["phonemes"]))
        reader.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        lexicon = Lexicon(tuple((word, sound) for word, sound in facts["entries"]), *numbers)
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} is not a reader, or is damaged: {error}") from error
    return Literate(reader.eval(), list(facts["pieces"]), list(facts["phonemes"]), shares, lexicon)


_LEXICON = "lexicon."
_SHARE_WEIGHT = 0.6
"""How much of a phoneme's share is taken out of its probability; chosen on the split `dev`."""
