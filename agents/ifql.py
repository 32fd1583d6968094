"""IFQL: implicit Q-learning, and the best of several samples of a behaviour flow, a baseline.

Sources: Park et al. 2025, "Flow Q-Learning", arXiv:2502.02538, where IFQL is a baseline; it is IDQL
(Hansen-Estruch et al. 2023, arXiv:2304.10573) with a flow in the place of the diffusion. A flow
clones the behaviour, IQL's critic learns beside it, and the agent executes the sample that the
critic values most.

Differences [ours]: the flow is trained before the critic instead of beside it, and the critic
starts from the data's returns; noise of 0.3 instead of 1, see `DecisionFlow.environment`. The
samples are a function of the one noise x_0 that the flow MDP gives: sample i starts from the noise
whose Gaussian quantiles are x_0's, shifted by a fixed number and wrapped around. Every sample's
noise is Gaussian with the environment's `noise_scale`, and the same x_0 gives the same action,
which makes best-of-N a policy of the flow MDP of one step.

Logged (train/):
    critic_q_loss, critic_v_loss, critic_q_data, critic_grad_norm: of the critic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.config import CloneConfig, ExpectileConfig
from flowmdp.agents.core.critics import Critic, expectile_loss
from flowmdp.agents.core.networks import Info
from flowmdp.agents.core.one_step import SampledField
from flowmdp.agents.core.parts import Clone, ReturnCritic
from flowmdp.arguments import AtLeast, Range


@dataclass(frozen=True, kw_only=True)
class IFQLConfig(CloneConfig, ExpectileConfig):
    """Hyper-parameters of IFQL."""

    expectile: Annotated[float, Range("[0.5, 1)")] = 0.7
    """Of V's regression to Q (paper: 0.9) [ours: 0.7]."""
    samples: Annotated[int, AtLeast(1, 10_000)] = 32
    """Actions to choose from (paper: 32)."""
    critic_steps: Annotated[int, AtLeast(0)] = 10_000
    """Gradient steps of the critic before `learn`, half on returns, half by expectiles [ours]."""


class BestOfField(SampledField):
    """The best of several samples of a flow, by a critic; both belong to others.

    Args:
        flow: The velocity field that is sampled.
        critic: Its `values` choose.
        observation_dim: Width of the observation with which a context begins.
        shifts: Of the noises, shape (samples, action_dim); see `shifted_noises`.
        noise_scale: Standard deviation of x_0.
        flow_steps: Euler steps of a sample.
    """

    shifts: Tensor

    def __init__(
        self,
        flow: nn.Module,
        critic: Critic,
        observation_dim: int,
        shifts: Tensor,
        noise_scale: float,
        flow_steps: int,
    ) -> None:
        super().__init__(flow, flow_steps)
        self._critic = (critic,)  # in a tuple, as the flow
        self.observation_dim, self.noise_scale = observation_dim, noise_scale
        self.register_buffer("shifts", shifts)

    def actions(self, context: Tensor, x_0: Tensor) -> Tensor:
        """The sample of the highest value, in [-1, 1]."""
        samples = len(self.shifts)
        noises = shifted_noises(x_0, self.shifts, self.noise_scale).flatten(0, 1)
        contexts = context.repeat_interleave(samples, 0)
        candidates = super().actions(contexts, noises)
        values = self._critic[0].values(contexts[:, : self.observation_dim], candidates)
        best = values.unflatten(0, (-1, samples)).argmax(1)
        rows = torch.arange(x_0.shape[0], device=x_0.device)
        chosen: Tensor = candidates.unflatten(0, (-1, samples))[rows, best]
        return chosen


def shifted_noises(x_0: Tensor, shifts: Tensor, noise_scale: float) -> Tensor:
    """Gaussian noises that are functions of one; the first shift, 0, gives x_0 itself.

    Args:
        x_0: Drawn from N(0, noise_scale^2 I), shape (batch, action_dim).
        shifts: In [0, 1), shape (samples, action_dim).
        noise_scale: Standard deviation of x_0, and of what is returned.

    Returns:
        Shape (batch, samples, action_dim).
    """
    quantiles = torch.special.ndtr(x_0 / max(noise_scale, 1e-12))[:, None] + shifts
    wrapped = noise_scale * torch.special.ndtri((quantiles % 1).clamp(1e-6, 1 - 1e-6))
    return torch.where(shifts == 0, x_0[:, None], wrapped)


class IFQL(FlowAlgorithm[IFQLConfig], name="ifql"):
    """Best of N from a behaviour flow by IQL's critic (Park et al. 2025, arXiv:2502.02538)."""

    config_class = IFQLConfig
    default_steps = 2_000
    only_flow_steps = 1
    acts_with = ("policy", "behavior", "critic")
    environment: ClassVar[dict[str, Any]] = {"noise_scale": 0.3}

    def make_field(self) -> nn.Module:
        """Nothing is trained; `build` sets what acts."""
        return nn.Identity()

    def build(self) -> None:
        """The flow, the critic, and the choice."""
        clone, self.critic_part = Clone(self), ReturnCritic(self, expectiles=True)
        self.parts, self.critic = (clone, self.critic_part), self.critic_part.critic
        self.flow = clone.average
        spec, shifts = self.spec, self.shifts()
        self.policy.ema = BestOfField(
            self.flow,
            self.critic,
            spec.observation_dim,
            shifts,
            spec.noise_scale,
            self.sampling_steps,
        ).to(self.device)

    def shifts(self) -> Tensor:
        """Fixed shifts of the noises, shape (samples, action_dim); the first is 0."""
        generator = torch.Generator().manual_seed(0)
        shifts = torch.rand(self.config.samples, self.spec.action_dim, generator=generator)
        shifts[0] = 0
        return shifts

    def set_noise_scale(self, noise_scale: float) -> None:
        """Act from another noise than the one of the training."""
        super().set_noise_scale(noise_scale)
        field = self.policy.ema
        assert isinstance(field, BestOfField)
        field.noise_scale = noise_scale

    def behavior_field(self) -> nn.Module:
        """The flow that is sampled, one sample per state."""
        return SampledField(self.flow, self.sampling_steps)

    def update(self) -> Info:
        """One step of the critic."""
        return self.critic_part.learn(expectile_loss, self.sample())
