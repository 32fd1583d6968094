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

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowmdp.agents.core.acting import OuterPolicy
from flowmdp.agents.core.critics import Critic, Info
from flowmdp.agents.core.one_step import OneStepAgent, SampledField
from flowmdp.arguments import check_integers


class BestOfField(SampledField):
    """The best of several samples of a flow, by a critic.

    Args:
        flow: The velocity field that is sampled.
        flow_steps: Euler steps of its chains.
        critic: Its `values` choose.
        observation_dim: Width of the observation with which a context begins.
        shifts: Of the noises, shape (samples, action_dim); see `shifted_noises`.
        noise_scale: Standard deviation of x_0.
    """

    shifts: Tensor

    def __init__(
        self,
        flow: nn.Module,
        flow_steps: int,
        critic: Critic,
        observation_dim: int,
        shifts: Tensor,
        noise_scale: float,
    ) -> None:
        super().__init__(flow, flow_steps)
        self.critic, self.observation_dim = critic, observation_dim
        self.noise_scale = noise_scale
        self.register_buffer("shifts", shifts)

    def actions(self, context: Tensor, x_0: Tensor) -> Tensor:
        """The sample of the highest value, in [-1, 1]."""
        samples = len(self.shifts)
        noises = shifted_noises(x_0, self.shifts, self.noise_scale).flatten(0, 1)
        contexts = context.repeat_interleave(samples, 0)
        candidates = super().actions(contexts, noises)
        values = self.critic.values(contexts[:, : self.observation_dim], candidates)
        best = values.unflatten(0, (-1, samples)).argmax(1)
        chosen: Tensor = candidates.unflatten(0, (-1, samples))[torch.arange(len(x_0)), best]
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


class IFQL(OneStepAgent):
    """Best of N from a behaviour flow by IQL's critic.

    Args:
        policy: "MlpPolicy".
        env: A flow environment with `flow_steps=1`, or its id.
        learning_rate: Unused: only flow and critic learn, at their own rates.
        expectile: Of V's regression, in [0.5, 1) (paper: 0.9) [ours: 0.7].
        samples: Actions to choose from (paper: 32).
        sampling_steps: Euler steps of the behaviour flow (paper: 10).
        critic_steps: Of the critic before `learn`, half on returns, half by expectiles [ours].
        **kwargs: Of `ActorCritic`.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    default_steps = 2_000
    environment: ClassVar[dict[str, Any]] = {"noise_scale": 0.3}

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float = 3e-4,
        *,
        expectile: float = 0.7,
        samples: int = 32,
        sampling_steps: int = 10,
        critic: str = "iql",
        critic_steps: int = 10_000,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        check_integers(1, samples=samples, sampling_steps=sampling_steps)
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
        self.samples, self.sampling_steps = samples, sampling_steps
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self.policy.ema = BestOfField(
            self.behavior,
            self.sampling_steps,
            self.critic,
            self.spec.observation_dim,
            self.shifts(),
            self.spec.noise_scale,
        ).to(self.device)

    def shifts(self) -> Tensor:
        """Fixed shifts of the noises, shape (samples, action_dim); the first is 0."""
        generator = torch.Generator().manual_seed(0)
        shifts = torch.rand(self.samples, self.spec.action_dim, generator=generator)
        shifts[0] = 0
        return shifts

    def set_noise_scale(self, noise_scale: float) -> None:
        """Act from another noise than the one of the training."""
        super().set_noise_scale(noise_scale)
        field = self.policy.ema
        assert isinstance(field, BestOfField)
        field.noise_scale = noise_scale

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"samples": self.samples, "sampling_steps": self.sampling_steps}
        return super().hyperparameters() | own

    def _modules(self) -> dict[str, nn.Module]:
        own = super()._modules()
        return {name: own[name] for name in ("policy", "flow")}  # the policy holds the others

    def behavior_policy(self, **options: Any) -> OuterPolicy:
        """The flow that is sampled, one sample per state."""
        return OuterPolicy(self, SampledField(self.behavior, self.sampling_steps), **options)

    def _update(self) -> Info:
        return self.critic_step(self.sample())
