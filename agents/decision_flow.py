"""What DF-dir and DF-div share: behaviour flow, critic, and roll-outs of the flow MDP.

Both agents (Decision Flow, Hu et al. 2025, arXiv:2505.20350) learn in three phases: a behaviour
flow u_v by flow matching, a critic Q(s, a), then the policy u_theta, which starts as a copy of u_v
and climbs Q through the flow MDP. The first two are `pretrain`.

Ours: one roll-out from the next states serves both the critic's target (mode "td") and the flow
critic; values are measured in advantage units (see `critics`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.utils import configure_logger
from torch import Tensor, nn
from tqdm.auto import tqdm

from flowmdp.agents import checkpoint
from flowmdp.agents.acting import OuterPolicy
from flowmdp.agents.anchor import Anchor
from flowmdp.agents.base import Array, FlowAlgorithm
from flowmdp.agents.critics import CRITICS, BehaviorTargets, Info, TDCritic
from flowmdp.agents.data import Batch
from flowmdp.agents.flow_bc import flow_matching_step
from flowmdp.agents.networks import Descent, frozen_copy
from flowmdp.errors import CheckpointError, ConfigurationError
from flowmdp.mdp import flow_step, flow_time

SCALE_SAMPLES = 4096  # states from which the advantage unit nu is measured
DIAGNOSTIC_SAMPLES = 1024
STEER_INTERVAL = 10  # policy steps between two movements of rho
LAMBDA = 0.95  # of the behaviour's returns, after a first round of Monte-Carlo returns
TARGETS_INTERVAL = 2000  # critic updates between two computations of the data's targets


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


class DecisionFlow(FlowAlgorithm):
    """Base of DF-dir and DF-div.

    Args:
        policy: "MlpPolicy".
        env: A flow environment or its id.
        learning_rate: Adam's, of the policy.
        rho: Weight of staying with the behaviour, in advantage units; where it starts if there is
            a budget.
        budget: How far actions may move, in units of the variance of the behaviour's actions at one
            state; `Anchor` holds it by steering rho. None keeps rho fixed.
        critic: "iql" (frozen after pre-training) or "td" (goes on learning under the policy).
        expectile: Of the critic's state value.
        critic_members: Q networks in the ensemble; five [ours: two let every policy run into what
            the critic has not seen].
        pessimism: Of more than two members, Q = mean - pessimism * std.
        ema_rate: Weight of the new parameters in the moving average that acts.
        critic_learning_rate: Adam's, of the critic and the flow critics.
        behavior_learning_rate: Adam's, of the behaviour flow.
        behavior_steps: Gradient steps of the behaviour flow.
        critic_steps: Gradient steps of the critic before the policy moves.
        **kwargs: Of `FlowAlgorithm`.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float = 3e-4,
        *,
        rho: float = 1.0,
        budget: float | None = 0.25,
        critic: str = "td",
        expectile: float = 0.7,
        critic_members: int = 5,
        pessimism: float = 2.0,
        ema_rate: float = 0.005,
        critic_learning_rate: float = 3e-4,
        behavior_learning_rate: float = 3e-4,
        behavior_steps: int = 15_000,
        critic_steps: int = 5_000,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        if critic not in CRITICS:
            raise ConfigurationError(f"critic is {critic!r}: choose one of {', '.join(CRITICS)}")
        if rho <= 0:
            raise ConfigurationError(f"rho is {rho}: it must be positive")
        if budget is not None and budget <= 0:
            raise ConfigurationError(f"budget is {budget}: it must be positive, or None")
        if min(behavior_steps, critic_steps) < 0:
            raise ConfigurationError("behavior_steps and critic_steps must not be negative")
        super().__init__(
            policy, env, learning_rate, ema_rate=ema_rate, _init_setup_model=False, **kwargs
        )
        self.rho, self.budget = rho, budget
        self.critic_mode, self.expectile = critic, expectile
        self.critic_members, self.pessimism = critic_members, pessimism
        self.critic_learning_rate = critic_learning_rate
        self.behavior_learning_rate = behavior_learning_rate
        self.behavior_steps, self.critic_steps = behavior_steps, critic_steps
        self.behavior_updates = self.critic_updates = 0
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        spec, net_arch = self.spec, self.policy_kwargs.get("net_arch", [256, 256, 256])
        policy = self.policy
        self.behavior = frozen_copy(policy.field)
        self.behavior_descent = Descent(
            policy.field, self.behavior_learning_rate, 1.0, self.behavior
        )
        self.descent = Descent(policy.field, self.learning_rate, 1.0, policy.ema, self.ema_rate)
        self.critic = CRITICS[self.critic_mode](
            spec.observation_dim,
            spec.action_dim,
            net_arch,
            members=self.critic_members,
            pessimism=self.pessimism,
            gamma=self.gamma,
            expectile=self.expectile,
        ).to(self.device)
        self.anchor = Anchor(self.rho, self.budget).to(self.device)
        self._targets: BehaviorTargets | None = None  # of the data, under critic.target_v
        self.critic_descent = Descent(self.critic, self.critic_learning_rate, 10.0)
        self.optimizers |= {
            "behavior": self.behavior_descent.adam,
            "field": self.descent.adam,
            "critic": self.critic_descent.adam,
        }

    # -- pre-training -----------------------------------------------------------------------

    def pretrain(
        self, progress_bar: bool = False, callback: Callable[[], bool] | None = None
    ) -> bool:
        """Fit the behaviour flow, then the critic; go on where an interrupted call stopped."""
        started = self.behavior_updates + self.critic_updates
        total = self.behavior_steps + self.critic_steps
        if started == total:
            return True
        len(self.data)  # load and check the data before the bar appears
        if not hasattr(self, "_logger"):
            self._logger = configure_logger(self.verbose, self.tensorboard_log, "pretrain")
        infos: list[Info] = []
        with tqdm(
            total=total, initial=started, desc="pre-training", disable=not progress_bar
        ) as bar:
            while self.behavior_updates + self.critic_updates < total:
                behavior = self.behavior_updates < self.behavior_steps
                infos.append(self._update_behavior() if behavior else self._update_critic())
                bar.update()
                done = self.behavior_updates + self.critic_updates
                if done % 1000 == 0 or done in (self.behavior_steps, total):
                    self._dump(infos, "pretrain", done)
                    infos.clear()
                if done == self.behavior_steps:
                    self._copy_behavior()
                if callback is not None and not callback():
                    return False
        self._fit_scale()
        return True

    def _update_behavior(self) -> Info:
        info = flow_matching_step(self, self.behavior_descent)
        self.behavior_updates += 1
        return {f"behavior_{key}": value for key, value in info.items()}

    def _update_critic(self) -> Info:
        if isinstance(self.critic, TDCritic) and self.critic_updates % TARGETS_INTERVAL == 0:
            self.critic.target_v.load_state_dict(self.critic.v.state_dict())
            self._targets = None
        batch = self.sample()
        info = self._critic_step(batch, None)
        self.critic_updates += 1
        return info

    def _critic_step(self, batch: Batch, next_actions: Tensor | None) -> Info:
        """One step of the critic; without the policy's next actions, under the behaviour."""
        with self.autocast():
            if isinstance(self.critic, TDCritic) and next_actions is None:
                if self._targets is None:
                    lam = 1.0 if self.critic_updates < TARGETS_INTERVAL else LAMBDA
                    self._targets = self.critic.behavior_targets(self.data, lam)
                targets = BehaviorTargets(*(target[batch.rows] for target in self._targets))
                loss, info = self.compiled(self.critic.behavior_loss)(batch, targets)
            else:
                loss, info = self.compiled(self.critic.loss)(batch, next_actions)
        info["grad_norm"] = self.critic_descent.step(loss)
        self.critic.update_target()
        return {f"critic_{key}": value for key, value in info.items()}

    @torch.no_grad()
    def _copy_behavior(self) -> None:
        """Start the policy as a copy of the behaviour flow."""
        for module in (self.policy.field, self.policy.ema):
            module.load_state_dict(self.behavior.state_dict())

    def _fit_scale(self) -> None:
        batch = self.data.sample(SCALE_SAMPLES, self.generator)
        states = batch.observations, batch.contexts
        first, second = (
            self.roll_out(self.behavior, *states, self.noise_like(batch.actions)).actions
            for _ in range(2)
        )
        self.critic.fit_scale(batch.observations, batch.actions, first)
        self.anchor.fit(first, second)

    # -- checkpoints ------------------------------------------------------------------------

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().hyperparameters() | {
            "rho": self.rho,
            "budget": self.budget,
            "critic": self.critic_mode,
            "expectile": self.expectile,
            "critic_members": self.critic_members,
            "pessimism": self.pessimism,
            "critic_learning_rate": self.critic_learning_rate,
            "behavior_learning_rate": self.behavior_learning_rate,
            "behavior_steps": self.behavior_steps,
            "critic_steps": self.critic_steps,
        }

    def _modules(self) -> dict[str, nn.Module]:
        own = {"behavior": self.behavior, "critic": self.critic, "anchor": self.anchor}
        return super()._modules() | own

    def _counters(self) -> dict[str, int]:
        pretraining = {n: getattr(self, n) for n in ("behavior_updates", "critic_updates")}
        return super()._counters() | pretraining

    def pretrain_key(self) -> str:
        """Name of what `pretrain` computes: equal keys, equal behaviour flow and critic.

        A hash of the data and of every argument that pre-training depends on; DF-dir and DF-div
        share it.
        """
        own = DecisionFlow.hyperparameters(self)
        for name in ("learning_rate", "ema_rate", "rho", "budget", "compile"):
            del own[name]
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode())
        digest.update(json.dumps(dataclasses.asdict(self.spec), sort_keys=True).encode())
        for array in (self.dataset.observations, self.dataset.actions, self.dataset.rewards):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def save_pretrained(self, path: checkpoint.Target) -> None:
        """Write normaliser, behaviour flow and critic, for another run of the same key."""
        tensors = {
            "generator/learn": self.generator.get_state(),
            "behavior_variance": self.anchor.variance,
        }
        for name, module in self._pretrained_modules().items():
            tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
        tensors |= checkpoint.flatten_optimizer("critic", self.optimizers["critic"])
        manifest = {
            "algorithm": "pretrained",
            "key": self.pretrain_key(),
            "task": self.spec.task,
            "behavior_updates": self.behavior_updates,
            "critic_updates": self.critic_updates,
        }
        checkpoint.write(path, manifest, tensors)

    def load_pretrained(self, path: checkpoint.Target) -> None:
        """Take what `save_pretrained` wrote; training then goes on as if it had been computed here.

        Raises:
            CheckpointError: If the file is damaged or of another key.
        """
        manifest, tensors = checkpoint.read(path)
        if manifest.get("key") != self.pretrain_key():
            raise CheckpointError(f"{path} was pre-trained on other data or with other settings")
        if "behavior_variance" not in tensors:
            raise CheckpointError(f"{path} was written by an older version")
        checkpoint.restore_modules(self._pretrained_modules(), tensors)
        self.anchor.variance.copy_(tensors["behavior_variance"])
        checkpoint.restore_optimizer("critic", self.optimizers["critic"], tensors)
        self.generator.set_state(tensors["generator/learn"])
        self.behavior_updates = int(manifest["behavior_updates"])
        self.critic_updates = int(manifest["critic_updates"])
        self._copy_behavior()

    def _pretrained_modules(self) -> dict[str, nn.Module]:
        return {
            "normalizer": self.policy.normalizer,
            "behavior": self.behavior,
            "critic": self.critic,
        }

    # -- the flow MDP -----------------------------------------------------------------------

    def _update(self) -> Info:
        """One roll-out; the critic where it goes on learning, the anchor, then the policy.

        The policy learns on half as many chains as there are transitions, the critic's target
        needs an action for each.
        """
        batch = self.sample()
        half = (len(batch.actions) + 1) // 2
        learns = self.critic_mode == "td"
        chains = slice(None if learns else half)
        observations, contexts = (state[chains] for state in batch.flow_states)
        x_0 = self.noise_like(batch.actions[chains])
        rollout = self.roll_out(self.policy.ema, observations, contexts, x_0)
        info = self._critic_step(batch, rollout.actions) if learns else {}
        rollout = rollout.first(half)
        self.steer_anchor(rollout)
        return info | self._update_policy(batch, rollout)

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
        if self.budget is None or self.num_timesteps % STEER_INTERVAL:
            return
        behavior = self.roll_out(
            self.behavior, rollout.observations, rollout.contexts, rollout.points[0]
        )
        self.anchor.steer((rollout.actions - behavior.actions).square().sum(-1).mean())

    @torch.no_grad()
    def _diagnostics(self) -> dict[str, float]:
        """On fresh states: is Q exploited, how far have actions moved, how many are clipped."""
        batch = self.data.sample(DIAGNOSTIC_SAMPLES, self.act_generator)
        x_0 = torch.randn(batch.actions.shape, generator=self.act_generator, device=self.device)
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
        best_of: int = 1,
    ) -> Array:
        """Outer actions by whole chains; see `FlowAlgorithm.act`.

        Args:
            observations: Shape (n, observation_dim).
            n_steps: Flow steps, None for the environment's.
            solver: "euler", "midpoint" or "heun".
            noise: x_0, shape (n * best_of, action_dim); None draws it.
            previous: Previous actions and flags, where the flow state includes them.
            best_of: Chains per observation; the action that the critic values most is taken.

        Returns:
            Shape (n, action_dim), in [-1, 1].
        """
        if best_of < 1:
            raise ConfigurationError(f"best_of is {best_of}: it must be at least 1")
        states = np.repeat(observations, best_of, axis=0)
        if previous is not None:
            previous = np.repeat(previous, best_of, axis=0)
        actions = super().act(states, n_steps, solver, noise, previous)
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

    def behavior_policy(self) -> OuterPolicy:
        """The behaviour flow u_v as a policy for the bare outer environment."""
        return OuterPolicy(self, self.behavior)


def chains(
    field: nn.Module, contexts: Tensor, x_0: Tensor, flow_steps: int
) -> tuple[Tensor, Tensor]:
    """Points (flow_steps + 1, n, action_dim) and velocities (flow_steps, n, action_dim)."""
    points, velocities = [x_0], []
    for k in range(flow_steps):
        velocities.append(field(contexts, points[-1], flow_time(k, flow_steps)))
        points.append(flow_step(points[-1], velocities[-1], flow_steps))
    return torch.stack(points), torch.stack(velocities)
