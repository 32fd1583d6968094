"""RQL: reversal Q-learning, the closest relative of Decision Flow, a baseline.

Source: Oberai, Park and Levine 2026, "Reversal Q-Learning", arXiv:2606.17551, and their code. Like
Decision Flow it takes every flow step as a decision, but its chains come from the data instead of
roll-outs: the policy's flow is followed backward from the data's action (t = 1) to a point x_t. The
steps from there to the action are certain and pay nothing, so x_t has the return of the data.

    value    V(s, x_t, t) regresses to r + gamma mask V'(s', z, 0), z Gaussian, by expectiles; V' is
             mean - pessimism * std of the members (with `best_of` the best of several z: V at a
             noise is Q at the action it becomes)
    policy   descends alpha ||u - dx_t/dt||^2 - mean V(s, x_t + h u, t + h) / mean |V| at points x_t
             between noise and the data's action, with h = min(1 / flow_steps, 1 - t)

As in their code: half of the batch is followed to a time uniform in [0, 1], half to one of the
times 0, 1/F, ..., 1 at which chains stand, the noise and the action among them, always in F Euler
steps that read the field where they begin; the policy climbs the mean of the members; a target of
Polyak rate 0.005, a moving average of weight 0.999, noise of 1, gamma 0.99, Adam at 3e-4. They have
chunks of five actions on manipulation tasks.

Differences [ours]: the ensemble is that of all agents' critics (`paper` has ten members and a
pessimism of 0.5; 0 on humanoid mazes); V is divided by mean |V|, so that alpha does not depend on
the rewards' scale, and the squared distance is summed over dimensions instead of averaged; the
policy starts as the behaviour flow, and V, for the first `value_steps`, regresses to r + gamma mask
V_data(s') of a critic that was fitted to the data's returns, while the policy waits, hence far
fewer steps (paper: a million); networks of 256x3 instead of 512x4; V learns from chunks that the
data did not finish, too: what stands in the place of the last actions is one more chunk of the same
return.

Logged (train/):
    value_loss, value_mean: of V.
    policy_loss, bc_loss, grad_norm: of the policy, 0 while it waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.batch import Batch, taken
from flowmdp.agents.core.config import BestOfConfig, CloneConfig, PolicyConfig
from flowmdp.agents.core.flow_matching import FlowNoise
from flowmdp.agents.core.networks import EnsembleMlp, Info, frozen_copy, polyak
from flowmdp.agents.core.parts import Clone, ReturnCritic
from flowmdp.arguments import AtLeast, Range
from flowmdp.mdp.path import PATHS, Path


@dataclass(frozen=True, kw_only=True)
class RQLConfig(PolicyConfig, CloneConfig, BestOfConfig):
    """Hyper-parameters of RQL."""

    ema_rate: Annotated[float, Range("[0, 1]")] = 0.001
    """Weight of the new parameters in the moving average that acts (paper)."""
    expectile: Annotated[float, Range("[0.5, 1)")] = 0.7
    """Of V's regression (paper: 0.5 on mazes, 0.7 or 0.9 on manipulation)."""
    alpha: Annotated[float, Range("[0, inf)")] = 0.003
    """Weight of flow matching, summed over dimensions, against V / mean |V| [ours]. A published
    alpha (0.1 to 10, by task) is the width of an action or chunk times mean |V|, with the rewards
    as they are, times ours."""
    best_of: Annotated[int, AtLeast(1, 10_000)] = 1
    """Noises z at s', of which V's target takes the one that V' values most, in the place of
    actions (Li et al. 2025, arXiv:2507.07969: 32 actions): no chain is rolled out."""
    value_steps: Annotated[int, AtLeast(0)] = 3_000
    """Gradient steps at the start of `learn` in which only V learns [ours]."""


class Reversed(NamedTuple):
    """Points that lead to the data's actions, one per transition."""

    contexts: Tensor  # (batch, context_dim)
    points: Tensor  # x_t, (batch, action_dim)
    t: Tensor  # (batch, 1)
    targets: Tensor  # of V, (batch,)


class Networks(NamedTuple):
    """What the policy's loss reads."""

    policy: nn.Module  # u_theta
    value: nn.Module  # the members of V(s, x_t, t)


@torch.no_grad()
def reverse(
    field: nn.Module, contexts: Tensor, actions: Tensor, t: Tensor, flow_steps: int
) -> Tensor:
    """The points at times t of the flow's chains that end at `actions`, shaped as these.

    Args:
        field: The velocity field to follow backward.
        contexts: Shape (batch, context_dim).
        actions: Shape (batch, action_dim).
        t: In [0, 1], shape (batch, 1).
        flow_steps: Euler steps on the way, all of (1 - t) / flow_steps.
    """
    points, step = actions, (1 - t) / flow_steps
    for k in range(flow_steps):
        points = points - step * field(contexts, points, 1 - k * step)
    return points


def members(value: nn.Module, contexts: Tensor, points: Tensor, t: Tensor) -> Tensor:
    """V(s, x_t, t) of every member, shape (members, batch)."""
    values: Tensor = value(torch.cat([contexts, points, t], 1)).squeeze(-1)
    return values


