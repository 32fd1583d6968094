"""What is fitted before a policy learns: a clone of the behaviour, and a critic.

An algorithm lists the parts it needs. A part depends on nothing but the data, the seed and its own
hyper-parameters, and draws from a random generator of its own, so all algorithms can share what
one of them has fitted (`key`): a comparison between two starts from one clone and one critic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import flowmdp
from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.critics import (
    Critic,
    ReturnTargets,
    average_value,
    expectile_loss,
    favourites,
    return_loss,
    return_targets,
    smoothed,
    td_loss,
)
from flowmdp.agents.core.flow_matching import FlowNoise, flow_matching_loss
from flowmdp.agents.core.networks import Descent, Info, frozen_copy
from flowmdp.agents.core.own_behavior import OwnField
from flowmdp.agents.core.randomness import seeded
from flowmdp.chunks import recordings
from flowmdp.errors import CheckpointError
from flowmdp.mdp.path import PATHS

if TYPE_CHECKING:
    from flowmdp.agents.core.algorithm import FlowAlgorithm

LAMBDA = 0.95
"""TD(lambda)'s, of the behaviour's returns, after a first round of Monte-Carlo returns."""
TARGETS_INTERVAL = 2000
"""Critic updates between two computations of the data's targets."""


class Part:
    """Something that `FlowAlgorithm.pretrain` fits.

    A subclass makes its networks, registers with the agent what a checkpoint holds, and says what
    one update is.

    Args:
        agent: Whose data, precision and hyper-parameters are used.
        steps: Updates until it is fitted.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """For messages."""
    depends_on: ClassVar[tuple[str, ...]]
    """The hyper-parameters that decide what comes out."""
    cached: ClassVar[tuple[str, ...]]
    """Registered modules and optimisers that another agent needs to go on from here."""
    spent: ClassVar[Mapping[str, str]] = {}
    """Tensors that nothing reads once all is fitted, which files leave out, by how their names
    begin -> those that stand in for them in what is loaded, "" for none."""

    def __init__(self, agent: FlowAlgorithm, steps: int) -> None:
        self.agent, self.steps, self.updates = agent, steps, 0
        self.generator = torch.Generator(agent.device).manual_seed(agent.seed)
        agent.saved.generators[self.name] = self.generator
        agent.saved.count(f"{self.name}_updates", self, "updates")

    def update(self) -> Info:
        """One gradient step; what to log."""
        raise TypeError("Part is abstract: use Clone or ReturnCritic")

    def refresh(self) -> None:
        """What an update needs that asks the host; called before each."""

    @property
    def phase(self) -> bool:
        """Tells updates apart that do different things."""
        return True

    def finish(self) -> None:
        """What happens once all parts are fitted."""

    def idle(self) -> Mapping[str, str]:
        """As `spent`, of what this agent does not read, though others with the same part do."""
        return {}

    def forget_data(self) -> None:
        """Drop what was computed from the agent's data, which are others now."""

    cloning: ClassVar[bool] = False
    """Whether it reads only what was done, not what it was paid."""

    def sample(self) -> Batch:
        """A batch, drawn by the part's own generator."""
        size = self.agent.config.batch_size
        return self.agent.data.sample(size, self.generator, self.cloning)

    @contextmanager
    def first_weights(self) -> Iterator[None]:
        """Networks made inside begin with the same weights in every algorithm."""
        with seeded(self.agent.seed, self.agent.device):
            yield

    # -- sharing ------------------------------------------------------------------------------

    def key(self) -> str:
        """A hash of flowmdp's version, the data and everything else that the part depends on."""
        agent = self.agent
        names = ("batch_size", "net_arch", *self.depends_on)
        settings = {name: getattr(agent.config, name) for name in names} | self._settings()
        settings |= {"part": self.name, "seed": agent.seed, "precision": agent.precision}
        settings["version"] = flowmdp.__version__
        if agent.spec.chunk > 1:
            settings["chunk"] = agent.spec.chunk
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for array in self._arrays():
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def _settings(self) -> dict[str, Any]:
        """What it depends on that is no hyper-parameter."""
        return {}

    def _arrays(self) -> list[NDArray[Any]]:
        """The data it depends on."""
        data, spec = self.agent.dataset, self.agent.spec
        arrays: list[NDArray[Any]] = [data.observations, data.actions]
        if spec.include_previous_action:
            arrays += [data.previous_actions, data.starts]
        return arrays + [*recordings(data)] * (spec.chunk > 1)

    def save(self, path: checkpoint.Target) -> None:
        """Write the fitted part, and the normaliser, for another agent of the same key."""
        manifest = {"part": self.name, "key": self.key(), "task": self.agent.spec.task}
        tensors = checkpoint.module_tensors("normalizer", self.agent.policy.normalizer)
        tensors |= checkpoint.without(self.agent.saved.tensors(*self.cached), self.spent)
        checkpoint.write(path, manifest, tensors)

    def load(self, path: checkpoint.Target) -> None:
        """Take what `save` wrote; training goes on as if it had been fitted here.

        Raises:
            CheckpointError: If the file is damaged or of another key.
        """
        _, manifest, tensors = checkpoint.read(path)
        if manifest.get("key") != self.key():
            raise CheckpointError(
                f"{path} was pre-trained on other data or with other settings or another version: "
                "remove it, or train with those"
            )
        with checkpoint.refusing_damage(path):
            checkpoint.restore_module("normalizer", self.agent.policy.normalizer, tensors)
            tensors = checkpoint.filled(tensors, self.spent)
            self.agent.saved.restore(tensors, {}, self.cached)
        self.updates = self.steps


