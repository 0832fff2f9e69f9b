"""What ratings say: mean opinion scores with intervals over raters and items, and Bradley-Terry strengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import InputError
from stepaudio.eval.human.ratings import Rating, Ratings
from stepaudio.eval.human.study import SCALES, Study
from stepaudio.eval.metrics.agreement import krippendorff_alpha

ROUNDS = 1000
_TOLERANCE = 1.0
"""How far from the wanted answer of an attention item a MOS may be and still pass; the other scales have to match."""


def analyse(study: Study, ratings: Ratings, *, rounds: int = ROUNDS, seed: int = 0) -> dict[str, Any]:
    """Systems with their figures. Raters who failed an attention item, or the headphone check where there is one, are
    left out and counted. Raises InputError when nobody is left."""
    answers = ratings.all()
    careless = {each.rater for each in answers if each.wanted is not None and not _attended(study, each)}
    if study.headphones:
        careless |= {each.rater for each in answers if ratings.headphones(each.rater) is not True}
    raters = {each.rater for each in answers}
    kept = [each for each in answers if each.rater not in careless and each.wanted is None]
    if not kept:
        raise InputError(f"there are no ratings to report: {len(raters)} raters, {len(careless)} of them left out")
    figures = mos(kept, rounds, seed) if study.kind == "mos" else strengths(kept, rounds, seed)
    if study.kind == "cmos":
        figures = [row | _cmos(kept, row["system"], rounds, seed) for row in figures]
    return {
        "kind": study.kind,
        "title": study.title,
        "raters": len(raters - careless),
        "left_out": len(careless),
        "ratings": len(kept),
        "alpha": _alpha(kept),
        "systems": figures,
    }


def mos(ratings: Sequence[Rating], rounds: int = ROUNDS, seed: int = 0) -> list[dict[str, Any]]:
    """Mean opinion score of each system; the interval resamples raters and items both."""
    rows = []
    for system in sorted({each.first for each in ratings}):
        some = [each for each in ratings if each.first == system]
        rows.append({"system": system, "n": len(some)} | _two_way(some, [each.value for each in some], rounds, seed))
    return rows


def strengths(ratings: Sequence[Rating], rounds: int = ROUNDS, seed: int = 0) -> list[dict[str, Any]]:
    """Bradley-Terry strengths on the logarithmic scale, their mean at 0, with intervals that resample raters; a tie is
    half a win for both. Strongest first."""
    names = sorted({name for each in ratings for name in (each.first, each.second) if name})
    places = {name: place for place, name in enumerate(names)}
    by_rater: dict[str, NDArray[np.float64]] = {}
    for each in ratings:
        assert each.second is not None
        wins = by_rater.setdefault(each.rater, np.zeros((len(names), len(names))))
        first, second = places[each.first], places[each.second]
        share = 0.5 if each.value == 0 else float(each.value > 0)
        wins[second, first] += share
        wins[first, second] += 1 - share
    tables = np.stack(list(by_rater.values()))
    point = bradley_terry(tables.sum(axis=0))
    rng = np.random.default_rng(seed)
    drawn = [bradley_terry(tables[rng.integers(0, len(tables), len(tables))].sum(axis=0)) for _ in range(rounds)]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0) if len(tables) > 1 else (None, None)
    wins = tables.sum(axis=0)
    rows = [
        {
            "system": name,
            "strength": float(point[place]),
            "low": None if low is None else float(low[place]),
            "high": None if high is None else float(high[place]),
            "wins": float(wins[place].sum()),
            "n": int(wins[place].sum() + wins[:, place].sum()),
        }
        for name, place in places.items()
    ]
    return sorted(rows, key=lambda row: -float(str(row["strength"])))


def bradley_terry(wins: NDArray[np.float64], *, rounds: int = 10_000, tolerance: float = 1e-10) -> NDArray[np.float64]:
    """Log strengths [N], their mean at 0, of wins [N, N] (row over column), by Hunter's (2004) MM iteration. Half a
    win and half a loss against a common opponent keeps a system that won or lost everything finite."""
    count = len(wins)
    strength = np.ones(count)
    games = wins + wins.T
    won = wins.sum(axis=1) + 0.5
    for _ in range(rounds):
        rivals = games / (strength[:, None] + strength[None, :])
        after = won / (rivals.sum(axis=1) + 1 / (strength + 1))
        if np.abs(np.log(after / strength)).max() < tolerance:
            strength = after
            break
        strength = after
    logs: NDArray[np.float64] = np.log(strength) - np.log(strength).mean()
    return logs


def _cmos(ratings: Sequence[Rating], system: str, rounds: int, seed: int) -> dict[str, Any]:
    """How much a system is preferred to the others, on the scale from -3 to 3."""
    some = [each for each in ratings if system in (each.first, each.second)]
    values = [each.value if each.second == system else -each.value for each in some]
    found = _two_way(some, values, rounds, seed)
    return {"cmos": found["value"], "cmos low": found["low"], "cmos high": found["high"]}


def _two_way(ratings: Sequence[Rating], values: Sequence[float], rounds: int, seed: int) -> dict[str, Any]:
    """The mean, and a bootstrap that draws raters and items independently."""
    known = np.array(values, np.float64)
    raters, items = (
        np.unique([getattr(each, name) for each in ratings], return_inverse=True)[1] for name in ("rater", "item")
    )
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(rounds):
        by_rater, by_item = (
            np.bincount(rng.integers(0, n, n), minlength=n) for n in (int(raters.max()) + 1, int(items.max()) + 1)
        )
        weights = by_rater[raters] * by_item[items]
        if weights.sum():
            means.append(float((weights * known).sum() / weights.sum()))
    enough = len(set(raters)) > 1 or len(set(items)) > 1
    low, high = np.percentile(means, [2.5, 97.5]) if enough else (None, None)
    return {
        "value": float(known.mean()),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
    }


def _alpha(ratings: Sequence[Rating]) -> float | None:
    """Agreement of the raters; None when no unit was rated twice."""
    units: dict[tuple[str, tuple[str, ...]], dict[str, float]] = {}
    for each in ratings:
        pair = tuple(sorted(name for name in (each.first, each.second) if name))
        value = each.value if each.second is None or (each.first, each.second) == pair else -each.value
        units.setdefault((each.item, pair), {})[each.rater] = value
    raters = sorted({each.rater for each in ratings})
    try:
        return krippendorff_alpha([[unit.get(rater) for unit in units.values()] for rater in raters], "interval")
    except InputError:
        return None


def _attended(study: Study, rating: Rating) -> bool:
    assert rating.wanted is not None
    allowed = _TOLERANCE if study.kind == "mos" else 0.0
    return rating.value in SCALES[study.kind] and abs(rating.value - rating.wanted) <= allowed
