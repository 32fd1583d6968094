"""Means over datasets and seeds with bootstrap intervals: pure functions over arrays.

The scores of one label are a list with one array per dataset, of shape (seeds,): datasets may have
different numbers of seeds. A statistic takes such a list, whose arrays may have further axes before
the last, and returns an array of those axes. Intervals are percentile bootstrap intervals [Efron
1979], seeds drawn with replacement within every dataset as in rliable [Agarwal et al. 2021].

A bootstrap sees only the seeds there are: with two or three of them its interval is too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Scores = Sequence[Array]
Statistic = Callable[[Scores], Array]

DRAWS = 10_000
"""Bootstrap samples [ours: the interval's ends move by about 1 % of its width]."""
PERCENTILES = (2.5, 97.5)


class Estimate(NamedTuple):
    """A statistic of the scores and the 95 % interval around it."""

    value: float
    low: float
    high: float


def mean(scores: Scores) -> Array:
    """Mean over datasets of the mean over seeds: every dataset counts the same."""
    return np.asarray(np.mean([values.mean(-1) for values in scores], axis=0))


def interquartile_mean(scores: Scores) -> Array:
    """Mean of the middle half of all runs, as scipy.stats.trim_mean(runs, 0.25).

    Every run counts the same, so a dataset with more seeds counts more.
    """
    runs = np.sort(np.concatenate(list(scores), axis=-1), axis=-1)
    cut = runs.shape[-1] // 4
    return np.asarray(runs[..., cut : runs.shape[-1] - cut].mean(-1))


def over_seeds(scores: Scores, statistic: Statistic, seed: int = 0) -> Estimate:
    """`mean` or `interquartile_mean` of one label, and its stratified bootstrap interval.

    Resampled: the seeds within each dataset. The datasets stay, so the interval speaks of other
    seeds on these datasets, not of other datasets.
    """
    rng = np.random.default_rng(seed)
    return _estimate(statistic(scores), statistic([_draw(values, rng) for values in scores]))


def difference_over_seeds(scores: Scores, against: Scores) -> Estimate:
    """Difference of two labels' means on the same datasets, and its bootstrap interval.

    Resampled: the seeds within each dataset, each label's independently of the other's. Seeds are
    not paired: the interval is wider than it could be for two agents that start from the same
    behaviour flow.

    Raises:
        ValueError: When the two have different numbers of datasets.
    """
    drawn = _differences(scores, against, np.random.default_rng(0))
    return _estimate(mean(scores) - mean(against), drawn.mean(0))


def difference(scores: Scores, against: Scores) -> Estimate:
    """As `difference_over_seeds`, but the interval speaks of other datasets too.

    Resampled: first the datasets, the same ones for both labels; then the seeds, anew for every
    place that a dataset takes in the sample.
    """
    rng = np.random.default_rng(0)
    places = rng.integers(len(scores), size=(DRAWS, len(scores)))
    drawn = [_differences(scores, against, rng)[dataset, np.arange(DRAWS)] for dataset in places.T]
    return _estimate(mean(scores) - mean(against), np.mean(drawn, axis=0))


def _differences(scores: Scores, against: Scores, rng: np.random.Generator) -> Array:
    """Bootstrap samples of the difference on each dataset, shape (datasets, DRAWS)."""
    return np.stack([_means(a, rng) - _means(b, rng) for a, b in zip(scores, against, strict=True)])


def _draw(values: Array, rng: np.random.Generator) -> Array:
    """Bootstrap samples of the seeds of one dataset, shape (DRAWS, seeds)."""
    return rng.choice(values, (DRAWS, len(values)))


def _means(values: Array, rng: np.random.Generator) -> Array:
    """Mean of every bootstrap sample, shape (DRAWS,): by columns, faster than along short rows."""
    return np.asarray(sum(_draw(values, rng).T) / len(values))


def _estimate(value: Array, draws: Array) -> Estimate:
    low, high = np.percentile(draws, PERCENTILES)
    return Estimate(float(value), float(low), float(high))
