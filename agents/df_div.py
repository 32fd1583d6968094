"""DF-div: the divergence-oriented Decision Flow agent.

Source: Hu et al. 2025, "Decision Flow Policy Optimization", arXiv:2505.20350, section 4.3. In the
flow MDP every step pays -rho D(u, u_v) / flow_steps and the last one earns the advantage of the
action. One update, in the paper's order:

    policy evaluation   V(s, x_k, t_k) regresses to the Monte-Carlo return of the chain,
                        G_k = -rho / flow_steps * sum_{j >= k} D_j + A(s, a)
    policy improvement  u_theta ascends Q^f(x_k, u) = -rho D(u, u_v) / flow_steps
                        + V(x_k + u / flow_steps, t_{k+1}); V at t = 1 is A itself

The transition is known, so Q^f needs no network, and the gradient reaches u through V's action
input alone.

With flow_value="adjoint" [not in the paper] no V is learned. The chains that the policy learns on
are noisy, D is the KL between its paths and the behaviour's, rho is lambda, and V's gradient is
computed along each chain; the best policy is then pi_b(a | s) exp(A(s, a) / lambda), normalised.
See `core.adjoint`.

Ours: advantage units; every chain is learned from at four of its steps, evenly apart, so that a
batch covers all steps alike; the improvement's loss is multiplied by flow_steps so that the clipped
gradient norm does not depend on them.

Logged (train/):
    policy_loss, grad_norm: of the improvement.
    value_loss: of the evaluation.
    divergence: mean D(u_theta, u_v) on roll-outs.
    g_0: mean return of whole chains; rises under flow policy iteration.
    path_kl: with the adjoint, the KL of noisy chains from the behaviour's, in nats; a budget's.
    critic_*: the critic's, while it goes on learning.
    q_gap: A(s, a_pi) - A(s, a_data), the dial that rho turns; above 1 Q is being exploited.
    transport: mean squared distance between the policy's and the behaviour's action of one noise.
    clipped_fraction: share of action coordinates outside [-1, 1] before clipping.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from flowmdp.agents.core.adjoint import (
    NOISY_CHAINS,
    PathAnchor,
    check_config,
    check_flow,
    matching_loss,
    noisy_chains,
    noisy_steps,
)
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.critics import Critic
from flowmdp.agents.core.decision_flow import DecisionFlow, DecisionFlowConfig, Rollout
from flowmdp.agents.core.networks import FlowCritic, Info
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.divergences import DIVERGENCES
from flowmdp.mdp.spec import FlowSettings, FlowSpec
from flowmdp.mdp.transition import flow_step

ROWS_PER_CHAIN = 4  # more rows per chain are cheaper; fewer are less alike


@dataclass(frozen=True, kw_only=True)
class DFDivConfig(DecisionFlowConfig):
    """Hyper-parameters of DF-div."""

    divergence: Literal["squared", "smooth_norm", "cosine", "gaussian_kl"] = "squared"
    """D, how far a velocity is from the behaviour's; the paper lists several."""
    flow_value: Literal["learned", "adjoint"] = "learned"
    """How V is known: learned by a network (paper), or as its exact gradient along noisy chains
    (Li and Levine 2026, arXiv:2601.14234). With adjoint D is the KL of the paths, rho is lambda,
    and budget is that KL in nats for every action of a chunk, 2.5 where neither rho nor
    behavior_weight is given; noise_scale must be 1, and path linear."""

    def __post_init__(self) -> None:
        """Check what the adjoint excludes, too."""
        super().__post_init__()
        if self.flow_value == "adjoint":
            check_config(self.divergence, self.path)


class FlowRows(NamedTuple):
    """Points of chains: rows c, chains + c, 2 * chains + c ... stand on chain c."""

    flow_steps: int
    observations: Tensor  # (rows, observation_dim)
    contexts: Tensor  # (rows, context_dim)
    points: Tensor  # x_k, (rows, action_dim)
    t: Tensor  # t_k, (rows, 1)
    reference: Tensor  # u_v(x_k), (rows, action_dim)
    last: Tensor  # which rows stand at a chain's last step, int64
    returns: Tensor  # G_k, (rows,)


