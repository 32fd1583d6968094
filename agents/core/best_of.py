"""The best of several actions by a critic: in a critic's target, and as a policy.

Sources: Li et al. 2025, "Reinforcement Learning with Action Chunking", arXiv:2507.07969, for the
target; Hansen-Estruch et al. 2023 (IDQL), arXiv:2304.10573, for the policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.config import CloneConfig, CriticConfig
from flowmdp.agents.core.critics import Critic, favourites
from flowmdp.agents.core.one_step import SampledField
from flowmdp.agents.core.parts import Clone, ReturnCritic
from flowmdp.arguments import AtLeast


@dataclass(frozen=True, kw_only=True)
class SamplesConfig(CloneConfig, CriticConfig):
    """Of an agent that acts by the best of several samples."""

    samples: Annotated[int, AtLeast(1, 10_000)] = 32
    """Actions to choose from (paper: 32)."""


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

    def actions(self, context: Tensor, x_0: Tensor, target: bool = False) -> Tensor:
        """The sample of the highest value, in [-1, 1]; `target`: by the target networks."""
        samples = len(self.shifts)
        noises = shifted_noises(x_0, self.shifts, self.noise_scale).flatten(0, 1)
        candidates = super().actions(context.repeat_interleave(samples, 0), noises)
        observations = context[:, : self.observation_dim]
        return favourites(
            self._critic[0], observations, candidates.unflatten(0, (-1, samples)), target
        )


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


Shared = TypeVar("Shared", bound=SamplesConfig, default=Any)


class BestOf(FlowAlgorithm[Shared]):
    """Base of IFQL and QC: the best of several samples of the cloned behaviour acts."""

    config_class = SamplesConfig
    only_flow_steps = 1
    acts_with = ("policy", "behavior", "critic")
    environment: ClassVar[dict[str, Any]] = {"noise_scale": 0.3}
    expectiles: ClassVar[bool]
    """Whether the second half of the critic's first fit is implicit Q-learning's."""

    def make_field(self) -> nn.Module:
        """Nothing is trained; `build` sets what acts."""
        return nn.Identity()

    def build(self) -> None:
        """The flow, the critic, and the choice."""
        clone, learns = Clone(self), "qv" if self.expectiles else "q"
        self.critic_part = ReturnCritic(self, expectiles=self.expectiles, learns_on=learns)
        self.parts, self.critic = (clone, self.critic_part), self.critic_part.critic
        self.flow, spec = clone.average, self.spec
        self.choice = BestOfField(
            self.flow,
            self.critic,
            spec.observation_dim,
            self.shifts(),
            spec.noise_scale,
            self.sampling_steps,
        ).to(self.device)
        self.policy.ema = self.choice

    def shifts(self) -> Tensor:
        """Fixed shifts of the noises, shape (samples, action_dim); the first is 0."""
        generator = torch.Generator().manual_seed(0)
        shifts = torch.rand(self.config.samples, self.spec.action_dim, generator=generator)
        shifts[0] = 0
        return shifts

    def set_noise_scale(self, noise_scale: float) -> None:
        """Act from another noise than the one of the training."""
        super().set_noise_scale(noise_scale)
        self.choice.noise_scale = noise_scale

    def behavior_field(self) -> nn.Module:
        """The flow that is sampled, one sample per state."""
        return SampledField(self.flow, self.sampling_steps)
