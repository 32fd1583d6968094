"""Playing the bare outer environment with a flow policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from flowmdp.arguments import check_choice

if TYPE_CHECKING:
    from flowmdp.agents.core.algorithm import FlowAlgorithm

OPTIONS = ("n_steps", "solver", "best_of")
State = tuple[NDArray[Any], ...] | None


class OuterPolicy:
    """A flow policy as a policy for the outer environment, with SB3's `predict`.

    Args:
        agent: Whose normaliser, noise generator and flow steps are used.
        field: The velocity field to follow.
        **options: Of the agent's `act`: n_steps, solver and, where there is a critic, best_of.

    Raises:
        ConfigurationError: For another option.
    """

    def __init__(self, agent: FlowAlgorithm, field: nn.Module, **options: Any) -> None:
        for name in options:
            check_choice(OPTIONS, option=name)
        self.agent, self.field, self.options = agent, field, options

    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """The robot's actions, in its own units, for its observations.

        Args:
            observation: One or a batch, in the robot's own space (a Dict too) or flat, shape
                (observation_dim,) or (n, observation_dim); see `flowmdp.robot`.
            state: The previous actions, returned by the last call; used only where the flow state
                includes them.
            episode_start: Where an episode begins, shape (n,).
            deterministic: Start the chain at zero noise instead of Gaussian noise.

        Returns:
            Actions of the observations' batch shape, and the new state.

        Raises:
            ConfigurationError: For an observation of another structure or shape.
        """
        robot = self.agent.robot
        array = robot.flatten(observation)
        batch = np.atleast_2d(array)
        spec = self.agent.spec
        previous = None
        if spec.include_previous_action and state is not None:
            previous = state[0]
            if episode_start is not None:
                previous = np.where(np.asarray(episode_start)[:, None], 0.0, previous)
        chains = len(batch) * self.options.get("best_of", 1)
        noise = np.zeros((chains, spec.action_dim), np.float32) if deterministic else None
        actions = self.agent.act(
            batch, noise=noise, previous=previous, field=self.field, **self.options
        )
        if spec.include_previous_action:
            state = (np.concatenate([actions, np.ones_like(actions[:, :1])], axis=1),)
        return robot.to_robot(actions[0] if array.ndim == 1 else actions), state