class Networks(NamedTuple):
    """What the losses read."""

    policy: nn.Module  # u_theta
    value: nn.Module  # V(s, x_t, t)
    critic: Critic  # gives V at t = 1


def flow_returns(divergences: Tensor, terminal: Tensor, rho: Tensor | float) -> Tensor:
    """Monte-Carlo returns G_k of the flow MDP at its flow_steps steps; flow_gamma is 1.

    Args:
        divergences: D_k, shape (flow_steps, batch).
        terminal: Value of the executed action, shape (batch,).
        rho: Weight of the divergence.

    Returns:
        Shape (flow_steps, batch).
    """
    results = [terminal]
    for reward in reversed(-rho / len(divergences) * divergences):
        results.append(reward + results[-1])
    return torch.stack(results[:0:-1])


def value_loss(networks: Networks, rows: FlowRows, noise: None = None) -> tuple[Tensor, Info]:
    """Policy evaluation: the mean of (V(s, x_k, t_k) - G_k)^2."""
    residual: Tensor = networks.value(rows.contexts, rows.points, rows.t) - rows.returns
    loss = residual.square().mean()
    return loss, {"value_loss": loss.detach()}


def policy_loss(
    networks: Networks,
    rows: FlowRows,
    noise: None = None,
    *,
    rho: Tensor | float,
    divergence: str = "squared",
) -> tuple[Tensor, Info]:
    """Policy improvement: the mean of -flow_steps Q^f(x_k, u_theta)."""
    flow_steps = rows.flow_steps
    velocity = networks.policy(rows.contexts, rows.points, rows.t)
    following = flow_step(rows.points, velocity, flow_steps)
    values = networks.value(rows.contexts, following, rows.t + 1 / flow_steps).clone()
    executed = following[rows.last].clamp(-1, 1)
    values[rows.last] = networks.critic.advantages(rows.observations[rows.last], executed)
    distance = DIVERGENCES[divergence](velocity, rows.reference)
    loss = (rho * distance - flow_steps * values).mean()
    return loss, {"policy_loss": loss.detach()}


