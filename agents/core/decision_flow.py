"""What DF-dir and DF-div share: behaviour flow, critic, and roll-outs of the flow MDP.

Both agents (Decision Flow, Hu et al. 2025, arXiv:2505.20350) learn in three phases: a behaviour
flow u_v by flow matching, a critic Q(s, a), then the policy u_theta, which starts as a copy of u_v
and climbs Q through the flow MDP.

With chunks the distances ||u - u_v||^2 sum over all actions, and need no other weight: rho and
behavior_weight set what one coordinate gains in the chunk's advantage against how far it moves,
whatever the number of coordinates. Data pairs use whole chunks, also those that a termination cut:
the critic has learned the same value for whatever stands in the place of their last actions.

Ours: one roll-out from the next states serves both the critic's target (mode "td") and the policy;
values are measured in advantage units (see `critics`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.anchor import Anchor
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.config import (
    BestOfConfig,
    CloneConfig,
    ExpectileConfig,
    PolicyConfig,
    SmoothedConfig,
)
from flowmdp.agents.core.critics import SCALE_SAMPLES, td_loss, td_value_loss
from flowmdp.agents.core.networks import Info
from flowmdp.agents.core.parts import Clone, ReturnCritic
from flowmdp.arguments import AtLeast, Range
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.transition import flow_step, flow_time

DIAGNOSTIC_SAMPLES = 1024
STEER_INTERVAL = 10  # policy steps between two movements of rho


@dataclass(frozen=True, kw_only=True)
class DecisionFlowConfig(PolicyConfig, CloneConfig, SmoothedConfig, BestOfConfig, ExpectileConfig):
    """What DF-dir and DF-div share."""

    critic: Literal["td", "iql"] = "td"
    """td learns on under the policy [ours]; iql never asks for an action outside the data, and is
    frozen once the policy moves (paper)."""
    rho: Annotated[float, Range("(0, inf)")] | None = None
    """Weight of staying with the behaviour, in advantage units; where it starts if there is a
    budget. None: by behavior_weight, and with a budget 100, so that the policy leaves its clone
    slowly."""
    budget: Annotated[float, Range("(0, inf)")] | None = None
    """How far actions may move [ours]: their mean squared distance from the behaviour's, in units
    of the variance of one action coordinate (0.1 is a good start), for every action of a chunk;
    rho is steered to hold it. None keeps rho fixed."""
    behavior_weight: Annotated[float, Range("(0, inf)")] | None = None
    """rho in units of mean |Q|, as in TD3+BC; in place of rho and budget. None: 0.025 for DF-dir,
    0.01 for DF-div [ours: lab book, eleventh round]."""
    rollout_steps: Annotated[int, AtLeast(1, 1_000)] | None = None
    """Euler steps of the chains that an update learns from, at most the environment's flow_steps
    [ours]; None takes those."""
    critic_noise: Annotated[float, Range("[0, inf)")] = 0.0
    """Standard deviation, in that of each weight tensor, of Gaussian noise put on Q's weights
    before the policy moves: what a bad critic does. With iql only, since td learns it away."""

    def __post_init__(self) -> None:
        """Check what excludes what, too."""
        super().__post_init__()
        if self.behavior_weight is not None and (self.rho, self.budget) != (None, None):
            raise ConfigurationError(
                "behavior_weight takes the place of rho and budget: set both to None"
            )
        if self.critic_noise and self.critic != "iql":
            raise ConfigurationError('critic_noise needs critic="iql"')
        if self.best_of > 1 and self.critic != "td":
            raise ConfigurationError('best_of needs critic="td": iql asks for no policy\'s action')


Shared = TypeVar("Shared", bound=DecisionFlowConfig, default=Any)


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


class DecisionFlow(FlowAlgorithm[Shared]):
    """Base of DF-dir and DF-div."""

    config_class = DecisionFlowConfig
    shows_behavior = True
    default_steps = 9_000  # 12,000 gain nothing more (lab book)
    default_weight: ClassVar[float]
    """`behavior_weight` if it is not given."""
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
    """As far as the paper's text was at hand; its own rho and steps were not."""

    def make_field(self) -> nn.Module:
        """The policy, which starts as the behaviour flow."""
        return self.starting_field()

    def build(self) -> None:
        """Parts, the policy's optimiser, and the anchor."""
        config = self.config
        clone = Clone(self)
        td = config.critic == "td"
        learns_on = ("qv" if self.reads_state_value else "q") if td else ""
        self.critic_part = ReturnCritic(self, expectiles=not td, learns_on=learns_on)
        self.parts = clone, self.critic_part
        self.behavior, self.critic = clone.average, self.critic_part.critic
        self.policy_optimizer = self.policy_descent()
        weight = config.behavior_weight or self.default_weight
        budget = None if config.budget is None else config.budget * self.spec.chunk
        self.anchor = Anchor(config.rho, budget, weight).to(self.device)
        self.saved.modules["anchor"] = self.anchor

    @torch.no_grad()
    def prepare(self) -> None:
        """Start the policy as a copy of the behaviour flow, measure rho or the budget's unit."""
        self.start_from_behavior(self.behavior)
        if self.config.critic_noise:
            for weight in self.critic.q.weights:
                weight += self.config.critic_noise * weight.std() * self.noise_like(weight)
        batch = self.data.sample(SCALE_SAMPLES, self.generator)
        states = batch.observations, batch.contexts
        first, second = (
            self.roll_out(self.behavior, *states, self.noise_like(batch.actions)).actions
            for _ in range(2)
        )
        magnitude = self.critic.fit_scale(batch.observations, batch.actions, first)
        self.anchor.fit(magnitude, first, second)

    def behavior_field(self) -> nn.Module:
        """The behaviour flow u_v."""
        return self.behavior

    # -- the flow MDP -----------------------------------------------------------------------

    def play(self, batch: Batch, chains: int) -> tuple[Rollout, Info]:
        """Roll the policy out from s', and let the critic and the anchor learn from it.

        The policy learns on fewer chains than there are transitions; the critic's target needs an
        action for each: with `best_of` the best of so many chains, of which the policy learns on
        the first.

        Args:
            batch: Transitions.
            chains: How many chains the policy learns on.

        Returns:
            The first `chains` chains, and what the critic logs.
        """
        learns, n = self.config.critic == "td", self.config.best_of
        rows = slice(None if learns else chains)
        observations, contexts = (state[rows].repeat(n, 1) for state in batch.flow_states)
        x_0 = self.starts_like(batch.actions[rows].repeat(n, 1))
        rollout = self.roll_out(self.policy.ema, observations, contexts, x_0, self.rollout_steps)
        info: Info = {}
        if learns:
            candidates = rollout.actions.unflatten(0, (n, -1)).transpose(0, 1)
            loss = td_value_loss if self.reads_state_value else td_loss
            info = self.critic_part.follow(batch, candidates, loss)
        rollout = rollout.first(chains)
        self.steer_anchor(rollout)
        return rollout, info

    @property
    def reads_state_value(self) -> bool:
        """Whether an update asks for V(s); mode "td" teaches V only then."""
        return True

    def phase(self) -> bool:
        """Whether this update moves rho."""
        return self.anchor.budget is not None and self.num_timesteps % STEER_INTERVAL == 0

    @property
    def rollout_steps(self) -> int:
        """Euler steps of the chains that an update learns from."""
        return min(self.config.rollout_steps or self.spec.flow_steps, self.spec.flow_steps)

    @torch.no_grad()
    def roll_out(
        self,
        field: nn.Module,
        observations: Tensor,
        contexts: Tensor,
        x_0: Tensor,
        flow_steps: int | None = None,
    ) -> Rollout:
        """Chains of `field` from noise x_0, shape (batch, action_dim), one for each state."""
        flow_steps, points, velocities = flow_steps or self.spec.flow_steps, [x_0], []
        with self.autocast():
            for k in range(flow_steps):
                velocities.append(field(contexts, points[-1], flow_time(k, flow_steps)))
                points.append(flow_step(points[-1], velocities[-1], flow_steps))
        return Rollout(observations, contexts, torch.stack(points), torch.stack(velocities))

    @torch.no_grad()
    def steer_anchor(self, rollout: Rollout) -> None:
        """Adapt rho to how far the roll-out's actions are from the behaviour's."""
        if self.phase():
            states = rollout.observations, rollout.contexts
            behavior = self.roll_out(self.behavior, *states, rollout.points[0], self.rollout_steps)
            self.anchor.steer((rollout.actions - behavior.actions).square().sum(-1).mean())

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
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
