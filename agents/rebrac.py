"""ReBRAC: TD3 with behaviour cloning in both actor and critic, a baseline.

Source: Tarasov et al. 2023, "Revisiting the Minimalist Approach to Offline Reinforcement Learning",
arXiv:2305.09836, which extends TD3+BC (Fujimoto and Gu 2021, arXiv:2106.06860). The policy a(s) is
deterministic.

    critic   Q(s, a) regresses to r + gamma mask (Q'(s', a') - critic_bc ||a' - a'_data||^2)
             with a' = clip(a_target(s') + clipped noise) and a'_data the data's next action
    policy   every second step, down actor_bc ||a(s) - a_data||^2 - Q(s, a(s)) / mean |Q|

Differences [ours]: the critic is the one of all agents (`paper` has the minimum of two networks);
it starts from the data's returns, and learns returns scaled to order one, in which `critic_bc`
still counts unscaled reward, as in the paper; at an episode's last step no next action is recorded
and the penalty is left out; Q' moves at every step (in their code with the policy, every second
one); batch size, learning rate and widths are those of the other agents here (paper: 1024, 1e-3,
256x3); the moving average of the policy's weights, the paper's target actor, is what acts.

Logged (train/):
    policy_loss, bc_loss, grad_norm: of the policy.
    critic_q_loss, critic_q_data, critic_grad_norm: of the critic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.batch import Batch, taken
from flowmdp.agents.core.config import PolicyConfig, SmoothedConfig
from flowmdp.agents.core.critics import Critic, td_loss
from flowmdp.agents.core.networks import Info
from flowmdp.agents.core.one_step import DeterministicField
from flowmdp.agents.core.parts import ReturnCritic
from flowmdp.arguments import Range

POLICY_DELAY = 2
"""As in TD3 and in the paper."""


@dataclass(frozen=True, kw_only=True)
class ReBRACConfig(PolicyConfig, SmoothedConfig):
    """Hyper-parameters of ReBRAC."""

    actor_bc: Annotated[float, Range("[0, inf)")] = 0.1
    """Weight of behaviour cloning in the policy (paper: 0.001 to 0.1 by dataset)."""
    critic_bc: Annotated[float, Range("[0, inf)")] = 0.1
    """Weight of behaviour cloning in the critic, in units of the unscaled reward (paper: 0 to 0.5
    by dataset)."""


class Networks(NamedTuple):
    """What the loss reads."""

    policy: DeterministicField
    critic: Critic


def policy_loss(
    networks: Networks, batch: Batch, noise: None = None, *, actor_bc: float
) -> tuple[Tensor, Info]:
    """The mean of actor_bc ||a(s) - a_data||^2 - Q(s, a(s)) / mean |Q|."""
    actions = networks.policy.mean(batch.contexts)
    q = networks.critic.values(batch.observations, actions)
    bc = taken((actions - batch.actions).square(), batch.valid).sum(-1).mean()
    loss = actor_bc * bc - q.mean() / q.detach().abs().mean().clamp_min(1e-8)
    return loss, {"policy_loss": loss.detach(), "bc_loss": bc.detach()}


class ReBRAC(FlowAlgorithm[ReBRACConfig], name="rebrac"):
    """Behaviour-regularised actor-critic, revisited (Tarasov et al. 2023, arXiv:2305.09836)."""

    config_class = ReBRACConfig
    default_steps = 30_000
    paper: ClassVar[dict[str, Any]] = {"critic_members": 2, "pessimism": None}
    only_flow_steps = 1
    acts_at_mean = True
    learns_online = False

    def make_field(self) -> DeterministicField:
        """The policy."""
        return DeterministicField(self.spec.context_dim, self.spec.action_dim, self.config.net_arch)

    def build(self) -> None:
        """The critic, and the policy's optimiser."""
        self.critic_part = ReturnCritic(self, learns_on="q")
        self.parts, self.critic = (self.critic_part,), self.critic_part.critic
        self.policy_optimizer = self.policy_descent()
        self._policy_info: Info = {}  # of the policy's last step

    def update(self) -> Info:
        """One step of the critic; every second time one of the policy."""
        batch, config = self.sample(), self.config
        next_actions, penalty = self.next_actions(batch)
        rewards = batch.rewards - self.critic.gamma * batch.masks * config.critic_bc * penalty
        info = self.critic_part.learn(td_loss, batch._replace(rewards=rewards), next_actions)
        if self.phase():
            networks = Networks(self.policy.field, self.critic)  # type: ignore[arg-type]
            self._policy_info = self.minimize(
                self.policy_optimizer, policy_loss, networks, batch, actor_bc=config.actor_bc
            )
        return info | self._policy_info

    def phase(self) -> bool:
        """Whether the policy's turn has come."""
        return self._n_updates % POLICY_DELAY == 0

    @torch.no_grad()
    def next_actions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Actions of the smoothed target policy, (batch, action_dim), and their penalty, (batch,).

        The penalty is ||a' - a'_data||^2 in scaled rewards, 0 where no next action was recorded. Of
        a chunk it is the sum over its actions, as the reward is.
        """
        field: Any = self.policy.ema
        data = self.data
        with self.autocast():
            means = field.mean(batch.next_contexts)
        actions = self.critic_part.next_actions(batch, means[:, None])
        following = data.following(batch.rows)
        errors = (actions - data.chunks(following)).square()
        distance = taken(errors, data.valid(following)).sum(-1)
        return actions, data.reward_scale * data.continues[batch.rows] * distance
