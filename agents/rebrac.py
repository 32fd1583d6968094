"""ReBRAC: TD3 with behaviour cloning in both actor and critic, a baseline.

Source: Tarasov et al. 2023, "Revisiting the Minimalist Approach to Offline Reinforcement Learning",
arXiv:2305.09836, which extends TD3+BC (Fujimoto and Gu 2021, arXiv:2106.06860). The policy a(s) is
deterministic.

    critic   Q(s, a) regresses to r + gamma mask (min Q'(s', a') - critic_bc ||a' - a'_data||^2)
             with a' = clip(a_target(s') + clipped noise) and a'_data the data's next action
    actor    every second step, down actor_bc ||a(s) - a_data||^2 - Q(s, a(s)) / mean |Q|

Differences [ours]: the critic starts from the data's returns, and learns returns scaled to order
one, in which `critic_bc` still counts unscaled reward, as in the paper; at an episode's last step
no next action is recorded and the penalty is left out; batch size, learning rate and widths are
those of the other agents here (paper: 1024, 1e-3, 256x3); the moving average of the actor's
weights, the paper's target actor, is what acts.

Logged (train/):
    policy_loss, bc_loss, grad_norm: of the actor.
    critic_q_loss, critic_q_data, critic_grad_norm: of the critic.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.critics import Critic, Info, smoothed
from flowmdp.agents.core.one_step import DeterministicField, DeterministicPolicy, OneStepAgent
from flowmdp.arguments import check_numbers

POLICY_DELAY = 2
SMOOTHING = 0.2
"""Noise of the target policy; this and the delay as in TD3 and in the paper."""


def actor_loss(
    field: DeterministicField, critic: Critic, batch: Batch, actor_bc: float
) -> tuple[Tensor, Info]:
    """The mean of actor_bc ||a(s) - a_data||^2 - Q(s, a(s)) / mean |Q|, and what to log."""
    actions = field.mean(batch.contexts)
    q = critic.values(batch.observations, actions)
    bc = (actions - batch.actions).square().sum(-1).mean()
    loss = actor_bc * bc - q.mean() / q.detach().abs().mean().clamp_min(1e-8)
    return loss, {"policy_loss": loss.detach(), "bc_loss": bc.detach()}


class ReBRAC(OneStepAgent):
    """Behaviour-regularised actor-critic, revisited.

    Args:
        policy: "MlpPolicy".
        env: A flow environment with `flow_steps=1`, or its id.
        learning_rate: Adam's, of the actor.
        actor_bc: Weight of behaviour cloning in the actor (paper: 0.001 to 0.1 by dataset).
        critic_bc: Weight of behaviour cloning in the critic, in units of the unscaled reward
            (paper: 0 to 0.5 by dataset).
        **kwargs: Of `ActorCritic`.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": DeterministicPolicy}
    default_steps = 30_000
    clones = False
    reads_value = False
    acts_at_mean = True

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float = 3e-4,
        *,
        actor_bc: float = 0.1,
        critic_bc: float = 0.1,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        check_numbers("[0, inf)", actor_bc=actor_bc, critic_bc=critic_bc)
        super().__init__(policy, env, learning_rate, _init_setup_model=False, **kwargs)
        self.actor_bc, self.critic_bc = actor_bc, critic_bc
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self._actor_info: Info = {}  # of the actor's last step

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"actor_bc": self.actor_bc, "critic_bc": self.critic_bc}
        return super().hyperparameters() | own

    def _update(self) -> Info:
        batch = self.sample()
        next_actions, penalty = self.next_actions(batch)
        rewards = batch.rewards - self.gamma * batch.masks * self.critic_bc * penalty
        info = self.critic_step(batch._replace(rewards=rewards), next_actions)
        if self._phase():
            with self.autocast():
                loss, self._actor_info = self.compiled(actor_loss)(
                    self.policy.field, self.critic, batch, self.actor_bc
                )
            self._actor_info["grad_norm"] = self.descent.step(loss)
        return {**info, **self._actor_info}

    def _phase(self) -> bool:
        """Whether the actor's turn has come."""
        return self._n_updates % POLICY_DELAY == 0

    @torch.no_grad()
    def next_actions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Actions of the smoothed target policy, (batch, action_dim), and their penalty, (batch,).

        The penalty is ||a' - a'_data||^2 in scaled rewards, 0 where no next action was recorded.
        """
        field = self.policy.ema
        assert isinstance(field, DeterministicField)
        noise = self.noise_like(batch.actions)
        with self.autocast():
            actions = smoothed(field.mean(batch.next_contexts), noise, SMOOTHING)
        following = (batch.rows + 1) % len(self.data)
        distance = (actions - self.data.actions[following]).square().sum(-1)
        return actions, self.data.reward_scale * self.data.continues[batch.rows] * distance
