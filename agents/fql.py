"""FQL: flow Q-learning, a one-step policy distilled from a behaviour flow, a baseline.

Source: Park et al. 2025, "Flow Q-Learning", arXiv:2502.02538. A flow clones the behaviour; the
policy a(s, x_0), a single network, descends

    alpha ||a(s, x_0) - flow(s, x_0)||^2 - Q(s, a(s, x_0)) / mean |Q|

with the squared distance averaged over dimensions, and the critic regresses to
r + gamma mask mean Q'(s', a(s', x_0)).

Differences [ours]: the flow is trained before the policy instead of beside it, and the critic
starts from the data's returns; Q is always divided by mean |Q| (an option of the paper's code), so
that alpha does not depend on the rewards' scale; the moving average of the policy's weights acts;
noise of 0.3 instead of 1 throughout, see `DecisionFlow.environment`.

Logged (train/):
    policy_loss, distill_loss, grad_norm: of the policy.
    critic_q_loss, critic_q_data, critic_grad_norm: of the critic.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from flowmdp.agents.core.acting import OuterPolicy
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.critics import Critic, Info
from flowmdp.agents.core.one_step import DistilledField, DistilledPolicy, OneStepAgent, SampledField
from flowmdp.arguments import check_integers, check_numbers


def policy_loss(
    field: DistilledField, critic: Critic, batch: Batch, x_0: Tensor, teacher: Tensor, alpha: float
) -> tuple[Tensor, Info]:
    """The mean of alpha ||a - teacher||^2 / action_dim - Q(s, clip(a)) / mean |Q|, and its parts.

    Args:
        field: The one-step policy.
        critic: Q.
        batch: Gives the states.
        x_0: Noise, shape (batch, action_dim).
        teacher: The behaviour flow's actions from x_0, shape (batch, action_dim).
        alpha: Weight of the distillation.
    """
    actions = field.actions(batch.contexts, x_0)
    distance = (actions - teacher).square().mean()
    q = critic.values(batch.observations, actions.clamp(-1, 1))
    loss = alpha * distance - q.mean() / q.detach().abs().mean().clamp_min(1e-8)
    return loss, {"policy_loss": loss.detach(), "distill_loss": distance.detach()}


class FQL(OneStepAgent):
    """Flow Q-learning.

    Args:
        policy: "MlpPolicy".
        env: A flow environment with `flow_steps=1`, or its id.
        learning_rate: Adam's, of the policy (paper: 3e-4).
        alpha: Weight of the distillation (paper: searched for every dataset).
        sampling_steps: Euler steps of the behaviour flow (paper: 10).
        pessimism: 0, the mean of the Q networks (paper).
        **kwargs: Of `ActorCritic`.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": DistilledPolicy}
    default_steps = 15_000
    reads_value = False
    environment: ClassVar[dict[str, Any]] = {"noise_scale": 0.3}

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float = 3e-4,
        *,
        alpha: float = 1.0,
        sampling_steps: int = 10,
        pessimism: float | None = 0.0,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        check_numbers("[0, inf)", alpha=alpha)
        check_integers(1, sampling_steps=sampling_steps)
        super().__init__(
            policy,
            env,
            learning_rate,
            pessimism=pessimism,
            _init_setup_model=False,
            **kwargs,
        )
        self.alpha, self.sampling_steps = alpha, sampling_steps
        if _init_setup_model:
            self._setup_model()

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"alpha": self.alpha, "sampling_steps": self.sampling_steps}
        return super().hyperparameters() | own

    def _setup_model(self) -> None:
        super()._setup_model()
        self.teacher = SampledField(self.behavior, self.sampling_steps)

    def behavior_policy(self, **options: Any) -> OuterPolicy:
        """The behaviour flow as a policy for the bare outer environment."""
        return OuterPolicy(self, self.teacher, **options)

    def _update(self) -> Info:
        batch, field = self.sample(), self.policy.field
        assert isinstance(field, DistilledField)
        with torch.no_grad(), self.autocast():
            x_0 = self.starts_like(batch.actions)
            next_actions = field.actions(batch.next_contexts, x_0).clamp(-1, 1)
        info = self.critic_step(batch, next_actions)
        x_0 = self.starts_like(batch.actions)
        with torch.no_grad(), self.autocast():
            teacher = self.teacher.actions(batch.contexts, x_0)
        with self.autocast():
            loss, losses = self.compiled(policy_loss)(
                field, self.critic, batch, x_0, teacher, self.alpha
            )
        return {**info, **losses, "grad_norm": self.descent.step(loss)}
