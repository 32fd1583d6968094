"""A behaviour flow of the user's own, where an algorithm would train a clone.

An agent sees normalised observations, the user's flow those of the robot; it is asked for these.
Its weights never change: a policy that starts from it learns what to add.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from flowmdp.agents.core.networks import VelocityField
from flowmdp.behavior import BehaviorFlow
from flowmdp.errors import CheckpointError, ConfigurationError

if TYPE_CHECKING:
    from flowmdp.agents.core.algorithm import FlowAlgorithm


class OwnField(nn.Module):
    """u_v(s, x_t, t) of the user's behaviour, called as a `VelocityField` is.

    Args:
        agent: Whose `own_behavior` and normaliser are used.
    """

    def __init__(self, agent: FlowAlgorithm) -> None:
        super().__init__()
        assert agent.own_behavior is not None
        self._agent, self.behavior = (agent,), agent.own_behavior  # in a tuple: no part of this

    def forward(self, context: Tensor, x_t: Tensor, t: Tensor | float) -> Tensor:
        """Velocity, shape (batch, action_dim)."""
        (agent,) = self._agent
        states = agent.policy.normalizer.inverse(context[:, : agent.spec.observation_dim])
        if not isinstance(t, Tensor):
            t = x_t.new_full((x_t.shape[0], 1), t)  # len() is no symbol in torch.export
        with torch.autocast(x_t.device.type, enabled=False):
            velocity: Tensor = self.behavior.on_tensors(states, x_t, t)
        return velocity

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnField:
        """Itself: nothing in it is trained."""
        return self


class ResidualField(nn.Module):
    """The user's velocity, plus what is learned; nothing is, at first.

    Args:
        base: The user's.
        added: The network whose output is added.
    """

    def __init__(self, base: OwnField, added: VelocityField) -> None:
        super().__init__()
        self.base, self.added = base, added
        for last in (added.mlp.weights[-1], added.mlp.biases[-1]):
            nn.init.zeros_(last)

    def forward(self, context: Tensor, x_t: Tensor, t: Tensor | float) -> Tensor:
        """Velocity, shape (batch, action_dim)."""
        with torch.set_grad_enabled(x_t.requires_grad):
            base = self.base(context, x_t, t)
        velocity: Tensor = base + self.added(context, x_t, t)
        return velocity


def check_recorded(
    recorded: Any, behavior: BehaviorFlow | None, observation_dim: int, action_dim: int
) -> None:
    """Compare the behaviour that a checkpoint was trained around with the one that is given.

    Raises:
        CheckpointError: If one of the two is missing, or they answer differently.
    """
    if recorded is None and behavior is None:
        return
    if behavior is None:
        raise CheckpointError(
            f"it was trained around a behaviour of your own, {recorded['name']}: pass it, "
            "load(FILE, behavior=...)"
        )
    if recorded is None:
        raise CheckpointError("it was trained around its own clone: leave behavior out")
    try:
        behavior.check(observation_dim, action_dim)
    except ConfigurationError as error:
        raise CheckpointError(str(error)) from error
    probe = behavior.probe(observation_dim, action_dim)
    if not np.allclose(recorded["probe"], probe, rtol=1e-2, atol=1e-2):
        raise CheckpointError(
            f"it was trained around {recorded['name']}, which answers otherwise than the behavior "
            "that is given: pass the same"
        )
