"""How fast the metrics are: `python benchmarks/metrics.py [--utterances 10000]`.

Utterances of twelve words and of fifteen Chinese characters, a fifth of them wrong, are normalised, aligned and
averaged with their intervals, as `stepaudio eval` does it, in one process a core. Also reports what one utterance of
four seconds costs by the metrics that hear it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from stepaudio.eval.metrics import pitch, signal
from stepaudio.eval.metrics.errors import Errors, count_errors
from stepaudio.eval.metrics.intervals import paired, ratio
from stepaudio.eval.normalise import find

WORDS = [
    *("the", "a", "house", "river", "colour", "twenty-one", "Mr.", "don't", "walking", "because", "mountain", "$5"),
    *("quickly", "three", "hundred", "it's", "neighbour", "morning", "yesterday", "bright", "answered", "1999"),
]
HAN = "今天的天气非常好我们去公园散步吧他昨天买了三本书请你慢一点儿说话"
RATE = 16_000


def sentences(language: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of reference and hypothesis."""
    rng = np.random.default_rng(seed)
    units, length, joint = (WORDS, 12, " ") if language == "en" else (list(HAN), 15, "")
    pairs = []
    for _ in range(count):
        said = rng.choice(units, length)
        heard = np.where(rng.random(length) < 0.2, rng.choice(units, length), said)
        pairs.append((joint.join(said), joint.join(heard)))
    return pairs


def score(language: str, pairs: list[tuple[str, str]]) -> list[Errors]:
    normal = find(None, language)
    return [count_errors(normal.tokens(said), normal.tokens(heard)) for said, heard in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=10_000)
    count = parser.parse_args().utterances
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores) as pool:
        for language in ("en", "zh"):
            pairs = sentences(language, count, 0)
            started = time.perf_counter()
            parts = [pairs[first::cores] for first in range(cores)]
            errors = [each for part in pool.map(score, [language] * cores, parts) for each in part]
            scored = time.perf_counter() - started
            totals, lengths = [each.total for each in errors], [each.length for each in errors]
            rate = ratio(totals, lengths)
            paired(totals, totals[::-1], (lengths, lengths[::-1]))
            taken = time.perf_counter() - started
            print(
                f"{language}: {count} utterances in {taken:.1f} s ({scored:.1f} s of it normalising and aligning), "
                f"{rate.value:.1%} [{rate.low:.2%}, {rate.high:.2%}]"
            )
    rng = np.random.default_rng(0)
    clean = (rng.normal(0, 0.1, 4 * RATE) * np.hanning(4 * RATE)).astype(np.float32)
    noisy = clean + rng.normal(0, 0.01, len(clean)).astype(np.float32)
    hearing: dict[str, Callable[[], object]] = {
        "STOI": lambda: signal.stoi(clean, noisy),
        "PESQ": lambda: signal.pesq(clean, noisy),
        "SI-SDR": lambda: signal.si_sdr(clean, noisy),
        "F0": lambda: pitch.statistics(clean),
    }
    for name, measure in hearing.items():
        measure()  # imports its library
        started = time.perf_counter()
        measure()
        measure()
        print(f"{name}: {(time.perf_counter() - started) / 2 * 1000:.0f} ms for 4 s")


if __name__ == "__main__":
    main()