class Clone(Part):
    """The behaviour flow u_v, by conditional flow matching; its moving average is what counts.

    A behaviour of the user's own takes its place; then there is nothing to fit.

    Attributes:
        flow: The field that is trained.
        average: Its moving average, u_v.
    """

    name, title = "behavior", "behaviour flow"
    depends_on = ("path", "behavior_learning_rate", "behavior_steps")
    cached = ("behavior",)
    spent: ClassVar[Mapping[str, str]] = {"flow/": "behavior/", "optimizer.behavior/": ""}
    cloning = True

    def __init__(self, agent: FlowAlgorithm) -> None:
        config: Any = agent.config
        own = agent.own_behavior
        super().__init__(agent, 0 if own else config.behavior_steps)
        if own:
            self.average: nn.Module = OwnField(agent)
            return
        with self.first_weights():
            self.flow = agent.velocity_field()
        self.average = frozen_copy(self.flow)
        self.path = PATHS[config.path]
        self.descent = Descent(self.flow, config.behavior_learning_rate, 1.0, self.average)
        agent.saved.modules |= {"flow": self.flow, "behavior": self.average}
        agent.saved.optimizers["behavior"] = self.descent.adam

    def update(self) -> Info:
        """One step of flow matching."""
        batch = self.sample()
        noise = FlowNoise.draw(batch.actions, self.generator)
        info = self.agent.minimize(
            self.descent, flow_matching_loss, self.flow, batch, noise, path=self.path
        )
        return {f"behavior_{key}": value for key, value in info.items()}

    def finish(self) -> None:
        """Forget the weights that were averaged."""
        if self.agent.own_behavior is None:
            self.flow.load_state_dict(self.average.state_dict())

    def _settings(self) -> dict[str, Any]:
        spec = self.agent.spec
        return {"flow_state": [spec.include_time, spec.include_previous_action]}