class DFDiv(DecisionFlow[DFDivConfig], name="df-div"):
    """Divergence-oriented Decision Flow (Hu et al. 2025, arXiv:2505.20350, section 4.3).

    With an environment that has `include_previous_action`, policy and value see a_{n-1}, the
    paper's ablation.
    """

    config_class = DFDivConfig
    default_weight = 0.01

    @classmethod
    def environment_of(cls, config: DFDivConfig) -> dict[str, Any]:
        """With the adjoint, noise of 1: it is memoryless from there alone."""
        return {"noise_scale": 1.0} if config.flow_value == "adjoint" else cls.environment

    @classmethod
    def check_flow(cls, config: DFDivConfig, flow: FlowSettings | FlowSpec) -> None:
        """The adjoint needs noise of 1, and a step before the last."""
        if config.flow_value == "adjoint":
            check_flow(flow)

    def build(self) -> None:
        """Add the flow value, or what takes its place."""
        super().build()
        spec, config = self.spec, self.config
        if self.by_adjoint:
            if self.own_behavior is not None:
                raise ConfigurationError(
                    'flow_value="adjoint" goes back along the clone\'s path: leave behavior out'
                )
            self.anchor = PathAnchor.of(config, spec.chunk).to(self.device)
            self.saved.modules["anchor"] = self.anchor
            return
        self.value = FlowCritic(spec.context_dim, spec.action_dim, config.net_arch, False)
        self.saved.modules["value"] = self.value.to(self.device)
        self.value_optimizer = self.descent("value", self.value, config.critic_learning_rate)

    @property
    def by_adjoint(self) -> bool:
        """Whether V's gradient is computed along noisy chains."""
        return self.config.flow_value == "adjoint"

    @property
    def reads_state_value(self) -> bool:
        """The returns of chains do; the adjoint reads the gradient of Q alone."""
        return not self.by_adjoint

    def update(self) -> Info:
        """Roll out, evaluate (critic, flow value), improve (policy)."""
        batch = self.sample()
        if self.by_adjoint:
            return self.match(batch)
        # as many chains as give one row of learning for each transition
        chains = -(-len(batch.actions) // rows_per_chain(self.rollout_steps))
        rollout, info = self.play(batch, chains)
        rows, scores = self.score(rollout)
        return info | scores | self.evaluate(rows) | self.improve(rows)

    def match(self, batch: Batch) -> Info:
        """One step of the critic, and of the policy towards its optimum along noisy chains."""
        info = self.play(batch, 0)[1] if self.config.critic == "td" else {}
        assert isinstance(self.anchor, PathAnchor)
        steps = noisy_steps(self.spec.flow_steps, self.anchor.variance)
        states = batch.flow_states[0][:NOISY_CHAINS], batch.flow_states[1][:NOISY_CHAINS]
        noises = self.noise_like(batch.actions[:NOISY_CHAINS].expand(self.spec.flow_steps, -1, -1))
        policy = self.policy.field
        with self.autocast():
            chains = noisy_chains(policy, self.behavior, self.critic, steps, *states, noises)
        info |= self.minimize(
            self.policy_optimizer, matching_loss, policy, chains, steps=steps, rho=self.anchor.rho
        )
        if self.phase():
            self.anchor.steer(info["path_kl"])
        return info

    def steer_anchor(self, rollout: Rollout) -> None:
        """As for DF-dir; the adjoint's budget is of other chains."""
        if not self.by_adjoint:
            super().steer_anchor(rollout)

    def evaluate(self, rows: FlowRows) -> Info:
        """One step of policy evaluation."""
        return self.minimize(self.value_optimizer, value_loss, self.networks(), rows)

    def improve(self, rows: FlowRows) -> Info:
        """One step of policy improvement."""
        return self.minimize(
            self.policy_optimizer,
            policy_loss,
            self.networks(),
            rows,
            rho=self.anchor.rho,
            divergence=self.config.divergence,
        )

    def networks(self) -> Networks:
        """What the losses read."""
        return Networks(self.policy.field, self.value, self.critic)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> tuple[FlowRows, Info]:
        """The rows to learn from with their returns, and what to log of the chains."""
        flow_steps, (size, _) = self.rollout_steps, rollout.actions.shape
        times = torch.arange(flow_steps, device=self.device) / flow_steps
        t = times.repeat_interleave(size)[:, None]
        with self.autocast():
            reference = self.behavior(
                rollout.contexts.repeat(flow_steps, 1), rollout.points[:-1].flatten(0, 1), t
            ).unflatten(0, (flow_steps, size))
            terminal = self.critic.advantages(rollout.observations, rollout.actions)
        divergences = DIVERGENCES[self.config.divergence](rollout.velocities, reference)
        returns = flow_returns(divergences, terminal, self.anchor.rho)
        steps, chains, last = learned_steps(size, flow_steps, self.device)
        rows = FlowRows(
            flow_steps,
            rollout.observations[chains],
            rollout.contexts[chains],
            rollout.points[steps, chains],
            times[steps][:, None],
            reference[steps, chains],
            last,
            returns[steps, chains],
        )
        return rows, {"divergence": divergences.mean(), "g_0": returns[0].mean()}


def rows_per_chain(flow_steps: int) -> int:
    """At how many of its steps a chain is learned from."""
    return min(ROWS_PER_CHAIN, flow_steps)


@functools.cache
def learned_steps(
    chains: int, flow_steps: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Flow step and chain of every row, (rows,) each, and the rows of last steps; int64."""
    rows = rows_per_chain(flow_steps)
    chain = torch.arange(chains, device=device)
    steps = torch.cat([chain + row * flow_steps // rows for row in range(rows)]) % flow_steps
    return steps, chain.repeat(rows), torch.nonzero(steps == flow_steps - 1)[:, 0]
