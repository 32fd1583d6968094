"""DF-dir: the direction-oriented Decision Flow agent.

Source: Hu et al. 2025, "Decision Flow Policy Optimization", arXiv:2505.20350, section 4.2. The flow
MDP pays nothing inside a chain and A(s, a) at its end, so with flow_gamma = 1 a value is constant
along a chain. Two flow critics regress to it: Q^f(s, x_t, u, t) sees the velocity and
V^f(s, x_t, u/|u|, t) only its direction (Lemma 4.2: on the unit sphere, V^f is stationary where the
direction is aligned with the gradient of Q). The policy minimises

    rho ||u_theta - u_v||^2 - objective

with one of the objectives

    advantage   Q^f(s, x_t, u_theta, t) - stopgrad V^f(s, x_t, u_theta / |u_theta|, t)
    direction   V^f(s, x_t, u_theta / |u_theta|, t): the anchor alone holds the magnitude
    endpoint    Q(s, clip(x_t + (1 - t) u_theta)) / nu [ours]: on the linear path the action is
                x_t + (1 - t) u exactly, which makes this, less V(s) / nu, which does not depend on
                u_theta, the closed form of Q^f on data pairs

Ours: the flow critics learn on data pairs (points of the straight path to the dataset's action) and
on on-policy pairs (points of roll-outs), because the policy asks for velocities that no data pair
holds; the policy learns on the same two halves; advantage units.

Logged (train/):
    policy_loss, grad_norm, objective, anchor: of the policy.
    flow_q_loss, flow_v_loss: of the flow critics.
    critic_*, q_gap, transport, clipped_fraction: as for DF-div.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.critics import Critic
from flowmdp.agents.core.decision_flow import DecisionFlow, DecisionFlowConfig, Rollout
from flowmdp.agents.core.networks import FlowCritic, Info
from flowmdp.arguments import AtLeast
from flowmdp.mdp.divergences import direction, squared
from flowmdp.mdp.path import PATHS, Path

DIRECTION_EPS = 1e-2  # softens u / |u|, whose gradient grows as 1 / |u|


@dataclass(frozen=True, kw_only=True)
class DFDirConfig(DecisionFlowConfig):
    """Hyper-parameters of DF-dir."""

    objective: Literal["endpoint", "advantage", "direction"] = "endpoint"
    """What the policy climbs: see the module's text. The paper's is advantage; endpoint is ours and
    trains no flow critics."""
    rollout_steps: Annotated[int, AtLeast(1, 1_000)] | None = 3
    """Euler steps of the chains that an update learns from, at most the environment's flow_steps
    [ours: as good as all ten, see the lab book]; None takes those."""


class FlowPairs(NamedTuple):
    """Flow states with a velocity and the value of the action it led to."""

    observations: Tensor  # (batch, observation_dim)
    contexts: Tensor  # (batch, context_dim)
    points: Tensor  # x_t, (batch, action_dim)
    t: Tensor  # (batch, 1)
    velocities: Tensor  # (batch, action_dim)
    values: Tensor | None  # (batch,), where flow critics learn them


class Networks(NamedTuple):
    """What the losses read."""

    policy: nn.Module  # u_theta
    behavior: nn.Module  # u_v
    critic: Critic
    flow_q: nn.Module | None = None  # Q^f(s, x_t, u, t)
    flow_v: nn.Module | None = None  # V^f(s, x_t, u / |u|, t)


def flow_critic_loss(
    networks: Networks, pairs: FlowPairs, noise: None = None
) -> tuple[Tensor, Info]:
    """(Q^f(s, x_t, u, t) - A)^2 + (V^f(s, x_t, u / |u|, t) - A)^2, the mean over pairs."""
    assert networks.flow_q and networks.flow_v and pairs.values is not None
    flow_state = pairs.contexts, pairs.points, pairs.t
    unit = direction(pairs.velocities, DIRECTION_EPS)
    q_loss = (networks.flow_q(*flow_state, pairs.velocities) - pairs.values).square().mean()
    v_loss = (networks.flow_v(*flow_state, unit) - pairs.values).square().mean()
    return q_loss + v_loss, {"flow_q_loss": q_loss.detach(), "flow_v_loss": v_loss.detach()}


def policy_loss(
    networks: Networks,
    pairs: FlowPairs,
    noise: None = None,
    *,
    rho: Tensor | float,
    objective: str = "endpoint",
    path: Path = PATHS["linear"],
) -> tuple[Tensor, Info]:
    """Rho ||u_theta - u_v||^2 - objective, the mean over pairs."""
    flow_state = pairs.contexts, pairs.points, pairs.t
    velocity = networks.policy(*flow_state)
    with torch.no_grad():
        reference = networks.behavior(*flow_state)
    if objective == "endpoint":
        gain = endpoint_objective(networks, pairs, velocity, path)
    else:
        gain = critic_objective(networks, pairs, velocity, objective)
    anchor, climbed = squared(velocity, reference).mean(), gain.mean()
    loss = rho * anchor - climbed
    info = {"policy_loss": loss, "objective": climbed, "anchor": anchor}
    return loss, {key: value.detach() for key, value in info.items()}


def endpoint_objective(
    networks: Networks, pairs: FlowPairs, velocity: Tensor, path: Path = PATHS["linear"]
) -> Tensor:
    """Q(s, clip(x_t + (1 - t) u)) / nu on the straight path, shape (batch,) [ours]."""
    actions = path.endpoint(pairs.points, velocity, pairs.t).clamp(-1, 1)
    return networks.critic.values(pairs.observations, actions) / networks.critic.scale


def critic_objective(
    networks: Networks, pairs: FlowPairs, velocity: Tensor, objective: str
) -> Tensor:
    """The objective "advantage" or "direction", shape (batch,)."""
    assert networks.flow_q and networks.flow_v
    flow_state = pairs.contexts, pairs.points, pairs.t
    unit = direction(velocity, DIRECTION_EPS)
    if objective == "direction":
        v: Tensor = networks.flow_v(*flow_state, unit)
        return v
    with torch.no_grad():
        baseline = networks.flow_v(*flow_state, unit)
    gain: Tensor = networks.flow_q(*flow_state, velocity) - baseline
    return gain


class DFDir(DecisionFlow[DFDirConfig], name="df-dir"):
    """Direction-oriented Decision Flow (Hu et al. 2025, arXiv:2505.20350, section 4.2)."""

    config_class = DFDirConfig
    paper: ClassVar[dict[str, Any]] = {
        **DecisionFlow.paper,
        "objective": "advantage",
        "rollout_steps": None,
    }
    default_weight = 0.025  # DF-div keeps the same distance with a rho some 1.7 times smaller

    @property
    def reads_state_value(self) -> bool:
        """The flow critics do."""
        return self.config.objective != "endpoint"

    def build(self) -> None:
        """Add the flow critics, if the objective needs them."""
        super().build()
        self.path = PATHS[self.config.path]
        self.flow_critics: nn.ModuleDict | None = None
        if self.reads_state_value:
            spec, net_arch = self.spec, self.config.net_arch
            self.flow_critics = nn.ModuleDict(
                {
                    name: FlowCritic(spec.context_dim, spec.action_dim, net_arch, True)
                    for name in ("flow_q", "flow_v")
                }
            ).to(self.device)
            self.saved.modules["flow_critics"] = self.flow_critics
            self.flow_critic_optimizer = self.descent(
                "flow_critics", self.flow_critics, self.config.critic_learning_rate
            )

    def update(self) -> Info:
        """Roll out, evaluate (critic, flow critics), improve (policy)."""
        batch = self.sample()
        rollout, info = self.play(batch, chains=(len(batch.actions) + 1) // 2)
        pairs = self.pairs(batch, rollout)
        networks = Networks(
            self.policy.field, self.behavior, self.critic, **dict(self.flow_critics or {})
        )
        if self.flow_critics:
            info |= self.minimize(self.flow_critic_optimizer, flow_critic_loss, networks, pairs)
        return info | self.minimize(
            self.policy_optimizer,
            policy_loss,
            networks,
            pairs,
            rho=self.anchor.rho,
            objective=self.config.objective,
            path=self.path,
        )

    @torch.no_grad()
    def pairs(self, batch: Batch, rollout: Rollout) -> FlowPairs:
        """A data pair for each transition of the batch's second half, a policy pair per chain."""
        chains = len(rollout.actions)
        rows = torch.arange(len(batch.actions), device=self.device)
        played, on_data = rows[:chains] % self.rollout_steps, rows[chains:] % self.spec.flow_steps
        t = torch.cat([played / self.rollout_steps, on_data / self.spec.flow_steps])[:, None]
        x_1, x_0 = batch.actions[chains:], self.noise_like(batch.actions[chains:])
        on_policy = played, rows[:chains]
        observations, contexts, points, velocities, actions = (
            torch.cat([policy, data])
            for policy, data in (
                (rollout.observations, batch.observations[chains:]),
                (rollout.contexts, batch.contexts[chains:]),
                (rollout.points[on_policy], self.path.point(x_0, x_1, t[chains:])),
                (rollout.velocities[on_policy], self.path.velocity(x_0, x_1, t[chains:])),
                (rollout.actions, x_1),
            )
        )
        values = None
        if self.flow_critics:
            with self.autocast():
                values = self.critic.advantages(observations, actions)
        return FlowPairs(observations, contexts, points, t, velocities, values)
