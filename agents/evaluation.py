"""Playing whole episodes of the outer environment, many at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from flowmdp.agents.core.threads import one_thread
from flowmdp.arguments import check_integers
from flowmdp.robot import RobotInterface

AT_ONCE = 64
"""Robots that are open at once."""


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
    """Undiscounted returns and lengths of the episodes, in the order of their seeds.

    `successes` is `info["success"]` of each episode's last step, as OGBench's own evaluation takes
    it; None where the robot reports none.
    """

    returns: list[float]
    lengths: list[int]
    successes: list[bool] | None = None


@one_thread()
def evaluate(
    policy: Policy,
    make_env: Callable[[], gym.Env[Any, Any]],
    episodes: int,
    seed: int = 0,
    deterministic: bool = False,
    progress: bool = False,
) -> EvaluationResult:
    """Play `episodes` episodes in lock-step, the policy on all open robots at once.

    At most `AT_ONCE` robots are open, or as many as `at_once` in a large robot's metadata allows;
    one whose episode has ended plays the next. Episode i starts from seed + i, however many there
    are. A policy draws its noise for the robots that play together: the noise of an episode beyond
    the first ones depends on how the others went.

    Args:
        policy: Acts on flat observations, shape (n, observation_dim), in the robot's units.
        make_env: Makes the robot; see `flowmdp.robot` for how its observations are flattened.
        episodes: How many.
        seed: First seed.
        deterministic: Passed to the policy.
        progress: Show a progress bar.

    Raises:
        ConfigurationError: If `episodes` is below 1 or the seed negative.
    """
    check_integers(1, episodes=episodes)
    check_integers(0, seed=seed)
    envs = [make_env()]
    at_once = min(episodes, envs[0].metadata.get("at_once", AT_ONCE))
    envs += [make_env() for _ in range(at_once - 1)]
    robot = RobotInterface(envs[0].observation_space, envs[0].action_space)
    flatten = robot.flatten
    observations = np.stack([flatten(env.reset(seed=seed + i)[0]) for i, env in enumerate(envs)])
    playing: dict[int, int] = {i: i for i in range(len(envs))}  # robot -> its episode
    returns, lengths = [0.0] * len(envs), [0] * len(envs)
    successes: dict[int, bool] = {}
    starts, state = np.ones(len(envs), np.bool_), None
    with tqdm(total=episodes, desc="evaluating", disable=not progress) as bar:
        while playing:
            actions, state = policy.predict(observations, state, starts, deterministic)
            starts[:] = False
            for i, episode in list(playing.items()):
                observed, reward, terminated, truncated, info = envs[i].step(actions[i])
                observations[i] = flatten(observed)
                returns[episode] += float(reward)
                lengths[episode] += 1
                if not (terminated or truncated):
                    continue
                if "success" in info:
                    successes[episode] = bool(info["success"])
                bar.update()
                if len(returns) == episodes:
                    del playing[i]
                    continue
                playing[i], starts[i] = len(returns), True
                observations[i] = flatten(envs[i].reset(seed=seed + len(returns))[0])
                returns.append(0.0)
                lengths.append(0)
    for env in envs:
        env.close()
    reported = [successes[i] for i in range(episodes)] if len(successes) == episodes else None
    return EvaluationResult(returns, lengths, reported)
