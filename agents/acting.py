"""Playing the bare outer environment with a flow policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

if TYPE_CHECKING:
    from flowmdp.agents.base import FlowAlgorithm

State = tuple[NDArray[Any], ...] | None


class OuterPolicy:
    """A flow policy as a policy for the outer environment, with SB3's `predict`.

    Args:
        agent: Whose normaliser, noise generator and flow steps are used.
        field: The velocity field to follow.
    """

    def __init__(self, agent: FlowAlgorithm, field: nn.Module) -> None:
        self.agent, self.field = agent, field

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], State]:
        """Outer actions in [-1, 1] for outer observations.

        Args:
            observation: Shape (observation_dim,) or (n, observation_dim).
            state: The previous actions, returned by the last call; used only where the flow state
                includes them.
            episode_start: Where an episode begins, shape (n,).
            deterministic: Start the chain at zero noise instead of Gaussian noise.

        Returns:
            Actions of the observations' batch shape, and the new state.
        """
        array = np.asarray(observation, dtype=np.float32)
        batch = np.atleast_2d(array)
        spec = self.agent.spec
        previous = None
        if spec.include_previous_action and state is not None:
            previous = state[0]
            if episode_start is not None:
                previous = np.where(np.asarray(episode_start)[:, None], 0.0, previous)
        noise = np.zeros((len(batch), spec.action_dim), np.float32) if deterministic else None
        actions = np.clip(self.agent.chain(batch, noise, previous, field=self.field)[-1], -1, 1)
        if spec.include_previous_action:
            state = (np.concatenate([actions, np.ones_like(actions[:, :1])], axis=1),)
        return (actions[0] if array.ndim == 1 else actions), state
