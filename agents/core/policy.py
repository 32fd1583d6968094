"""The flow policy that the agents train and that plays the flow environment."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from flowmdp.agents.core.networks import Normalizer, frozen_copy
from flowmdp.mdp.spec import FlowSpec


class FlowPolicy(BasePolicy):
    """A velocity field, its moving average, and the observation normaliser.

    Flow observations are [s, x_t, (t), (a_prev, flag)]; flow actions are velocities divided by
    `velocity_scale` and clipped to [-1, 1]. The moving average `ema` is what acts.

    Args:
        observation_space: Of the flow environment.
        action_space: Of the flow environment.
        lr_schedule: Unused; the optimisers belong to the algorithm.
        spec: The flow environment's specification.
        field: The velocity field, called as `VelocityField` is.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        spec: FlowSpec,
        field: nn.Module,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.spec = spec
        self.normalizer = Normalizer(spec.observation_dim)
        self.field = field
        self.ema = frozen_copy(field)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Flow observations (batch, flow_obs_dim) -> flow actions (batch, action_dim)."""
        spec = self.spec
        assert isinstance(observation, Tensor)
        widths = [spec.observation_dim, spec.action_dim, int(spec.include_time)]
        state, x_t, t, rest = observation.split(
            [*widths, observation.shape[-1] - sum(widths)], dim=-1
        )
        context = torch.cat([self.normalizer(state), rest], dim=-1)
        velocity: Tensor = self.ema(context, x_t, t if spec.include_time else 0.0)
        return (velocity / spec.velocity_scale).clamp(-1, 1)
