"""How far raters agree beyond chance: Krippendorff's alpha (Krippendorff 2011, "Computing Krippendorff's
Alpha-Reliability")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import InputError

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: Sequence[Sequence[float | None]], level: Level = "nominal") -> float | None:
    """Alpha of ratings [raters][units]; None is a rating that is missing.

    1 is perfect agreement, 0 what chance gives, below 0 systematic disagreement. Returns None when all ratings are the
    same value, where agreement by chance is certain and alpha has no meaning. Raises InputError when no unit was rated
    twice.
    """
    values = np.array([[np.nan if rating is None else rating for rating in row] for row in ratings], np.float64)
    values = values[:, (~np.isnan(values)).sum(axis=0) >= 2]
    if not values.size:
        raise InputError("agreement needs units that at least two raters rated")
    scale = np.unique(values[~np.isnan(values)])
    counts = (values[:, :, None] == scale).sum(axis=0).astype(np.float64)  # [units, values]
    per_unit = counts.sum(axis=1)
    # Coincidences: every ordered pair of ratings within a unit, weighted by 1 / (ratings - 1).
    pairs = np.einsum("uc,uk->uck", counts, counts) - np.einsum("uc,ck->uck", counts, np.eye(len(scale)))
    coincidences = (pairs / (per_unit - 1)[:, None, None]).sum(axis=0)
    margins = coincidences.sum(axis=0)
    distances = _distances(scale, margins, level)
    expected = (np.outer(margins, margins) * distances).sum() / (margins.sum() - 1)
    if not expected:
        return None
    return float(1 - (coincidences * distances).sum() / expected)


def _distances(scale: NDArray[np.float64], margins: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    """Squared differences between the values of the scale."""
    if level == "nominal":
        return 1.0 - np.eye(len(scale))
    if level == "interval":
        return np.subtract.outer(scale, scale) ** 2
    ranks = np.cumsum(margins) - margins / 2
    return np.subtract.outer(ranks, ranks) ** 2
