"""FQL: flow Q-learning, a one-step policy distilled from a behaviour flow, a baseline.

Source: Park et al. 2025, "Flow Q-Learning", arXiv:2502.02538. A flow clones the behaviour; the
policy a(s, x_0), a single network, descends

    alpha ||a(s, x_0) - flow(s, x_0)||^2 - Q(s, a(s, x_0)) / mean |Q|

with the squared distance averaged over the dimensions of one action and summed over a chunk's, and
the critic regresses to r + gamma mask Q'(s', a(s', x_0)).

Published alphas are of other conventions: the paper's code averages over all of a chunk's
dimensions, and divides Q only by an option, normalize_q_loss. Its alpha is `chunk` times ours with
that option (it advises to try 0.03 to 10), and `chunk` times mean |Q|, of the rewards as they are,
times ours without it (3 to 1,000 on mazes and OGBench, 3,000 to 30,000 on Adroit).

As in their code: flows of ten steps, their actions and those that Q sees clipped, a target of
Polyak rate 0.005, gamma 0.99, batches of 256, Adam at 3e-4.

Differences [ours]: the critic is the one of all agents (`paper` has the mean of two networks); the
flow is trained before the policy instead of beside it, and the critic starts from the data's
returns, hence far fewer steps (paper: half a million to a million); Q is always divided by mean
|Q|, so that alpha does not depend on the rewards' scale; `pessimism` holds for the policy too
(their code has the minimum of two in the target on Adroit and two mazes, the mean for the policy);
networks of 256x3 instead of 512x4; the moving average of the policy's weights acts; noise of 0.3
instead of 1 throughout, see `DecisionFlow.environment`.

Logged (train/):
    policy_loss, distill_loss, grad_norm: of the policy.
    critic_q_loss, critic_q_data, critic_grad_norm: of the critic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.config import (
    MEAN_OF_TWO,
    BestOfConfig,
    CloneConfig,
    PolicyConfig,
    SmoothedConfig,
)
from flowmdp.agents.core.critics import Critic
from flowmdp.agents.core.networks import Info
from flowmdp.agents.core.one_step import DistilledField, SampledField
from flowmdp.agents.core.parts import Clone, ReturnCritic
from flowmdp.arguments import Range


@dataclass(frozen=True, kw_only=True)
class FQLConfig(PolicyConfig, CloneConfig, SmoothedConfig, BestOfConfig):
    """Hyper-parameters of FQL."""

    alpha: Annotated[float, Range("[0, inf)")] = 1.0
    """Weight of the distillation (paper: searched for every dataset). The distance is averaged over
    the dimensions of one action and summed over a chunk's, so that an action weighs the same in
    every chunk [ours]. A published alpha is `chunk` times ours, and mean |Q| times that where Q was
    not divided by it."""


class Networks(NamedTuple):
    """What the loss reads."""

    policy: DistilledField
    teacher: SampledField
    critic: Critic


def policy_loss(
    networks: Networks, batch: Batch, x_0: Tensor, *, alpha: float
) -> tuple[Tensor, Info]:
    """The mean of alpha ||a - teacher||^2 / action_dim - Q(s, clip(a)) / mean |Q|.

    Of a chunk all actions are distilled: those that the data never took are the teacher's too.

    Both start from x_0, shape (batch, action_dim).
    """
    with torch.no_grad():
        teacher = networks.teacher.actions(batch.contexts, x_0)
    actions = networks.policy.actions(batch.contexts, x_0)
    distance = (actions - teacher).square().mean()
    q = networks.critic.values(batch.observations, actions.clamp(-1, 1))
    loss = alpha * distance - q.mean() / q.detach().abs().mean().clamp_min(1e-8)
    return loss, {"policy_loss": loss.detach(), "distill_loss": distance.detach()}


class FQL(FlowAlgorithm[FQLConfig], name="fql"):
    """Flow Q-learning (Park et al. 2025, arXiv:2502.02538)."""

    config_class = FQLConfig
    default_steps = 15_000
    only_flow_steps = 1
    environment: ClassVar[dict[str, Any]] = {"noise_scale": 0.3}
    paper: ClassVar[dict[str, Any]] = MEAN_OF_TWO

    def make_field(self) -> DistilledField:
        """The policy."""
        return DistilledField(self.spec.context_dim, self.spec.action_dim, self.config.net_arch)

    def build(self) -> None:
        """The teacher, the critic, and the policy's optimiser."""
        clone, self.critic_part = Clone(self), ReturnCritic(self, learns_on="q")
        self.parts, self.critic = (clone, self.critic_part), self.critic_part.critic
        self.teacher = SampledField(clone.average, self.sampling_steps)
        self.policy_optimizer = self.policy_descent()

    def behavior_field(self) -> nn.Module:
        """The behaviour flow's whole chain as one step."""
        return self.teacher

    def update(self) -> Info:
        """One step of the critic, one of the policy."""
        batch, field = self.sample(), self.policy.field
        assert isinstance(field, DistilledField)
        info = self.critic_part.follow(batch, self.next_actions(field, batch))
        networks = Networks(field, self.teacher, self.critic)
        x_0 = self.starts_like(batch.actions)
        return info | self.minimize(
            self.policy_optimizer,
            policy_loss,
            networks,
            batch,
            x_0,
            alpha=self.config.alpha * self.spec.chunk,  # the loss takes the mean over the chunk
        )

    @torch.no_grad()
    def next_actions(self, field: DistilledField, batch: Batch) -> Tensor:
        """The policy's actions at s', shape (batch, best_of, action_dim)."""
        n = self.config.best_of
        with self.autocast():
            x_0 = self.starts_like(batch.actions.repeat_interleave(n, 0))
            actions = field.actions(batch.next_contexts.repeat_interleave(n, 0), x_0).clamp(-1, 1)
        return actions.reshape(-1, n, actions.shape[1])
