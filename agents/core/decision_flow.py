"""What DF-dir and DF-div share: behaviour flow, critic, and roll-outs of the flow MDP.

Both agents (Decision Flow, Hu et al. 2025, arXiv:2505.20350) learn in three phases: a behaviour
flow u_v by flow matching, a critic Q(s, a), then the policy u_theta, which starts as a copy of u_v
and climbs Q through the flow MDP. The first two are `pretrain`.

Ours: one roll-out from the next states serves both the critic's target (mode "td") and the flow
critic; values are measured in advantage units (see `critics`).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flowmdp.agents.core.actor_critic import ActorCritic
from flowmdp.agents.core.algorithm import Array
from flowmdp.agents.core.anchor import Anchor
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.critics import Info, smoothed
from flowmdp.agents.core.networks import Descent
from flowmdp.arguments import check_numbers
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.transition import flow_step, flow_time

SCALE_SAMPLES = 4096  # states from which the advantage unit nu is measured
DIAGNOSTIC_SAMPLES = 1024
STEER_INTERVAL = 10  # policy steps between two movements of rho


class Rollout(NamedTuple):
    """Chains of a velocity field; no gradient."""

    observations: Tensor  # (batch, observation_dim)
    contexts: Tensor  # (batch, context_dim)
    points: Tensor  # (flow_steps + 1, batch, action_dim), x_0 first
    velocities: Tensor  # (flow_steps, batch, action_dim)

    @property
    def actions(self) -> Tensor:
        """The executed actions, shape (batch, action_dim)."""
        return self.points[-1].clamp(-1, 1)

    def first(self, n: int) -> Rollout:
        """The first n chains."""
        return Rollout(
            self.observations[:n], self.contexts[:n], self.points[:, :n], self.velocities[:, :n]
        )


class DecisionFlow(ActorCritic):
    """Base of DF-dir and DF-div.

    Args:
        policy: "MlpPolicy".
        env: A flow environment or its id.
        learning_rate: Adam's, of the policy.
        rho: Weight of staying with the behaviour, in advantage units; where it starts if there is
            a budget. None: by `behavior_weight`, and with a budget 100, so that the policy leaves
            its clone slowly.
        budget: How far actions may move [ours]: their mean squared distance from the behaviour's,
            in units of the variance of one action coordinate (0.1 is a good start); `Anchor` holds
            it by steering rho. None keeps rho fixed.
        behavior_weight: rho in units of mean |Q|, as in TD3+BC; in place of rho and budget. None:
            0.025 for DF-dir, 0.01 for DF-div.
        critic_members: Q networks in the ensemble; five [ours: two let every policy run into what
            the critic has not seen].
        pessimism: Q = mean - pessimism * std of the members.
        smoothing: Standard deviation of the noise on the policy's actions in the "td" critic's
            target, TD3's target policy smoothing [ours for flow policies]; 0 adds none.
        critic_noise: Standard deviation, in that of each weight tensor, of Gaussian noise put on
            Q's weights before the policy moves: what a bad critic does. With "iql" only, since
            "td" learns it away.
        **kwargs: Of `ActorCritic`; the "iql" critic is frozen once the policy moves.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    default_steps = 9_000  # 12,000 gain nothing more, see docs/experiments.md
    default_weight: ClassVar[float] = 0.01
    """`behavior_weight` if it is not given [ours: docs/experiments.md, eleventh round]."""
    environment: ClassVar[dict[str, Any]] = {"noise_scale": 0.3}
    """Less noise [ours]: robots fall by the rare actions of a wide policy; some keeps the modes."""
    paper: ClassVar[dict[str, Any]] = {
        "critic": "iql",
        "critic_steps": 20_000,
        "critic_members": 2,
        "pessimism": None,
        "budget": None,
        "rho": 1.0,
        "smoothing": 0.0,
    }
    """As far as the paper's text was at hand; its own rho and steps were not. What no argument
    undoes stands on the algorithm's page in docs/algorithms."""

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float = 3e-4,
        *,
        rho: float | None = None,
        budget: float | None = None,
        behavior_weight: float | None = None,
        critic_members: int = 5,
        pessimism: float | None = 2.0,
        smoothing: float = 0.2,
        critic_noise: float = 0.0,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        if rho is not None:
            check_numbers("(0, inf)", rho=rho)
        if budget is not None:
            check_numbers("(0, inf)", budget=budget)
        if behavior_weight is not None:
            check_numbers("(0, inf)", behavior_weight=behavior_weight)
            if rho is not None or budget is not None:
                raise ConfigurationError(
                    "behavior_weight takes the place of rho and budget: set both to None"
                )
        check_numbers("[0, inf)", smoothing=smoothing, critic_noise=critic_noise)
        if critic_noise and kwargs.get("critic") != "iql":
            raise ConfigurationError('critic_noise needs critic="iql"')
        super().__init__(
            policy,
            env,
            learning_rate,
            critic_members=critic_members,
            pessimism=pessimism,
            _init_setup_model=False,
            **kwargs,
        )
        self.rho, self.budget, self.behavior_weight = rho, budget, behavior_weight
        self.smoothing = smoothing
        self.critic_noise = critic_noise
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        policy = self.policy
        self.descent = Descent(policy.field, self.learning_rate, 1.0, policy.ema, self.ema_rate)
        self.optimizers["field"] = self.descent.adam
        weight = self.default_weight if self.behavior_weight is None else self.behavior_weight
        self.anchor = Anchor(self.rho, self.budget, weight).to(self.device)

    @torch.no_grad()
    def _prepare(self) -> None:
        """Start the policy as a copy of the behaviour flow, measure rho or the budget's unit."""
        for module in (self.policy.field, self.policy.ema):
            module.load_state_dict(self.behavior.state_dict())
        if self.critic_noise:
            for weight in self.critic.q.weights:
                weight += self.critic_noise * weight.std() * self.noise_like(weight)
        batch = self.data.sample(SCALE_SAMPLES, self.generator)
        states = batch.observations, batch.contexts
        first, second = (
            self.roll_out(self.behavior, *states, self.noise_like(batch.actions)).actions
            for _ in range(2)
        )
        magnitude = self.critic.fit_scale(batch.observations, batch.actions, first)
        self.anchor.fit(magnitude, first, second)

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().hyperparameters() | {
            "rho": self.rho,
            "budget": self.budget,
            "behavior_weight": self.behavior_weight,
            "smoothing": self.smoothing,
            "critic_noise": self.critic_noise,
        }

    def _modules(self) -> dict[str, nn.Module]:
        return super()._modules() | {"anchor": self.anchor}

    # -- the flow MDP -----------------------------------------------------------------------

    def _update(self) -> Info:
        """One roll-out; the critic where it goes on learning, the anchor, then the policy.

        The policy learns on fewer chains than there are transitions (`policy_chains`), the
        critic's target needs an action for each.
        """
        batch = self.sample()
        policy_chains = self.policy_chains(len(batch.actions))
        learns = self.critic_mode == "td"
        chains = slice(None if learns else policy_chains)
        observations, contexts = (state[chains] for state in batch.flow_states)
        x_0 = self.starts_like(batch.actions[chains])
        rollout = self.roll_out(self.policy.ema, observations, contexts, x_0)
        info: Info = {}
        if learns:
            next_actions = rollout.actions
            if self.smoothing > 0:
                noise = self.noise_like(next_actions)
                next_actions = smoothed(next_actions, noise, self.smoothing)
            info = self.critic_step(batch, next_actions)
        rollout = rollout.first(policy_chains)
        self.steer_anchor(rollout)
        return info | self._update_policy(batch, rollout)

    def _phase(self) -> bool:
        return self._steers()

    def policy_chains(self, transitions: int) -> int:
        """How many chains the policy learns on in a batch of so many transitions."""
        return (transitions + 1) // 2

    def _update_policy(self, batch: Batch, rollout: Rollout) -> Info:
        """Evaluate and improve the policy in the flow MDP, one gradient step; what to log."""
        raise TypeError("DecisionFlow is abstract: use DFDir or DFDiv")

    @torch.no_grad()
    def roll_out(
        self, field: nn.Module, observations: Tensor, contexts: Tensor, x_0: Tensor
    ) -> Rollout:
        """Chains of `field` from noise x_0, shape (batch, action_dim), one for each state."""
        with self.autocast():
            points, velocities = self.compiled(chains)(field, contexts, x_0, self.spec.flow_steps)
        return Rollout(observations, contexts, points, velocities)

    @torch.no_grad()
    def steer_anchor(self, rollout: Rollout) -> None:
        """Adapt rho to how far the roll-out's actions are from the behaviour's."""
        if not self._steers():
            return
        behavior = self.roll_out(
            self.behavior, rollout.observations, rollout.contexts, rollout.points[0]
        )
        self.anchor.steer((rollout.actions - behavior.actions).square().sum(-1).mean())

    def _steers(self) -> bool:
        """Whether this update moves rho."""
        return self.budget is not None and self.num_timesteps % STEER_INTERVAL == 0

    @torch.no_grad()
    def _diagnostics(self) -> dict[str, float]:
        """On fresh states: is Q exploited, how far have actions moved, how many are clipped."""
        batch = self.data.sample(DIAGNOSTIC_SAMPLES, self.act_generator)
        x_0 = torch.randn(batch.actions.shape, generator=self.act_generator, device=self.device)
        x_0 = self.spec.noise_scale * x_0
        states = batch.observations, batch.contexts
        policy = self.roll_out(self.policy.ema, *states, x_0)
        behavior = self.roll_out(self.behavior, *states, x_0)
        gain = self.critic.advantages(batch.observations, policy.actions)
        data = self.critic.advantages(batch.observations, batch.actions)
        return {
            "rho": self.anchor.rho.item(),
            "q_gap": (gain - data).mean().item(),
            "transport": (policy.actions - behavior.actions).square().sum(-1).mean().item(),
            "clipped_fraction": (policy.points[-1].abs() > 1).float().mean().item(),
        }

    def act(
        self,
        observations: Array,
        n_steps: int | None = None,
        solver: str = "euler",
        noise: Array | None = None,
        previous: Array | None = None,
        field: nn.Module | None = None,
        best_of: int = 1,
    ) -> Array:
        """Outer actions by whole chains; see `FlowAlgorithm.act`.

        Args:
            observations: Shape (n, observation_dim).
            n_steps: Flow steps, None for the environment's.
            solver: "euler", "midpoint" or "heun".
            noise: x_0, shape (n * best_of, action_dim); None draws it.
            previous: Previous actions and flags, where the flow state includes them.
            field: The velocity field, None for the acting one.
            best_of: Chains per observation; the action that the critic values most is taken.

        Returns:
            Shape (n, action_dim), in [-1, 1].
        """
        if best_of < 1:
            raise ConfigurationError(f"best_of is {best_of}: it must be at least 1")
        states = np.repeat(observations, best_of, axis=0)
        if previous is not None:
            previous = np.repeat(previous, best_of, axis=0)
        actions = super().act(states, n_steps, solver, noise, previous, field)
        if best_of == 1:
            return actions
        values = self.q_values(states, actions).reshape(-1, best_of)
        best: Array = actions.reshape(-1, best_of, self.spec.action_dim)[
            np.arange(len(values)), values.argmax(1)
        ]
        return best

    @torch.no_grad()
    def q_values(self, observations: Array, actions: Array) -> Array:
        """The critic's Q(s, a) in scaled reward units, shape (n,); rows are state-action pairs."""
        states = torch.as_tensor(observations, dtype=torch.float32, device=self.device)
        q = self.critic.values(
            self.policy.normalizer(states), torch.as_tensor(actions, device=self.device)
        )
        return q.cpu().numpy()


def chains(
    field: nn.Module, contexts: Tensor, x_0: Tensor, flow_steps: int
) -> tuple[Tensor, Tensor]:
    """Points (flow_steps + 1, n, action_dim) and velocities (flow_steps, n, action_dim)."""
    points, velocities = [x_0], []
    for k in range(flow_steps):
        velocities.append(field(contexts, points[-1], flow_time(k, flow_steps)))
        points.append(flow_step(points[-1], velocities[-1], flow_steps))
    return torch.stack(points), torch.stack(velocities)
