"""A k-means codebook on any encoder's outputs: how the linguistic codebook is made.

Vectors come as blocks from a source that can be read again, so hours of speech need no memory. One iteration
is one pass: every vector is counted to its nearest centroid, then centroids move to their means. A centroid
that nobody chose restarts at a vector of the worst-coded block. Iterations are exact and repeatable, and a
run resumes after its last whole iteration.

Shapes: N vectors, K centroids, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepaudio.data.manifest import Utterance
from stepaudio.errors import InputError
from stepaudio.files import replacing
from stepaudio.tokenizer.lfr import LfrFrontend
from stepaudio.tokenizer.quantize import Codebook
from stepaudio.tokenizer.sanm import SanmEncoder
from stepaudio.train.codes import perplexity, usage
from stepaudio.train.speech import samples

Blocks = Callable[[], Iterable[Tensor]]
"""Gives the same vectors [N, D], block by block, each time it is called."""


def fit_codebook(
    blocks: Blocks,
    codes: int,
    *,
    iterations: int = 30,
    seed: int = 0,
    checkpoint: Path | None = None,
    log: Callable[[dict[str, Any]], None] = lambda line: None,
) -> Codebook:
    """K-means centroids [codes, D]. `log` gets error (mean squared distance), usage and perplexity per
    iteration.

    With `checkpoint`, the state is written there after each iteration, and a file that is there is continued.
    Raises InputError when there are fewer vectors than codes.
    """
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if (state["codes"], state["seed"]) != (codes, seed):
            raise InputError(f"{checkpoint} is of another run: remove it or choose another name")
        done, centroids_KD = int(state["done"]), state["centroids"]
    else:
        done, centroids_KD = 0, _start(blocks(), codes, np.random.default_rng(seed))
    for iteration in range(done, iterations):
        centroids_KD, line = _iterate(blocks(), centroids_KD, np.random.default_rng((seed, iteration)))
        log({"iteration": iteration + 1, **line})
        if checkpoint is not None:
            with replacing(checkpoint) as half:
                torch.save({"codes": codes, "seed": seed, "done": iteration + 1, "centroids": centroids_KD}, half)
    return Codebook(centroids_KD)


def _start(blocks: Iterable[Tensor], codes: int, rng: np.random.Generator) -> Tensor:
    """k-means++ centroids on a sample: each next one is a vector drawn in proportion to its squared distance."""
    sample_ND = _draw(blocks, 20 * codes, rng)
    if len(sample_ND) < codes:
        raise InputError(f"{codes} codes need as many vectors; there are {len(sample_ND)}")
    chosen = [int(rng.integers(len(sample_ND)))]
    distance_N = torch.full((len(sample_ND),), torch.inf)
    while len(chosen) < codes:
        newest_N = (sample_ND - sample_ND[chosen[-1]]).square().sum(dim=1)
        distance_N = torch.minimum(distance_N, newest_N)
        odds = distance_N.double().numpy() + 1e-12  # equal vectors are all that is left: any will do
        chosen.append(int(rng.choice(len(odds), p=odds / odds.sum())))
    return sample_ND[chosen]


def _draw(blocks: Iterable[Tensor], size: int, rng: np.random.Generator) -> Tensor:
    """A uniform draw of up to `size` vectors from a source of unknown length, in one pass (reservoir sampling)."""
    kept: list[Tensor] = []
    seen = 0
    for block in blocks:
        for vector in block.float():
            seen += 1
            if len(kept) < size:
                kept.append(vector.clone())
            elif (place := int(rng.integers(seen))) < size:
                kept[place] = vector.clone()
    return torch.stack(kept) if kept else torch.zeros(0, 1)


def _iterate(
    blocks: Iterable[Tensor], centroids_KD: Tensor, rng: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    codebook = Codebook(centroids_KD)
    codes, dim = centroids_KD.shape
    sums_KD = torch.zeros(codes, dim, dtype=torch.float64)
    counts_K = torch.zeros(codes, dtype=torch.long)
    error, worst, worst_block = 0.0, -1.0, centroids_KD
    for block in blocks:
        x_ND = block.float()
        nearest_N = codebook.encode(x_ND)
        distance_N = (x_ND - codebook.decode(nearest_N)).square().sum(dim=1)
        error += float(distance_N.sum(dtype=torch.float64))
        counts_K += torch.bincount(nearest_N, minlength=codes)
        sums_KD.index_add_(0, nearest_N, x_ND.double())
        if len(x_ND) and float(distance_N.mean()) > worst:
            worst, worst_block = float(distance_N.mean()), x_ND
    moved_KD = (sums_KD / counts_K.clamp(min=1)[:, None]).float()
    dead = counts_K == 0
    if dead.any():
        drawn = torch.from_numpy(rng.integers(len(worst_block), size=int(dead.sum())))
        moved_KD[dead] = worst_block[drawn]
    counts: NDArray[np.int64] = counts_K.numpy()
    figures = {"error": error / counts.sum(), "usage": usage(counts), "perplexity": perplexity(counts)}
    return moved_KD, figures


# ---------------------------------------------------------------- encoders to cluster


@torch.inference_mode()
def encoder_vectors(frontend: LfrFrontend, encoder: SanmEncoder, utterances: Sequence[Utterance]) -> Iterator[Tensor]:
    """Outputs [T, D] of our own encoder, one block per utterance."""
    encoder.eval()
    for utterance in utterances:
        features = torch.from_numpy(frontend(samples(utterance)))[None]
        yield encoder(features, None, encoder.initial_state())[0][0]


def whisper_vectors(model: Any, utterances: Sequence[Utterance], *, every: int = 3) -> Iterator[Tensor]:
    """Outputs [T, D] of a frozen Whisper encoder (a `faster_whisper.WhisperModel`), one block per utterance.

    The mean of `every` of its 20 ms frames is one vector: 3 give the linguistic rate of 16.67 Hz. Clips are
    cut at the 30 s that Whisper hears.
    """
    from faster_whisper.audio import pad_or_trim

    for utterance in utterances:
        clip = samples(utterance)[: 30 * 16_000]
        encoded = np.array(model.encode(pad_or_trim(model.feature_extractor(clip))))[0]
        frames = len(clip) // 320 // every * every
        yield torch.from_numpy(encoded[:frames].reshape(-1, every, encoded.shape[1]).mean(axis=1).astype(np.float32))
