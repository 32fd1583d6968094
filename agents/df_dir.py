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
    endpoint    A(s, clip(x_t + (1 - t) u_theta)) [ours]: on the linear path the action is
                x_t + (1 - t) u exactly, which makes this the closed form of Q^f on data pairs

Ours: the flow critics learn on data pairs (points of the straight path to the dataset's action) and
on on-policy pairs (points of roll-outs), because the policy asks for velocities that no data pair
holds; the policy learns on the same two halves; advantage units.

Logged (train/):
    policy_loss, grad_norm, objective, anchor: of the policy.
    flow_q_loss, flow_v_loss: of the flow critics.
    critic_*, q_gap, transport, clipped_fraction: as for DF-div.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.critics import Critic, Info
from flowmdp.agents.core.decision_flow import DecisionFlow, Rollout
from flowmdp.agents.core.divergences import direction, squared
from flowmdp.agents.core.networks import Descent, FlowCritic
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.path import PATHS, Path, get_path

OBJECTIVES = ("advantage", "direction", "endpoint")
DIRECTION_EPS = 1e-2  # softens u / |u|, whose gradient grows as 1 / |u|


class FlowPairs(NamedTuple):
    """Flow states with a velocity and the value of the action it led to."""

    observations: Tensor  # (batch, observation_dim)
    contexts: Tensor  # (batch, context_dim)
    points: Tensor  # x_t, (batch, action_dim)
    t: Tensor  # (batch, 1)
    velocities: Tensor  # (batch, action_dim)
    values: Tensor | None  # (batch,), where flow critics learn them


def flow_critic_loss(flow_q: nn.Module, flow_v: nn.Module, pairs: FlowPairs) -> tuple[Tensor, Info]:
    """(Q^f(s, x_t, u, t) - A)^2 + (V^f(s, x_t, u / |u|, t) - A)^2, the mean over pairs."""
    assert pairs.values is not None
    unit = direction(pairs.velocities, DIRECTION_EPS)
    q = flow_q(pairs.contexts, pairs.points, pairs.t, pairs.velocities)
    v = flow_v(pairs.contexts, pairs.points, pairs.t, unit)
    q_loss = (q - pairs.values).square().mean()
    v_loss = (v - pairs.values).square().mean()
    return q_loss + v_loss, {"flow_q_loss": q_loss.detach(), "flow_v_loss": v_loss.detach()}


def endpoint_objective(
    critic: Critic, pairs: FlowPairs, velocity: Tensor, path: Path = PATHS["linear"]
) -> Tensor:
    """A(s, clip(x_t + (1 - t) u)) on the straight path, shape (batch,) [ours]."""
    actions = path.endpoint(pairs.points, velocity, pairs.t)
    return critic.advantages(pairs.observations, actions.clamp(-1, 1))


def critic_objective(
    flow_q: nn.Module, flow_v: nn.Module, pairs: FlowPairs, velocity: Tensor, objective: str
) -> Tensor:
    """The objective "advantage" or "direction", shape (batch,)."""
    unit = direction(velocity, DIRECTION_EPS)
    if objective == "direction":
        v: Tensor = flow_v(pairs.contexts, pairs.points, pairs.t, unit)
        return v
    with torch.no_grad():
        baseline = flow_v(pairs.contexts, pairs.points, pairs.t, unit)
    q: Tensor = flow_q(pairs.contexts, pairs.points, pairs.t, velocity)
    gain: Tensor = q - baseline
    return gain


class DFDir(DecisionFlow):
    """Direction-oriented Decision Flow.

    Args:
        policy: "MlpPolicy".
        env: A flow environment or its id.
        objective: "advantage", "direction" or "endpoint".
        **kwargs: Of `DecisionFlow`.
    """

    paper: ClassVar[dict[str, Any]] = {**DecisionFlow.paper, "objective": "advantage"}
    default_weight = 0.025  # DF-div keeps the same distance with a rho some 1.7 times smaller

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float = 3e-4,
        *,
        objective: str = "endpoint",
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        if objective not in OBJECTIVES:
            names = ", ".join(OBJECTIVES)
            raise ConfigurationError(f"objective is {objective!r}: choose one of {names}")
        super().__init__(policy, env, learning_rate, _init_setup_model=False, **kwargs)
        self.objective = objective
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        widths = (self.spec.context_dim, self.spec.action_dim)
        self.flow_critics = nn.ModuleDict(
            {name: FlowCritic(*widths, self.net_arch, sees_velocity=True) for name in ("q", "v")}
        ).to(self.device)
        self.flow_critic_descent = Descent(self.flow_critics, self.critic_learning_rate, 10.0)
        self.optimizers["flow_critics"] = self.flow_critic_descent.adam

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().hyperparameters() | {"objective": self.objective}

    def _modules(self) -> dict[str, nn.Module]:
        return super()._modules() | {"flow_critics": self.flow_critics}

    def _update_policy(self, batch: Batch, rollout: Rollout) -> Info:
        pairs = self.pairs(batch, rollout)
        info: Info = {}
        if self.objective != "endpoint":
            info = self._evaluate(pairs)
        return info | self._improve(pairs)

    @torch.no_grad()
    def pairs(self, batch: Batch, rollout: Rollout) -> FlowPairs:
        """A data pair for each transition of the batch's second half, a policy pair per chain."""
        flow_steps, chains = self.spec.flow_steps, len(rollout.actions)
        path = get_path(self.path)
        rows = torch.arange(len(batch.actions), device=self.device)
        steps = rows % flow_steps
        t = (steps / flow_steps)[:, None]
        x_1, x_0 = batch.actions[chains:], self.noise_like(batch.actions[chains:])
        on_policy = steps[:chains], rows[:chains]
        observations, contexts, points, velocities, actions = (
            torch.cat([policy, data])
            for policy, data in (
                (rollout.observations, batch.observations[chains:]),
                (rollout.contexts, batch.contexts[chains:]),
                (rollout.points[on_policy], path.point(x_0, x_1, t[chains:])),
                (rollout.velocities[on_policy], path.velocity(x_0, x_1, t[chains:])),
                (rollout.actions, batch.actions[chains:]),
            )
        )
        values = None
        if self.objective != "endpoint":
            with self.autocast():
                values = self.critic.advantages(observations, actions)
        return FlowPairs(observations, contexts, points, t, velocities, values)

    def _evaluate(self, pairs: FlowPairs) -> Info:
        """Both flow critics regress to the value at the chain's end."""
        with self.autocast():
            loss, info = self.compiled(flow_critic_loss)(
                self.flow_critics["q"], self.flow_critics["v"], pairs
            )
        self.flow_critic_descent.step(loss)
        return info  # type: ignore[no-any-return]

    def _improve(self, pairs: FlowPairs) -> Info:
        """One step of the policy down rho * anchor - objective."""
        with self.autocast():
            loss, info = self.compiled(self.policy_loss)(pairs)
        return info | {"grad_norm": self.descent.step(loss)}  # type: ignore[no-any-return]

    def policy_loss(self, pairs: FlowPairs) -> tuple[Tensor, Info]:
        """Rho ||u_theta - u_v||^2 - objective, the mean over pairs, and what to log."""
        velocity = self.policy.field(pairs.contexts, pairs.points, pairs.t)
        with torch.no_grad():
            reference = self.behavior(pairs.contexts, pairs.points, pairs.t)
        if self.objective == "endpoint":
            gain = endpoint_objective(self.critic, pairs, velocity, get_path(self.path))
        else:
            q, v = self.flow_critics["q"], self.flow_critics["v"]
            gain = critic_objective(q, v, pairs, velocity, self.objective)
        anchor = squared(velocity, reference).mean()
        objective = gain.mean()
        loss = self.anchor.rho * anchor - objective
        info = {"policy_loss": loss, "objective": objective, "anchor": anchor}
        return loss, {key: value.detach() for key, value in info.items()}
