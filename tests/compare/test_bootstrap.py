"""Means and intervals over datasets and seeds: by hand, against scipy, and with controls."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import trim_mean

from flowmdp.compare.bootstrap import (
    DRAWS,
    Estimate,
    Scores,
    difference,
    difference_over_seeds,
    interquartile_mean,
    mean,
    over_seeds,
)


def scores(*datasets: list[float]) -> list[NDArray[np.float64]]:
    """One array of seeds per dataset."""
    return [np.array(seeds) for seeds in datasets]


def drawn(datasets: int, seeds: int, rng: np.random.Generator, shift: float = 0.0) -> Scores:
    """Normal scores around a level of each dataset's own."""
    return [50 * i + shift + rng.standard_normal(seeds) for i in range(datasets)]


def test_means_by_hand() -> None:
    two = scores([0, 10], [20, 30, 40, 110])
    assert mean(two) == (5 + 50) / 2, "datasets count the same, however many seeds they have"
    assert interquartile_mean(two) == (10 + 20 + 30 + 40) / 4
    assert interquartile_mean(scores([1], [5])) == 3, "nothing to trim"


@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 30])
def test_interquartile_mean_is_scipys(count: int) -> None:
    runs = np.random.default_rng(count).standard_normal((5, count))
    halves = np.split(runs, [count // 2], axis=1)
    np.testing.assert_allclose(interquartile_mean(halves), trim_mean(runs, 0.25, axis=1))


def test_intervals_by_hand() -> None:
    # two seeds, 0 and 1: the mean of a sample is 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert over_seeds(scores([0, 1]), mean) == Estimate(0.5, 0, 1)
    # four seeds: all the same one with probability 4^-4 < 2.5 %, three of four the least with 5 %
    assert over_seeds(scores([0, 0, 0, 1]), mean) == Estimate(0.25, 0, 0.75)
    # only the seeds move: datasets far apart widen nothing
    assert over_seeds(scores([0, 0], [100, 100]), mean) == Estimate(50, 50, 50)


def test_the_interval_has_the_width_of_theory() -> None:
    """Mean of 5 datasets x 40 seeds of unit variance: standard error 200^-1/2."""
    value, low, high = over_seeds(drawn(5, 40, np.random.default_rng(0)), mean)
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 / 200**0.5, rel=0.15)


def test_difference_resamples_datasets() -> None:
    """Seeds without spread, two datasets with differences 0 and 1: as the two seeds above."""
    assert difference(scores([5, 5], [6, 6]), scores([5], [5])) == Estimate(0.5, 0, 1)
    one = scores([5, 5], [905, 905])
    assert difference(one, scores([4], [904])) == Estimate(1, 1, 1), "levels cancel: it is paired"
    with pytest.raises(ValueError, match="zip"):
        difference(one, one[:1])


def test_difference_resamples_seeds_of_both() -> None:
    spread, fixed = scores([0, 1]), scores([0, 0])
    assert difference(spread, fixed) == Estimate(0.5, 0, 1)
    assert difference(fixed, spread) == Estimate(-0.5, -1, 0)
    assert difference(spread, spread) == Estimate(0, -1, 1), "seeds are not paired"


def test_the_datasets_may_stay() -> None:
    """Only seeds move: two datasets whose differences are 0 and 1 have an interval of no width."""
    fixed = scores([5, 5], [6, 6])
    assert difference_over_seeds(fixed, scores([5], [5])) == Estimate(0.5, 0.5, 0.5)
    assert difference_over_seeds(scores([0, 1]), scores([0, 1])) == Estimate(0, -1, 1)
    rng = np.random.default_rng(0)
    value, low, high = difference_over_seeds(drawn(5, 40, rng), drawn(5, 40, rng))
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 / 100**0.5, rel=0.15)  # twice one label's variance
    with pytest.raises(ValueError, match="zip"):
        difference_over_seeds(fixed, fixed[:1])


def test_a_dataset_drawn_twice_gets_seeds_of_its_own_each_time() -> None:
    """Two equal datasets of two seeds vary as one of four drawn seeds, not as one of two."""
    twice = difference(scores([0, 1], [0, 1]), scores([0, 0], [0, 0]))
    assert twice == Estimate(0.5, 0, 1)  # all four the same: 1/16 a side
    many = difference(scores([0, 1]) * 8, scores([0]) * 8)
    assert many.high - many.low == pytest.approx(2 * 1.96 * (1 / 64) ** 0.5, rel=0.15)


def test_equal_groups_and_shifted_ones() -> None:
    """The negative control: noise alone is called a difference in few of many trials."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(40):
        estimate = difference(drawn(6, 10, rng), drawn(6, 10, rng))
        found.append(estimate.low > 0 or estimate.high < 0)
    assert np.mean(found) <= 0.2
    shifted = difference(drawn(6, 10, rng, shift=2), drawn(6, 10, rng))
    assert shifted.low > 0 and shifted.value == pytest.approx(2, abs=0.5)
    assert difference(drawn(6, 10, rng), drawn(6, 10, rng, shift=2)).high < 0


def test_the_same_seed_gives_the_same_interval() -> None:
    one = drawn(2, 5, np.random.default_rng(1))
    assert over_seeds(one, mean) == over_seeds(one, mean)
    assert over_seeds(one, mean) != over_seeds(one, mean, seed=1)
    assert DRAWS >= 10_000
