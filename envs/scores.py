"""D4RL-style normalised scores: 0 is a random policy, 100 an expert."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowmdp.envs.tasks import get_task


def normalized_score(task: str, returns: ArrayLike) -> NDArray[np.float64] | None:
    """Score 100 (R - min) / (max - min) of undiscounted returns (D4RL, Fu et al. 2020, section 5).

    Args:
        task: Name of the task, `hopper-medium`.
        returns: One return or an array of any shape.

    Returns:
        Scores of the shape of `returns`, float64, or None where the task has no references.

    Raises:
        UnknownTaskError: For an unknown task.

    >>> float(normalized_score("hopper-medium", 3234.3))
    100.0
    """
    row = get_task(task)
    if row.references is None:
        return None
    low, high = row.references
    return 100.0 * (np.asarray(returns, np.float64) - low) / (high - low)


def success_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a success rate [Wilson 1927, JASA 22, "Probable inference"].

    Args:
        successes: Between 0 and `episodes`.
        episodes: At least 1.

    >>> [round(end, 3) for end in success_interval(48, 50)]
    [0.865, 0.989]
    """
    z, rate = 1.959964, successes / episodes
    middle = (rate + z * z / (2 * episodes)) / (1 + z * z / episodes)
    spread = math.sqrt(rate * (1 - rate) / episodes + (z / (2 * episodes)) ** 2)
    half = z * spread / (1 + z * z / episodes)
    return max(0.0, middle - half), min(1.0, middle + half)
