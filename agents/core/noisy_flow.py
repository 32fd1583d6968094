"""A flow policy whose steps are Gaussian: chains that have a likelihood, and their noise.

    x_0 ~ N(0, noise_scale^2 I),    x_{k+1} ~ N(x_k + u(s, x_k, t_k) / T, sigma_k(s)^2 I)

The log-likelihood of a chain is a sum over its T steps (Ren et al. 2024, arXiv:2409.00588; Zhang et
al. 2025, arXiv:2505.22094). x_0 does not depend on the policy, and is left out of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from flowmdp.agents.core.networks import EnsembleMlp, VelocityField
from flowmdp.agents.core.policy import FlowPolicy
from flowmdp.agents.core.precision import lean_kernels
from flowmdp.mdp.spec import FlowSpec
from flowmdp.mdp.transition import flow_time

NOISE_ARCH = (64, 64)
"""Hidden widths of the network that learns the noise (ReinFlow's)."""
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


class StepNoise(nn.Module):
    """sigma_k(s) of every flow step, between two bounds; on a logarithmic scale.

    Args:
        context_dim: Width of the conditioning.
        action_dim: Width of an action.
        flow_steps: Flow steps of a chain.
        bounds: Smallest and largest standard deviation, in action units.
        learned: A small network decides, at first on the geometric mean. Else all coordinates and
            steps have the same, which `level` says.
    """

    times: Tensor
    level: Tensor

    def __init__(
        self,
        context_dim: int,
        action_dim: int,
        flow_steps: int,
        bounds: tuple[float, ...],
        learned: bool,
    ) -> None:
        super().__init__()
        self.low, self.high = (math.log(bound) for bound in bounds)
        self.shape = flow_steps, action_dim
        times = [flow_time(k, flow_steps) for k in range(flow_steps)]
        self.register_buffer("times", torch.tensor(times)[:, None], persistent=False)
        self.register_buffer("level", torch.ones(()))
        self.mlp = EnsembleMlp(context_dim + 1, action_dim, NOISE_ARCH) if learned else None
        if self.mlp is not None:
            for last in (self.mlp.weights[-1], self.mlp.biases[-1]):
                nn.init.zeros_(last)

    def forward(self, contexts: Tensor) -> Tensor:
        """Logarithms of sigma, shape (batch, flow_steps, action_dim), for (batch, context_dim)."""
        n = len(contexts)
        if self.mlp is None:
            share = self.level.expand(n, *self.shape)
        else:
            asked = contexts[:, None].expand(n, self.shape[0], contexts.shape[1])
            inputs = torch.cat([asked, self.times.expand(n, *self.times.shape)], -1)
            share = self.mlp(inputs.flatten(0, 1)).view(n, *self.shape).sigmoid()
        return self.low + (self.high - self.low) * share


class NoisyFlowPolicy(FlowPolicy):
    """A velocity field and the noise of its steps; its observations are a robot's, not a flow's.

    Observations are those of `ActionEnv`, [s, (a_prev, flag)], and actions whole: x_1, clipped to
    [-1, 1]. The field itself acts, no moving average of it.

    Args:
        observation_space: Of the `ActionEnv`.
        action_space: Of the `ActionEnv`.
        lr_schedule: Unused; the optimisers belong to the algorithm.
        spec: Of the flow: its steps, noise_scale and whether it sees the time.
        field: The velocity field.
        noise: Of its steps.
        generator: Draws the noise of `predict`.
    """

    averages = False

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        spec: FlowSpec,
        field: VelocityField,
        noise: StepNoise,
        generator: torch.Generator,
    ) -> None:
        super().__init__(observation_space, action_space, lr_schedule, spec=spec, field=field)
        self.noise, self.generator = noise, generator

    @property
    def ema(self) -> nn.Module:  # type: ignore[override]
        """The field: what acts."""
        return self.field

    @property
    def width(self) -> int:
        """Width of an observation."""
        return self.spec.context_dim

    def context(self, observations: Tensor) -> Tensor:
        """What velocities are conditioned on: s standardised, the rest as it is."""
        states, rest = observations.tensor_split([self.spec.observation_dim], -1)
        return torch.cat([self.normalizer(states), rest], -1)

    def draw(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        """The noise of chains, N(0, I), shape (*shape, flow_steps + 1, action_dim)."""
        size, drawer = (self.spec.flow_steps + 1, self.spec.action_dim), generator or self.generator
        return torch.randn((*shape, *size), generator=drawer, device=self.device)

    @torch.no_grad()
    def chains(self, contexts: Tensor, noise: Tensor, steps_are_noisy: bool = True) -> Tensor:
        """Whole chains, shape (n, flow_steps + 1, action_dim), x_0 first, x_1 not clipped.

        Args:
            contexts: Shape (n, context_dim).
            noise: From `draw`, shape (n, flow_steps + 1, action_dim).
            steps_are_noisy: False follows the field alone from the same x_0.
        """
        steps = self.spec.flow_steps
        x_t = self.spec.noise_scale * noise[:, 0]
        points = [x_t]
        with lean_kernels(len(contexts) * (steps if steps_are_noisy else 1)):
            moved = noise[:, 1:] * self.noise(contexts).exp() if steps_are_noisy else None
        with lean_kernels(len(contexts)):
            for k in range(steps):
                x_t = x_t + self.field(contexts, x_t, flow_time(k, steps)) / steps
                if moved is not None:
                    x_t = x_t + moved[:, k]
                points.append(x_t)
        return torch.stack(points, 1)

    def log_prob(self, contexts: Tensor, chains: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density of every flow step, and its entropy, both of shape (batch, flow_steps).

        Args:
            contexts: Shape (batch, context_dim).
            chains: Shape (batch, flow_steps + 1, action_dim).
        """
        n, steps = len(chains), self.spec.flow_steps
        x_t, following = chains[:, :-1], chains[:, 1:]
        asked = contexts.repeat_interleave(steps, 0)
        times = self.noise.times.expand(n, steps, 1).reshape(-1, 1)
        velocity = self.field(asked, x_t.flatten(0, 1), times).view_as(x_t)
        log_std = self.noise(contexts)
        z = (following - x_t - velocity / steps) * (-log_std).exp()
        log_prob = -(0.5 * z.square() + log_std + HALF_LOG_TAU).sum(-1)
        return log_prob, (log_std + HALF_LOG_TAU + 0.5).sum(-1)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Observations (n, context_dim) -> actions (n, action_dim) in [-1, 1]."""
        assert isinstance(observation, Tensor)
        noise = self.draw(len(observation))
        if deterministic:
            noise = torch.zeros_like(noise)
        chains = self.chains(self.context(observation), noise, not deterministic)
        return chains[:, -1].clamp(-1, 1)
