"""IQL: implicit Q-learning with a Gaussian policy, a baseline.

Source: Kostrikov et al. 2022, "Offline Reinforcement Learning with Implicit Q-Learning",
arXiv:2110.06169. V(s) regresses to an expectile of Q over the data's actions, Q to
r + gamma V(s'), and the policy maximises the data's log-likelihood weighted by exp(beta A).

Differences [ours]: the advantage A = Q - V is divided by its mean absolute value over the batch, so
that one beta serves rewards of any scale; layer normalisation in the critic, which starts from the
data's returns; no decay of the learning rate, instead the moving average of the policy's weights
acts. As in the paper, it is evaluated at the Gaussian's mean.

Logged (train/):
    policy_loss, grad_norm: weighted negative log-likelihood, and its gradient's norm.
    weight_max: largest weight of the batch; `MAX_WEIGHT` when weights are clipped.
    std: mean standard deviation of the Gaussian.
    critic_q_loss, critic_v_loss, critic_q_data, critic_grad_norm: of the critic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.config import ImplicitConfig, PolicyConfig
from flowmdp.agents.core.critics import Critic, expectile_loss
from flowmdp.agents.core.networks import Info
from flowmdp.agents.core.one_step import GaussianField
from flowmdp.agents.core.parts import ReturnCritic
from flowmdp.arguments import Range

MAX_WEIGHT = 100.0
"""Weights are clipped here, as in the paper's code."""


@dataclass(frozen=True, kw_only=True)
class IQLConfig(PolicyConfig, ImplicitConfig):
    """Hyper-parameters of IQL."""

    beta: Annotated[float, Range("[0, inf)")] = 1.0
    """Inverse temperature, in units of the mean absolute advantage [ours] (paper: 3, in the
    reward's)."""


class Networks(NamedTuple):
    """What the loss reads."""

    policy: GaussianField
    critic: Critic


def policy_loss(
    networks: Networks, batch: Batch, noise: None = None, *, beta: float
) -> tuple[Tensor, Info]:
    """Mean of -w log pi(a | s) with w = min(exp(beta A / mean |A|), MAX_WEIGHT)."""
    with torch.no_grad():
        advantages = networks.critic.advantages(batch.observations, batch.actions)
        weights = advantage_weights(advantages, beta)
    log_prob = networks.policy.log_prob(batch.contexts, batch.actions, batch.valid)
    loss = -(weights * log_prob).mean()
    return loss, {"policy_loss": loss.detach(), "weight_max": weights.max()}


def advantage_weights(advantages: Tensor, beta: float) -> Tensor:
    """min(exp(beta A / mean |A|), MAX_WEIGHT), shape (batch,)."""
    unit = advantages.abs().mean().clamp_min(1e-8)
    return (beta * advantages / unit).exp().clamp(max=MAX_WEIGHT)


class IQL(FlowAlgorithm[IQLConfig], name="iql"):
    """Implicit Q-learning (Kostrikov et al. 2022, arXiv:2110.06169)."""

    config_class = IQLConfig
    default_steps = 30_000
    only_flow_steps = 1
    acts_at_mean = True

    def make_field(self) -> GaussianField:
        """The policy."""
        return GaussianField(self.spec.context_dim, self.spec.action_dim, self.config.net_arch)

    def build(self) -> None:
        """The critic, and the policy's optimiser."""
        self.critic_part = ReturnCritic(self, expectiles=True)
        self.parts, self.critic = (self.critic_part,), self.critic_part.critic
        self.policy_optimizer = self.policy_descent()

    def update(self) -> Info:
        """One step of the critic, one of the policy."""
        batch = self.sample()
        info = self.critic_part.learn(expectile_loss, batch)
        field = self.policy.field
        assert isinstance(field, GaussianField)
        networks, beta = Networks(field, self.critic), self.config.beta
        info |= self.minimize(self.policy_optimizer, policy_loss, networks, batch, beta=beta)
        return info | {"std": field.std.detach().mean()}
