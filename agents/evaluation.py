"""Playing whole episodes of the outer environment, many robots at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from flowmdp.agents.core.threads import one_thread
from flowmdp.arguments import check_integers
from flowmdp.robot import RobotInterface
from flowmdp.robots import MakeEnv, Robots

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
    make_env: MakeEnv,
    episodes: int,
    seed: int = 0,
    deterministic: bool = False,
    progress: bool = False,
    robots: Callable[[MakeEnv], Robots] = Robots,
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
        robots: Where they play. The results are the same everywhere, since the policy acts here.

    Raises:
        ConfigurationError: If `episodes` is below 1 or the seed negative.
    """
    check_integers(1, episodes=episodes)
    check_integers(0, seed=seed)
    there = robots(make_env)
    number = min(episodes, there.env.metadata.get("at_once", AT_ONCE))
    there.open(range(number))
    flatten = RobotInterface(there.env.observation_space, there.env.action_space).flatten
    begun = there.reset({i: seed + i for i in range(number)})
    observations = np.stack([flatten(begun[i]) for i in range(number)])
    playing: dict[int, int] = {i: i for i in range(number)}  # robot -> its episode
    returns, lengths = [0.0] * number, [0] * number
    successes: dict[int, bool] = {}
    starts, state = np.ones(number, np.bool_), None
    with tqdm(total=episodes, desc="evaluating", disable=not progress) as bar:
        while playing:
            actions, state = policy.predict(observations, state, starts, deterministic)
            starts[:] = False
            steps, seeds = there.step({i: actions[i] for i in playing}), dict[int, int]()
            for i, episode in list(playing.items()):
                step = steps[i]
                observations[i] = flatten(step.observation)
                returns[episode] += step.reward
                lengths[episode] += 1
                if not step.ended:
                    continue
                if step.success is not None:
                    successes[episode] = step.success
                bar.update()
                if len(returns) == episodes:
                    del playing[i]
                    continue
                playing[i], starts[i], seeds[i] = len(returns), True, seed + len(returns)
                returns.append(0.0)
                lengths.append(0)
            for i, observed in there.reset(seeds).items() if seeds else ():
                observations[i] = flatten(observed)
    there.close()
    reported = [successes[i] for i in range(episodes)] if len(successes) == episodes else None
    return EvaluationResult(returns, lengths, reported)