def value_loss(
    value: nn.Module, rows: Reversed, noise: None = None, *, expectile: float
) -> tuple[Tensor, Info]:
    """|expectile - 1(residual < 0)| residual^2 against the targets, summed over members."""
    residual = rows.targets - members(value, rows.contexts, rows.points, rows.t)
    weights = (expectile - (residual < 0).float()).abs()
    loss = (weights * residual.square()).mean(-1).sum()
    return loss, {"value_loss": loss.detach(), "value_mean": rows.targets.mean()}


def policy_loss(
    networks: Networks,
    batch: Batch,
    noise: FlowNoise,
    *,
    alpha: float,
    flow_steps: int,
    path: Path = PATHS["linear"],
) -> tuple[Tensor, Info]:
    """Alpha times flow matching, minus V / mean |V| after a step from the same points."""
    (x_0, t), x_1 = noise, batch.actions
    x_t = path.point(x_0, x_1, t)
    velocity = networks.policy(batch.contexts, x_t, t)
    error = (velocity - path.velocity(x_0, x_1, t)).square()
    bc = taken(error, batch.valid).sum(-1).mean()
    step = (1 - t).clamp_max(1 / flow_steps)
    gain = members(networks.value, batch.contexts, x_t + step * velocity, t + step).mean(0)
    loss = alpha * bc - gain.mean() / gain.detach().abs().mean().clamp_min(1e-8)
    return loss, {"policy_loss": loss.detach(), "bc_loss": bc.detach()}


class RQL(FlowAlgorithm[RQLConfig], name="rql"):
    """Reversal Q-learning (Oberai, Park and Levine 2026, arXiv:2606.17551)."""

    config_class = RQLConfig
    default_steps = 6_000
    chooses_actions = False
    paper: ClassVar[dict[str, Any]] = {"critic_members": 10, "pessimism": 0.5}

    def make_field(self) -> nn.Module:
        """The policy, which starts as the behaviour flow."""
        return self.starting_field()

    def build(self) -> None:
        """The clone, the data's critic, V and its target, and the policy's optimiser."""
        spec, config = self.spec, self.config
        clone, critic = Clone(self), ReturnCritic(self, learns_on="")
        self.parts, self.behavior, self.critic = (clone, critic), clone.average, critic.critic
        self.policy_optimizer = self.policy_descent()
        width = spec.context_dim + spec.action_dim + 1
        self.value = EnsembleMlp(
            width, 1, config.net_arch, config.critic_members, layer_norm=True
        ).to(self.device)
        self.target_value = frozen_copy(self.value)
        self.saved.modules |= {"value": self.value, "target_value": self.target_value}
        self.value_optimizer = self.descent("value", self.value, config.critic_learning_rate)

    def prepare(self) -> None:
        """Start the policy as a copy of the behaviour flow."""
        self.start_from_behavior(self.behavior)

    def behavior_field(self) -> nn.Module:
        """The behaviour flow u_v."""
        return self.behavior

    def phase(self) -> bool:
        """Whether V still learns alone."""
        return bool(self._n_updates < self.config.value_steps)

    def update(self) -> Info:
        """One step of V on reversed chains, then one of the policy on the same transitions."""
        batch, config = self.sample(), self.config
        info = self.minimize(
            self.value_optimizer,
            value_loss,
            self.value,
            self.reversal(batch),
            expectile=config.expectile,
        )
        polyak(self.value.parameters(), self.target_value.parameters(), config.tau)
        if self.phase():
            waiting = torch.zeros((), device=self.device)
            return info | dict.fromkeys(("policy_loss", "bc_loss", "grad_norm"), waiting)
        return info | self.minimize(
            self.policy_optimizer,
            policy_loss,
            Networks(self.policy.field, self.value),
            batch,
            FlowNoise.draw(batch.actions, self.generator),
            alpha=config.alpha,
            flow_steps=self.spec.flow_steps,
            path=PATHS[config.path],
        )

    def reversal(self, batch: Batch) -> Reversed:
        """A point on the way to every action, and what V regresses to there."""
        n, flow_steps = len(batch.actions), self.spec.flow_steps
        t = torch.rand((n, 1), generator=self.generator, device=self.device)
        rows = torch.arange(n, device=self.device)[:, None]
        t = torch.where(rows < n // 2, t, rows % (flow_steps + 1) / flow_steps)
        with self.autocast():
            points = reverse(self.policy.field, batch.contexts, batch.actions, t, flow_steps)
        return Reversed(batch.contexts, points, t, self.targets(batch))

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """What V regresses to, shape (batch,)."""
        with self.autocast():
            if self.phase():
                following = self.critic.state_values(batch.next_observations)
            else:
                n = self.config.best_of
                z = self.starts_like(batch.actions.repeat_interleave(n, 0))
                zero = torch.zeros_like(z[:, :1])
                contexts = batch.next_contexts.repeat_interleave(n, 0)
                values = self.critic.aggregate(members(self.target_value, contexts, z, zero))
                following = values.unflatten(0, (-1, n)).amax(1)
            targets: Tensor = batch.rewards + self.critic.gamma * batch.masks * following
            return targets
