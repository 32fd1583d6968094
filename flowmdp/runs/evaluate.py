"""Playing whole episodes of the outer environment, many at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from flowmdp.arguments import check_integers


class Policy(Protocol):
    """Anything with SB3's `predict`."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], Any]:
        """Actions for a batch of observations, and the new state."""
        ...


class EvaluationResult(NamedTuple):
    """Undiscounted returns and lengths of the episodes, in the order of their seeds."""

    returns: list[float]
    lengths: list[int]


def evaluate(
    policy: Policy,
    make_env: Callable[[], gym.Env[Any, Any]],
    episodes: int,
    seed: int = 0,
    deterministic: bool = False,
    progress: bool = False,
) -> EvaluationResult:
    """Play `episodes` episodes in lock-step, one environment each, the policy on the whole batch.

    Args:
        policy: Acts on outer observations of shape (n, observation_dim).
        make_env: Makes the outer environment.
        episodes: How many; episode i starts from seed + i.
        seed: First seed.
        deterministic: Passed to the policy.
        progress: Show a progress bar.

    Raises:
        ConfigurationError: If `episodes` is below 1 or the seed negative.
    """
    check_integers(1, episodes=episodes)
    check_integers(0, seed=seed)
    envs = [make_env() for _ in range(episodes)]
    observations = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(envs)])
    returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
    running, starts = np.ones(episodes, np.bool_), np.ones(episodes, np.bool_)
    state = None
    with tqdm(total=episodes, desc="evaluating", disable=not progress) as bar:
        while running.any():
            actions, state = policy.predict(observations, state, starts, deterministic)
            starts[:] = False
            for i in np.flatnonzero(running):
                step = envs[i].step(actions[i])
                observations[i], reward, terminated, truncated, _ = step
                returns[i] += float(reward)
                lengths[i] += 1
                if terminated or truncated:
                    running[i] = False
                    bar.update()
    for env in envs:
        env.close()
    return EvaluationResult(returns.tolist(), lengths.tolist())