class ReturnCritic(Part):
    """A critic, on the returns of the data's own trajectories [ours: see `critics`].

    With `expectiles` the second half of its steps is implicit Q-learning's. `learns_on` says
    which of Q and V learn under the policy, too.

    Attributes:
        critic: The networks.
        descent: With which they go on learning.
    """

    name, title = "critic", "critic"
    depends_on = (
        "gamma",
        "critic_members",
        "pessimism",
        "tau",
        "critic_learning_rate",
        "critic_steps",
    )
    cached = ("critic",)
    spent: ClassVar[Mapping[str, str]] = {"critic/target_v.": "critic/v."}

    def __init__(
        self, agent: FlowAlgorithm, expectiles: bool = False, learns_on: str = "qv"
    ) -> None:
        config: Any = agent.config
        super().__init__(agent, config.critic_steps)
        self.expectiles, self.learns_on = expectiles, learns_on
        spec, expectile = agent.spec, getattr(config, "expectile", 0.5)
        with self.first_weights():
            agent.velocity_field()  # draws as a clone does: a critic is the same with and without
            self.critic = Critic(
                spec.observation_dim,
                spec.action_dim,
                config.net_arch,
                members=config.critic_members,
                pessimism=config.pessimism,
                tau=config.tau,
                gamma=config.gamma**spec.chunk,
                expectile=expectile,
            ).to(agent.device)
        self.descent = Descent(self.critic, config.critic_learning_rate, 10.0)
        self._targets: ReturnTargets | None = None  # of the data, under critic.target_v
        agent.saved.modules["critic"] = self.critic
        agent.saved.optimizers["critic"] = self.descent.adam

    @property
    def phase(self) -> bool:
        """Whether the next update is on returns."""
        return not self.expectiles or self.updates < self.steps // 2

    def idle(self) -> Mapping[str, str]:
        """The optimiser's state, and the target, of networks that learn no more."""
        found, first = dict[str, str](), 0
        for name, network in (("q", self.critic.q), ("v", self.critic.v)):
            stop = first + len(list(network.parameters()))
            if name not in self.learns_on:
                found[f"critic/target_{name}."] = f"critic/{name}."
                found |= {f"optimizer.critic/{index}/": "" for index in range(first, stop)}
            first = stop
        return found

    def _settings(self) -> dict[str, Any]:
        return {"expectile": self.critic.expectile if self.expectiles else None}

    def _arrays(self) -> list[NDArray[Any]]:
        data = self.agent.dataset
        return [*super()._arrays(), data.rewards, data.terminations, data.starts]

    def update(self) -> Info:
        """One step on returns, or of implicit Q-learning."""
        batch = self.sample()
        if not self.phase:
            return self.learn(expectile_loss, batch)
        assert self._targets is not None
        targets = ReturnTargets(*(target[batch.rows] for target in self._targets))
        return self.learn(return_loss, batch, targets)

    def learn(self, loss: Any, batch: Batch, drawn: Any = None) -> Info:
        """One gradient step of the critic down a loss of `critics`, and one of its target."""
        info = self.agent.minimize(self.descent, loss, self.critic, batch, drawn)
        self.critic.update_target()
        return {f"critic_{key}": value for key, value in info.items()}

    @torch.no_grad()
    def next_actions(self, batch: Batch, candidates: Tensor) -> Tensor:
        """Those of a critic's target at s', (batch, action_dim): the best, with smoothing's noise.

        Args:
            batch: Transitions.
            candidates: The policy's actions at s' in [-1, 1], shape (batch, n, action_dim).
        """
        agent, smoothing = self.agent, self.agent.config.smoothing
        with agent.autocast():
            best = favourites(self.critic, batch.flow_states[0], candidates, target=True)
        return smoothed(best, agent.noise_like(best), smoothing) if smoothing > 0 else best

    def follow(self, batch: Batch, candidates: Tensor, loss: Any = td_loss) -> Info:
        """One step of temporal differences under a policy with these `candidates` at s'."""
        return self.learn(loss, batch, self.next_actions(batch, candidates))

    def forget_data(self) -> None:
        """Drop the targets."""
        self._targets = None

    def refresh(self) -> None:
        """The data's returns under V as it is, every so often and where they are missing."""
        if not self.phase:
            return
        critic, data = self.critic, self.agent.data
        first, due = self.updates < TARGETS_INTERVAL, self.updates % TARGETS_INTERVAL == 0
        if due or self._targets is None:
            average = average_value(data, critic.gamma) if first else None
            if average is not None and self.updates == 0:
                critic.start_at(average)
            if due:
                critic.target_v.load_state_dict(critic.v.state_dict())
            with self.agent.autocast():
                targets = return_targets(critic, data, 1.0 if first else LAMBDA, average)
            if self._targets is None:
                self._targets = targets
            for target, new in zip(self._targets, targets, strict=True):
                target.copy_(new)  # in place: updates may be recorded
