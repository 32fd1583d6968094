"""RQL: reversal Q-learning, the closest relative of Decision Flow, a baseline.

Source: Oberai, Park and Levine 2026, "Reversal Q-Learning", arXiv:2606.17551. Like Decision Flow it
takes every flow step as a decision; its chains come from the data instead of roll-outs. The
flow is followed backward from the data's action a to the points x_k that lead to it, so the return
of each point is known without noise:

    value    V(s, x_k, t_k), k = 0..flow_steps, regresses to r + gamma mask V'(s', z, 0), z Gaussian
             (with `best_of` the best of several: V at a noise is Q at the action it becomes)
    policy   descends alpha ||u_theta - (a - x_0)||^2 (flow matching)
             - flow_steps V(s, x_k + u_theta / flow_steps, t_{k+1}) / mean |V|

What is ours, the paper's abstract and project page being all that was at hand: backward Euler steps
read the field at the left end of each step, as forward ones do; the policy starts as the behaviour
flow and V, for the first `value_steps`, regresses to r + gamma mask V_data(s') of a critic that was
fitted to the data's returns, while the policy waits; the factor flow_steps and the division by
mean |V|, which make alpha independent of both; noise of 0.3 instead of 1, see
`DecisionFlow.environment`. Reversed chains begin where the data lead, which is noise of about 1: at
the starts it acts from, V and the policy have seen the inside of that cloud only.

Chains are reversed from whole chunks, also from one that the data did not finish: what stands in
the place of its last actions is one more chunk of the same return. Flow matching leaves it out.

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
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.config import BestOfConfig, CloneConfig, PolicyConfig
from flowmdp.agents.core.critics import Critic
from flowmdp.agents.core.flow_matching import FlowNoise, flow_matching_loss
from flowmdp.agents.core.networks import EnsembleMlp, Info, frozen_copy, polyak
from flowmdp.agents.core.parts import Clone, ReturnCritic
from flowmdp.arguments import AtLeast, Range
from flowmdp.mdp.path import PATHS, Path
from flowmdp.mdp.transition import flow_step, flow_time

TAU = 0.005  # Polyak rate of V'


@dataclass(frozen=True, kw_only=True)
class RQLConfig(PolicyConfig, CloneConfig, BestOfConfig):
    """Hyper-parameters of RQL."""

    pessimism: Annotated[float, Range("(-inf, inf)")] | None = 0.0
    """V = mean - pessimism * std of the members; 0 is the mean, as in FQL."""
    alpha: Annotated[float, Range("[0, inf)")] = 0.03
    """Weight of flow matching."""
    best_of: Annotated[int, AtLeast(1, 10_000)] = 1
    """Noises z at s', of which V's target takes the one that V' values most, in the place of
    actions (Li et al. 2025, arXiv:2507.07969: 32 actions): no chain is rolled out."""
    value_steps: Annotated[int, AtLeast(0)] = 3_000
    """Gradient steps at the start of `learn` in which only V learns [ours]."""


class ReversedRows(NamedTuple):
    """Points of reversed chains, one per transition."""

    batch: Batch
    points: Tensor  # x_k, (batch, action_dim)
    t: Tensor  # t_k, (batch, 1)
    t_next: Tensor  # t_{k+1}, (batch, 1)
    targets: Tensor | None = None  # of V, (batch,)


class Networks(NamedTuple):
    """What the losses read."""

    policy: nn.Module  # u_theta
    value: nn.Module  # the members of V(s, x_t, t)
    critic: Critic  # its rule aggregates them


@torch.no_grad()
def reverse(field: nn.Module, contexts: Tensor, x_1: Tensor, flow_steps: int) -> Tensor:
    """Points of the chains that end at x_1, shape (flow_steps + 1, batch, action_dim), x_0 first.

    Args:
        field: The velocity field to follow backward.
        contexts: Shape (batch, context_dim).
        x_1: Actions, shape (batch, action_dim).
        flow_steps: Number of steps.
    """
    points = [x_1]
    for k in reversed(range(flow_steps)):
        velocity = field(contexts, points[-1], flow_time(k, flow_steps))
        points.append(flow_step(points[-1], -velocity, flow_steps))
    return torch.stack(points[::-1])


def members(value: nn.Module, contexts: Tensor, points: Tensor, t: Tensor) -> Tensor:
    """V(s, x_t, t) of every member, shape (members, batch)."""
    values: Tensor = value(torch.cat([contexts, points, t], 1)).squeeze(-1)
    return values


def value_loss(networks: Networks, rows: ReversedRows, noise: None = None) -> tuple[Tensor, Info]:
    """Squared error of every member of V against the rows' targets, summed over members."""
    assert rows.targets is not None
    values = members(networks.value, rows.batch.contexts, rows.points, rows.t)
    loss = (values - rows.targets).square().mean(-1).sum()
    return loss, {"value_loss": loss.detach(), "value_mean": rows.targets.mean()}


def policy_loss(
    networks: Networks,
    rows: ReversedRows,
    noise: FlowNoise,
    *,
    alpha: float,
    flow_steps: int,
    path: Path = PATHS["linear"],
) -> tuple[Tensor, Info]:
    """Alpha times flow matching, minus V after the step from x_k."""
    contexts = rows.batch.contexts
    velocity = networks.policy(contexts, rows.points, rows.t)
    following = flow_step(rows.points, velocity, flow_steps)
    following = torch.where(rows.t_next == 1, following.clamp(-1, 1), following)
    gain = networks.critic.aggregate(members(networks.value, contexts, following, rows.t_next))
    bc, _ = flow_matching_loss(networks.policy, rows.batch, noise, path=path)
    unit = gain.detach().abs().mean().clamp_min(1e-8)
    loss = alpha * bc - flow_steps * gain.mean() / unit
    return loss, {"policy_loss": loss.detach(), "bc_loss": bc.detach()}


class RQL(FlowAlgorithm[RQLConfig], name="rql"):
    """Reversal Q-learning (Oberai, Park and Levine 2026, arXiv:2606.17551)."""

    config_class = RQLConfig
    default_steps = 6_000
    environment: ClassVar[dict[str, Any]] = {"noise_scale": 0.3}

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
        """One step of V on reversed chains, then one of the policy, at another step of each."""
        batch, flow_steps, config = self.sample(), self.spec.flow_steps, self.config
        with self.autocast():
            points = reverse(self.policy.ema, batch.contexts, batch.actions, flow_steps)
        networks = Networks(self.policy.field, self.value, self.critic)
        chain = torch.arange(len(batch.actions), device=self.device)

        def at(steps: Tensor, targets: Tensor | None = None) -> ReversedRows:
            t, t_next = ((k / flow_steps)[:, None] for k in (steps, steps + 1))
            return ReversedRows(batch, points[steps, chain], t, t_next, targets)

        rows = at(chain % (flow_steps + 1), self.targets(batch))
        info = self.minimize(self.value_optimizer, value_loss, networks, rows)
        polyak(self.value.parameters(), self.target_value.parameters(), TAU)
        if self.phase():
            waiting = torch.zeros((), device=self.device)
            return info | dict.fromkeys(("policy_loss", "bc_loss", "grad_norm"), waiting)
        return info | self.minimize(
            self.policy_optimizer,
            policy_loss,
            networks,
            at(chain % flow_steps),
            FlowNoise.draw(batch.actions, self.generator),
            alpha=config.alpha,
            flow_steps=flow_steps,
            path=PATHS[config.path],
        )

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
