"""The flow policy that the agents train and that plays the flow environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from flowmdp.agents.core.networks import Normalizer, frozen_copy
from flowmdp.mdp.solver import integrate
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

    @torch.no_grad()
    def chain(
        self,
        field: nn.Module,
        observations: NDArray[Any],
        noise: Tensor,
        previous: NDArray[Any] | None = None,
        n_steps: int | None = None,
        solver: str = "euler",
    ) -> NDArray[np.float32]:
        """The points of whole chains, noise first, the action before clipping last.

        Args:
            field: The velocity field to follow.
            observations: Outer observations, shape (n, observation_dim).
            noise: x_0, shape (n, action_dim).
            previous: Previous actions and flags, shape (n, action_dim + 1), where the flow state
                includes them; None means the start of an episode.
            n_steps: Flow steps, None for the environment's.
            solver: "euler", "midpoint" or "heun".

        Returns:
            Shape (n_steps + 1, n, action_dim), float32.
        """
        steps = self.spec.flow_steps if n_steps is None else n_steps
        context = self.normalizer(torch.as_tensor(observations, device=noise.device).float())
        if self.spec.include_previous_action:
            if previous is None:
                previous = np.zeros((len(noise), self.spec.action_dim + 1), np.float32)
            extra = torch.as_tensor(previous, dtype=torch.float32, device=noise.device)
            context = torch.cat([context, extra], 1)
        asked: list[Tensor] = []

        def velocity(x_t: Tensor, t: float) -> Tensor:
            asked.append(x_t)
            result: Tensor = field(context, x_t, t)
            return result

        x_1 = integrate(velocity, noise, steps, solver)
        evaluations = len(asked) // steps  # a second-order solver asks twice per step
        return torch.stack([*asked[::evaluations], x_1]).cpu().numpy()
