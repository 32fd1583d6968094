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

from typing import Any, ClassVar

import torch
from torch import Tensor

from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.critics import Info
from flowmdp.agents.core.one_step import GaussianField, GaussianPolicy, OneStepAgent
from flowmdp.arguments import check_numbers

MAX_WEIGHT = 100.0
"""Weights are clipped here, as in the paper's code."""


def advantage_weights(advantages: Tensor, beta: float) -> Tensor:
    """min(exp(beta A / mean |A|), MAX_WEIGHT), shape (batch,)."""
    unit = advantages.abs().mean().clamp_min(1e-8)
    return (beta * advantages / unit).exp().clamp(max=MAX_WEIGHT)


def policy_loss(field: GaussianField, batch: Batch, weights: Tensor) -> Tensor:
    """Mean of -weight log pi(a | s) over the batch; weights (batch,)."""
    return -(weights * field.log_prob(batch.contexts, batch.actions)).mean()


class IQL(OneStepAgent):
    """Implicit Q-learning.

    Args:
        policy: "MlpPolicy".
        env: A flow environment with `flow_steps=1`, or its id.
        learning_rate: Adam's, of the policy (paper: 3e-4, for a million steps).
        expectile: Of V's regression, in [0.5, 1) (paper: 0.7 on Gym-MuJoCo, 0.9 on AntMaze).
        beta: Inverse temperature, in units of the mean absolute advantage [ours] (paper: 3, in
            the reward's).
        critic_steps: Of the critic alone, half on returns and half by expectiles [ours].
        **kwargs: Of `ActorCritic`.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": GaussianPolicy}
    default_steps = 30_000
    clones = False
    acts_at_mean = True

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float = 3e-4,
        *,
        expectile: float = 0.7,
        beta: float = 1.0,
        critic: str = "iql",
        critic_steps: int = 10_000,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        check_numbers("[0, inf)", beta=beta)
        super().__init__(
            policy,
            env,
            learning_rate,
            critic=critic,
            expectile=expectile,
            critic_steps=critic_steps,
            _init_setup_model=False,
            **kwargs,
        )
        self.beta = beta
        if _init_setup_model:
            self._setup_model()

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().hyperparameters() | {"beta": self.beta}

    def _update(self) -> Info:
        batch = self.sample()
        info = self.critic_step(batch)
        with torch.no_grad(), self.autocast():
            advantages = self.critic.advantages(batch.observations, batch.actions)
        weights = advantage_weights(advantages, self.beta)
        with self.autocast():
            loss = self.compiled(policy_loss)(self.policy.field, batch, weights)
        field = self.policy.field
        assert isinstance(field, GaussianField)
        return info | {
            "policy_loss": loss.detach(),
            "grad_norm": self.descent.step(loss),
            "weight_max": weights.max(),
            "std": field.std.detach().mean(),
        }
