"""Agents that improve on the data: first a behaviour flow and a critic, then the policy.

`pretrain` fits both; `learn` runs it where it is missing and then moves the policy. The two parts
depend on nothing but the data, the seed and their own settings, each with a random generator of its
own, so all algorithms can share them (`parts`, each with a key): a comparison between two of them
starts from one critic and one clone.

Ours: critics start from the data's own TD(lambda) returns (see `critics.Critic`), whatever they
learn afterwards. One-step targets alone would need many times the updates to converge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.utils import configure_logger
from torch import Tensor, nn
from tqdm.auto import tqdm

import flowmdp
from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.acting import OuterPolicy
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.critics import CRITICS, BehaviorTargets, Info
from flowmdp.agents.core.networks import Descent, VelocityField, frozen_copy
from flowmdp.agents.flow_bc import flow_matching_step
from flowmdp.arguments import check_integers, check_numbers
from flowmdp.errors import CheckpointError, ConfigurationError

LAMBDA = 0.95  # of the behaviour's returns, after a first round of Monte-Carlo returns
TARGETS_INTERVAL = 2000  # critic updates between two computations of the data's targets

SHARED = ("batch_size", "precision", "policy_kwargs", "seed")
DEPENDS_ON = {
    "behavior": (*SHARED, "path", "behavior_learning_rate", "behavior_steps"),
    "critic": (
        *SHARED,
        "gamma",
        "critic",
        "expectile",
        "critic_members",
        "pessimism",
        "critic_learning_rate",
        "critic_steps",
    ),
}
"""The arguments that each part of the pre-training depends on."""


class ActorCritic(FlowAlgorithm):
    """Base of the agents that need a critic.

    Args:
        policy: "MlpPolicy".
        env: A flow environment or its id.
        learning_rate: Adam's, of the policy.
        critic: "td" (learns on under the policy) or "iql" (never asks for an action outside the
            data).
        expectile: Of V's regression to Q, in [0.5, 1); the fit to returns before it is to the mean.
        critic_members: Q networks in the ensemble.
        pessimism: Q = mean - pessimism * std of the members; None takes their minimum.
        critic_learning_rate: Adam's, of the critic.
        critic_steps: Gradient steps of the critic before the policy moves.
        behavior_learning_rate: Adam's, of the behaviour flow [ours: three times the policy's, see
            docs/experiments.md, thirteenth round].
        behavior_steps: Gradient steps of the behaviour flow.
        **kwargs: Of `FlowAlgorithm`.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    clones: ClassVar[bool] = True
    """Whether the algorithm uses a behaviour flow."""
    reads_value: ClassVar[bool] = True
    """Whether the policy learns by the critic's V(s) too; where not, "td" fits it before only."""

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float = 3e-4,
        *,
        critic: str = "td",
        expectile: float = 0.7,
        critic_members: int = 2,
        pessimism: float | None = None,
        critic_learning_rate: float = 3e-4,
        critic_steps: int = 5_000,
        behavior_learning_rate: float = 1e-3,
        behavior_steps: int = 30_000,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        if critic not in CRITICS:
            raise ConfigurationError(f"critic is {critic!r}: choose one of {', '.join(CRITICS)}")
        check_integers(0, behavior_steps=behavior_steps, critic_steps=critic_steps)
        check_integers(1, critic_members=critic_members)
        check_numbers("[0.5, 1)", expectile=expectile)
        check_numbers(
            "[0, inf)",
            behavior_learning_rate=behavior_learning_rate,
            critic_learning_rate=critic_learning_rate,
        )
        if pessimism is not None:
            check_numbers("(-inf, inf)", pessimism=pessimism)
        if pessimism and critic_members < 2:
            raise ConfigurationError("pessimism needs critic_members of at least 2")
        super().__init__(policy, env, learning_rate, _init_setup_model=False, **kwargs)
        self.critic_mode, self.expectile = critic, expectile
        self.critic_members, self.pessimism = critic_members, pessimism
        self.critic_learning_rate, self.critic_steps = critic_learning_rate, critic_steps
        self.behavior_learning_rate = behavior_learning_rate
        self.behavior_steps = behavior_steps if self.clones else 0
        self.behavior_updates = self.critic_updates = self.prepared = 0
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        seed = 0 if self.seed is None else self.seed
        self.behavior_generator, self.critic_generator = (
            torch.Generator(self.device).manual_seed(seed) for _ in range(2)
        )
        spec, net_arch = self.spec, self.net_arch
        with torch.random.fork_rng(devices=[]):  # the parts begin alike in every algorithm
            torch.manual_seed(seed)
            self.flow = VelocityField(
                spec.context_dim, spec.action_dim, net_arch, include_time=spec.include_time
            ).to(self.device)
            self.critic = CRITICS[self.critic_mode](
                spec.observation_dim,
                spec.action_dim,
                net_arch,
                members=self.critic_members,
                pessimism=self.pessimism,
                gamma=self.gamma,
                expectile=self.expectile,
            ).to(self.device)
        self.behavior = frozen_copy(self.flow)
        self.behavior_descent = Descent(self.flow, self.behavior_learning_rate, 1.0, self.behavior)
        self.critic_descent = Descent(self.critic, self.critic_learning_rate, 10.0)
        self._targets: BehaviorTargets | None = None  # of the data, under critic.target_v
        self.optimizers |= {
            "behavior": self.behavior_descent.adam,
            "critic": self.critic_descent.adam,
        }

    # -- pre-training -----------------------------------------------------------------------

    def pretrain(
        self, progress_bar: bool = False, callback: Callable[[], bool] | None = None
    ) -> bool:
        """Fit the behaviour flow, then the critic; go on where an interrupted call stopped."""
        if self.pretrain_updates < self.pretrain_steps and not self._fit_parts(
            progress_bar, callback
        ):
            return False
        if not self.prepared:
            self.flow.load_state_dict(self.behavior.state_dict())  # the average is what counts
            self._prepare()
            self.prepared = 1
        return True

    @property
    def pretrain_steps(self) -> int:
        """Updates that `pretrain` takes in all."""
        return self.behavior_steps + self.critic_steps

    @property
    def pretrain_updates(self) -> int:
        """Updates that `pretrain` has taken."""
        return self.behavior_updates + self.critic_updates

    def _prepare(self) -> None:
        """What happens once, between pre-training and the policy's first step."""

    def _fit_parts(self, progress_bar: bool, callback: Callable[[], bool] | None) -> bool:
        len(self.data)  # load and check the data before the bar appears
        if not hasattr(self, "_logger"):
            self._logger = configure_logger(self.verbose, self.tensorboard_log, "pretrain")
        started, total = self.pretrain_updates, self.pretrain_steps
        infos: list[Info] = []
        with tqdm(
            total=total, initial=started, desc="pre-training", disable=not progress_bar
        ) as bar:
            while (done := self.pretrain_updates) < total:
                infos.append(self._pretrain_update())
                bar.update()
                done += 1
                if done % 1000 == 0 or done in (self.behavior_steps, total):
                    self._dump(infos, "pretrain", done)
                    infos.clear()
                if callback is not None and not callback():
                    return False
        return True

    def _pretrain_update(self) -> Info:
        """One update of the part whose turn it is."""
        if self.behavior_updates < self.behavior_steps:
            info = self.graphed(self._update_behavior, "behavior")
            self.behavior_updates += 1
            return info
        # the second half of "iql"'s steps is its own, by expectile regression
        returns = self.critic_mode != "iql" or self.critic_updates < self.critic_steps // 2
        if returns:
            self._refresh_targets()
        update = self._update_critic if returns else self._update_iql_critic
        info = self.graphed(update, ("critic", returns))
        self.critic_updates += 1
        return info

    def _update_behavior(self) -> Info:
        batch = self.data.sample(self.batch_size, self.behavior_generator)
        info = flow_matching_step(
            self, self.flow, self.behavior_descent, batch, self.behavior_generator
        )
        return {f"behavior_{key}": value for key, value in info.items()}

    def _update_iql_critic(self) -> Info:
        return self.critic_step(self.data.sample(self.batch_size, self.critic_generator))

    def _refresh_targets(self) -> None:
        """The data's returns under V as it is, every so often and where they are missing."""
        due = self.critic_updates % TARGETS_INTERVAL == 0
        if due:
            self.critic.target_v.load_state_dict(self.critic.v.state_dict())
        if due or self._targets is None:
            lam = 1.0 if self.critic_updates < TARGETS_INTERVAL else LAMBDA
            with self.autocast():
                targets = self.critic.behavior_targets(self.data, lam)
            if self._targets is None:
                self._targets = targets
            for target, new in zip(self._targets, targets, strict=True):
                target.copy_(new)  # in place: updates may be recorded

    def _update_critic(self) -> Info:
        """On the data's returns."""
        assert self._targets is not None
        batch = self.data.sample(self.batch_size, self.critic_generator)
        targets = BehaviorTargets(*(target[batch.rows] for target in self._targets))
        with self.autocast():
            loss, info = self.compiled(self.critic.behavior_loss)(batch, targets)
        return self._critic_descent_step(loss, info)

    def critic_step(self, batch: Batch, next_actions: Tensor | None = None) -> Info:
        """One gradient step of the critic and one of its target; what to log.

        Args:
            batch: Transitions.
            next_actions: The policy's at s', (batch, action_dim); "iql" asks for none.
        """
        fit_value = self.reads_value or self.critic_mode == "iql"
        with self.autocast():
            loss, info = self.compiled(self.critic.loss)(batch, next_actions, fit_value)
        return self._critic_descent_step(loss, info)

    def _critic_descent_step(self, loss: Tensor, info: Info) -> Info:
        info["grad_norm"] = self.critic_descent.step(loss)
        self.critic.update_target()
        return {f"critic_{key}": value for key, value in info.items()}

    def behavior_policy(self, **options: Any) -> OuterPolicy:
        """The behaviour flow u_v as a policy for the bare outer environment."""
        if not self.clones:
            return super().behavior_policy()
        return OuterPolicy(self, self.behavior, **options)

    # -- checkpoints ------------------------------------------------------------------------

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().hyperparameters() | {
            "critic": self.critic_mode,
            "expectile": self.expectile,
            "critic_members": self.critic_members,
            "pessimism": self.pessimism,
            "critic_learning_rate": self.critic_learning_rate,
            "critic_steps": self.critic_steps,
            "behavior_learning_rate": self.behavior_learning_rate,
            "behavior_steps": self.behavior_steps,
        }

    def _modules(self) -> dict[str, nn.Module]:
        own = {"flow": self.flow, "behavior": self.behavior, "critic": self.critic}
        return super()._modules() | own

    def _generators(self) -> dict[str, torch.Generator]:
        own = {"behavior": self.behavior_generator, "critic": self.critic_generator}
        return super()._generators() | own

    def _counters(self) -> dict[str, int]:
        names = ("behavior_updates", "critic_updates", "prepared")
        pretraining = {name: getattr(self, name) for name in names}
        return super()._counters() | pretraining

    # -- sharing the two parts ------------------------------------------------------------------

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What `pretrain` fits, by name; equal keys (`part_key`) mean equal weights."""
        behavior = {"behavior": self.behavior} if self.clones else {}
        return behavior | {"critic": self.critic}

    def part_key(self, part: str) -> str:
        """A hash of flowmdp's version, the data and every argument that a part depends on."""
        settings = {name: self.hyperparameters()[name] for name in DEPENDS_ON[part]}
        settings |= {"part": part, "version": flowmdp.__version__}
        dataset = self.dataset
        arrays: list[NDArray[Any]] = [dataset.observations, dataset.actions]
        if part == "behavior":
            spec = self.spec
            settings["flow_state"] = [spec.include_time, spec.include_previous_action]
        else:
            arrays += [dataset.rewards, dataset.terminations, dataset.starts]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def save_part(self, part: str, path: checkpoint.Target) -> None:
        """Write a fitted part, and the normaliser, for another agent of the same key."""
        tensors = checkpoint.flatten_modules(self._modules_of(part))
        if part == "critic":
            tensors |= checkpoint.flatten_optimizer("critic", self.optimizers["critic"])
        manifest = {"algorithm": "pretrained", "key": self.part_key(part), "task": self.spec.task}
        checkpoint.write(path, manifest, tensors)

    def load_part(self, part: str, path: checkpoint.Target) -> None:
        """Take what `save_part` wrote; training goes on as if it had been computed here.

        Raises:
            CheckpointError: If the file is damaged or of another key.
        """
        manifest, tensors = checkpoint.read(path)
        if manifest.get("key") != self.part_key(part):
            raise CheckpointError(
                f"{path} was pre-trained on other data or with other settings or another version: "
                "remove it, or train with those"
            )
        with checkpoint.refusing_damage(path):
            checkpoint.restore_modules(self._modules_of(part), tensors)
            if part == "critic":
                checkpoint.restore_optimizer("critic", self.optimizers["critic"], tensors)
        setattr(self, f"{part}_updates", getattr(self, f"{part}_steps"))

    def _modules_of(self, part: str) -> dict[str, nn.Module]:
        return {"normalizer": self.policy.normalizer, part: self.parts[part]}
