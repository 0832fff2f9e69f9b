"""How sure a figure is: 95 % intervals for one system, and tests between two that met the same items.

Every item gives a numerator and a denominator. An error rate sums errors over tokens; a mean or a share has a
denominator of one an item. Items of one cluster (a speaker, a dialogue, one question asked with several seeds) are not
independent: intervals resample or sum whole clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stepaudio.errors import InputError

ROUNDS = 2000
_AT_ONCE = 4_000_000
"""Resampled values held at once."""
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, its 95 % interval (None when there is too little to tell), over how many items and clusters, and how
    the interval was found."""

    value: float
    low: float | None
    high: float | None
    n: int
    clusters: int
    method: str


def ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Estimate:
    """Sum over sum, with a percentile bootstrap over items or clusters (Bisani and Ney 2004). Raises InputError."""
    top, bottom, n = _grouped(numerators, denominators, clusters)
    value = float(top.sum() / bottom.sum())
    if len(top) < 2:
        return Estimate(value, None, None, n, len(top), "one cluster")
    resampled = _resampled(np.stack([top, bottom]), rounds, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = resampled[0] / resampled[1]
    low, high = np.nanpercentile(rates, [2.5, 97.5])
    return Estimate(value, float(low), float(high), n, len(top), f"bootstrap, {rounds} rounds")


def mean(values: ArrayLike, clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The mean with a t interval; its standard error sums residuals by cluster (Miller 2024, arXiv 2411.00640)."""
    from scipy import stats

    known = np.asarray(values, np.float64)
    if known.size == 0:
        raise InputError("there is nothing to take a mean of")
    sums, sizes, n = _grouped(known, np.ones_like(known), clusters)
    value = float(known.mean())
    count = len(sums)
    if count < 2:
        return Estimate(value, None, None, n, count, "one cluster")
    residuals = sums - sizes * value
    error = math.sqrt(float((residuals**2).sum()) * count / (count - 1)) / n
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    return Estimate(value, value - reach, value + reach, n, count, "t" if count == n else "clustered t")


def share(hits: Sequence[bool], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The share of hits with Wilson's interval. Items in clusters count for as many independent ones as would have the
    same standard error, at least one a cluster; where all are alike there is none, and a cluster counts for one."""
    n = len(hits)
    if n == 0:
        raise InputError("there is nothing to take a share of")
    p, count, size = sum(hits) / n, n, float(n)
    if clusters is not None and (count := len(set(clusters))) < n:
        sums, sizes, _ = _grouped(np.asarray(hits, np.float64), np.ones(n), clusters)
        variance = float(((sums - sizes * p) ** 2).sum()) * count / max(1, count - 1) / n**2
        size = min(float(n), max(float(count), p * (1 - p) / variance)) if variance else float(count)
    centre = (p + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    reach = _Z * math.sqrt(p * (1 - p) / size + _Z**2 / (4 * size**2)) / (1 + _Z**2 / size)
    method = "Wilson" if count == n else "Wilson, clustered"
    return Estimate(p, max(0.0, centre - reach), min(1.0, centre + reach), n, count, method)


def median(
    values: ArrayLike, clusters: Sequence[Hashable] | None = None, *, rounds: int = ROUNDS, seed: int = 0
) -> Estimate:
    """The median, with a percentile bootstrap over items or clusters."""
    known = np.asarray(values, np.float64)
    if known.size == 0:
        raise InputError("there is nothing to take a median of")
    value = float(np.median(known))
    names = range(len(known)) if clusters is None else clusters
    groups: dict[Hashable, list[float]] = {}
    for name, each in zip(names, known, strict=True):
        groups.setdefault(name, []).append(float(each))
    if len(groups) < 2:
        return Estimate(value, None, None, len(known), len(groups), "one cluster")
    rng = np.random.default_rng(seed)
    parts = [np.array(part) for part in groups.values()]
    drawn = rng.integers(0, len(parts), (rounds, len(parts)))
    medians = [float(np.median(np.concatenate([parts[i] for i in row]))) for row in drawn]
    low, high = np.percentile(medians, [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(known), len(parts), f"bootstrap, {rounds} rounds")


@dataclass(frozen=True, slots=True)
class Difference:
    """Second system minus first, on the items both met: the difference and its interval, `p` of a two-sided test that
    there is none, and the share of resamples in which the second is the lower one."""

    value: float
    low: float
    high: float
    p: float
    second_lower: float
    n: int


def paired(
    first: ArrayLike,
    second: ArrayLike,
    denominators: tuple[ArrayLike, ArrayLike],
    clusters: Sequence[Hashable] | None = None,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Difference:
    """Compare two systems item by item. The interval is a paired bootstrap, `p` a permutation test that swaps the
    systems' results within random clusters (all swaps, when there are few enough)."""
    a, da, n = _grouped(first, denominators[0], clusters)
    b, db, _ = _grouped(second, denominators[1], clusters)
    if len(a) < 2:
        raise InputError("a paired test needs at least two items or clusters that both systems met")
    stacked = np.stack([a, da, b, db])
    value = float(b.sum() / db.sum() - a.sum() / da.sum())
    sums = _resampled(stacked, rounds, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        differences = sums[2] / sums[3] - sums[0] / sums[1]
    differences = differences[np.isfinite(differences)]
    low, high = np.percentile(differences, [2.5, 97.5])
    return Difference(
        value,
        float(low),
        float(high),
        _permutation(stacked, value, rounds, seed),
        float((differences < 0).mean() + (differences == 0).mean() / 2),
        n,
    )


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided exact p that two systems are right equally often, from the items that only one got right."""
    from scipy import stats

    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def _permutation(stacked: NDArray[np.float64], observed: float, rounds: int, seed: int) -> float:
    count = stacked.shape[1]
    exact = count <= 11  # 2048 swaps
    if exact:
        swaps = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    else:
        swaps = np.random.default_rng(seed).integers(0, 2, (rounds, count))
    a, da, b, db = stacked
    # What a swap moves from one system's sum to the other's.
    top, bottom = swaps @ (b - a), swaps @ (db - da)
    first, second = (a.sum() + top) / (da.sum() + bottom), (b.sum() - top) / (db.sum() - bottom)
    extreme = int((np.abs(second - first) >= abs(observed) - 1e-12).sum())
    # A sampled test counts the observed arrangement as one of its own, so that p is never zero.
    return extreme / len(swaps) if exact else (extreme + 1) / (rounds + 1)


def _grouped(
    numerators: ArrayLike, denominators: ArrayLike, clusters: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Sums by cluster, and how many items there were."""
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if top.ndim != 1 or top.shape != bottom.shape or not len(top):
        raise InputError("a figure needs as many numerators as denominators, and at least one")
    if not bottom.sum():
        raise InputError("the denominators of a figure sum to nothing: every reference is empty")
    if clusters is None:
        return top, bottom, len(top)
    if len(clusters) != len(top):
        raise InputError(f"{len(top)} items cannot have {len(clusters)} clusters")
    places: dict[Hashable, int] = {}
    index = np.array([places.setdefault(cluster, len(places)) for cluster in clusters])
    return np.bincount(index, top).astype(np.float64), np.bincount(index, bottom).astype(np.float64), len(top)


def _resampled(values: NDArray[np.float64], rounds: int, seed: int) -> NDArray[np.float64]:
    """Sums [K, rounds] of values [K, N] drawn with replacement, the same draw for every row."""
    rng = np.random.default_rng(seed)
    count = values.shape[1]
    step = max(1, _AT_ONCE // count)
    sums = []
    for begin in range(0, rounds, step):
        drawn = rng.integers(0, count, (min(step, rounds - begin), count))
        sums.append(np.stack([row[drawn].sum(axis=1) for row in values]))
    return np.concatenate(sums, axis=1)
