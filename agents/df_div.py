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

Ours: advantage units; every chain is learned from at four of its steps, evenly apart, so that a
batch covers all steps alike; TD(lambda) with a default of lambda = 1; the improvement's
loss is multiplied by flow_steps so that the clipped gradient norm does not depend on them.

Logged (train/):
    policy_loss, grad_norm: of the improvement.
    value_loss: of the evaluation.
    divergence: mean D(u_theta, u_v) on roll-outs.
    g_0: mean return of whole chains; rises under flow policy iteration.
    critic_*: the critic's, while it goes on learning.
    q_gap: A(s, a_pi) - A(s, a_data), the dial that rho turns; above 1 Q is being exploited.
    transport: mean squared distance between the policy's and the behaviour's action of one noise.
    clipped_fraction: share of action coordinates outside [-1, 1] before clipping.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.critics import Critic, Info
from flowmdp.agents.core.decision_flow import DecisionFlow, Rollout
from flowmdp.agents.core.divergences import DIVERGENCES, Divergence
from flowmdp.agents.core.networks import Descent, FlowCritic
from flowmdp.arguments import check_numbers
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.transition import flow_step

ROWS_PER_CHAIN = 4  # more rows per chain are cheaper; fewer are less alike


class FlowRows(NamedTuple):
    """Points of chains: rows c, chains + c, 2 * chains + c ... stand on chain c."""

    flow_steps: int
    observations: Tensor  # (rows, observation_dim)
    contexts: Tensor  # (rows, context_dim)
    points: Tensor  # x_k, (rows, action_dim)
    t: Tensor  # t_k, (rows, 1)
    reference: Tensor  # u_v(x_k), (rows, action_dim)
    last: Tensor  # which rows stand at a chain's last step, int64


def flow_returns(
    divergences: Tensor,
    terminal: Tensor,
    rho: Tensor | float,
    values: Tensor | None = None,
    lam: float = 1.0,
) -> Tensor:
    """Lambda-returns of the flow MDP at its flow_steps steps; flow_gamma is 1.

    Args:
        divergences: D_k, shape (flow_steps, batch).
        terminal: Value of the executed action, shape (batch,).
        rho: Weight of the divergence.
        values: V(x_{k+1}, t_{k+1}) for k = 0..flow_steps-2, shape (flow_steps - 1, batch); needed
            when lam < 1.
        lam: 1 is the Monte-Carlo return G_k, 0 the one-step target.

    Returns:
        Shape (flow_steps, batch).
    """
    flow_steps = len(divergences)
    rewards = -rho / flow_steps * divergences
    result = rewards[-1] + terminal
    results = [result]
    for k in range(flow_steps - 2, -1, -1):
        following = result if values is None else lam * result + (1 - lam) * values[k]
        result = rewards[k] + following
        results.append(result)
    return torch.stack(results[::-1])


def improvement_loss(
    field: nn.Module,
    value: nn.Module,
    critic: Critic,
    divergence: Divergence,
    rho: Tensor,
    rows: FlowRows,
) -> Tensor:
    """-flow_steps * Q^f(x_k, u_theta), the mean over `rows`.

    Args:
        field: u_theta.
        value: V(s, x_t, t).
        critic: Gives V at t = 1.
        divergence: D.
        rho: Its weight.
        rows: Where on their chains the rows stand.
    """
    flow_steps, t = rows.flow_steps, rows.t
    velocity = field(rows.contexts, rows.points, t)
    following = flow_step(rows.points, velocity, flow_steps)
    values = value(rows.contexts, following, t + 1 / flow_steps).clone()
    executed = following[rows.last].clamp(-1, 1)
    values[rows.last] = critic.advantages(rows.observations[rows.last], executed)
    loss: Tensor = rho * divergence(velocity, rows.reference) - flow_steps * values
    return loss.mean()


class DFDiv(DecisionFlow):
    """Divergence-oriented Decision Flow.

    Args:
        policy: "MlpPolicy".
        env: A flow environment or its id; with `include_previous_action`, policy and value see
            a_{n-1} (the paper's ablation).
        divergence: "squared", "smooth_norm", "cosine" or "gaussian_kl".
        lam: Lambda of the flow value's TD(lambda) target, in [0, 1].
        **kwargs: Of `DecisionFlow`.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float = 3e-4,
        *,
        divergence: str = "squared",
        lam: float = 1.0,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        if divergence not in DIVERGENCES:
            names = ", ".join(DIVERGENCES)
            raise ConfigurationError(f"divergence is {divergence!r}: choose one of {names}")
        check_numbers("[0, 1]", lam=lam)
        super().__init__(policy, env, learning_rate, _init_setup_model=False, **kwargs)
        self.divergence, self.lam = divergence, lam
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self.value = FlowCritic(
            self.spec.context_dim, self.spec.action_dim, self.net_arch, sees_velocity=False
        ).to(self.device)
        self.value_descent = Descent(self.value, self.critic_learning_rate, 10.0)
        self.optimizers["value"] = self.value_descent.adam

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().hyperparameters() | {"divergence": self.divergence, "lam": self.lam}

    def _modules(self) -> dict[str, nn.Module]:
        return super()._modules() | {"value": self.value}

    def policy_chains(self, transitions: int) -> int:
        """As many as give one row of learning for each transition."""
        return -(-transitions // rows_per_chain(self.spec.flow_steps))

    def _update_policy(self, batch: Batch, rollout: Rollout) -> Info:
        rows, returns, evaluation = self.score(rollout)
        return evaluation | self._evaluate(rows, returns) | self._improve(rows)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> tuple[FlowRows, Tensor, Info]:
        """The rows to learn from, their returns G_k (rows,), and what to log of the chains."""
        flow_steps, (size, _) = self.spec.flow_steps, rollout.actions.shape
        times = torch.arange(flow_steps, device=self.device) / flow_steps
        t = times.repeat_interleave(size)[:, None]
        contexts = rollout.contexts.repeat(flow_steps, 1)
        with self.autocast():
            reference = self.compiled(evaluate_field)(
                self.behavior, contexts, rollout.points[:-1].flatten(0, 1), t
            ).unflatten(0, (flow_steps, size))
            terminal = self.critic.advantages(rollout.observations, rollout.actions)
            values = None
            if self.lam < 1 and flow_steps > 1:
                inner = rollout.points[1:-1].flatten(0, 1)
                values = self.value(contexts[size:], inner, t[size:]).unflatten(0, (-1, size))
        divergences = DIVERGENCES[self.divergence](rollout.velocities, reference)
        returns = flow_returns(divergences, terminal, self.anchor.rho, values, self.lam)
        steps, chains, last = learned_steps(size, flow_steps, self.device)
        rows = FlowRows(
            flow_steps,
            rollout.observations[chains],
            rollout.contexts[chains],
            rollout.points[steps, chains],
            times[steps][:, None],
            reference[steps, chains],
            last,
        )
        info = {"divergence": divergences.mean(), "g_0": returns[0].mean()}
        return rows, returns[steps, chains], info

    def _evaluate(self, rows: FlowRows, returns: Tensor) -> Info:
        """Policy evaluation: V regresses to the returns."""
        with self.autocast():
            loss = self.compiled(value_loss)(self.value, rows, returns)
        self.value_descent.step(loss)
        return {"value_loss": loss.detach()}

    def _improve(self, rows: FlowRows) -> Info:
        """Policy improvement: one step up Q^f."""
        with self.autocast():
            loss = self.compiled(improvement_loss)(
                self.policy.field,
                self.value,
                self.critic,
                DIVERGENCES[self.divergence],
                self.anchor.rho,
                rows,
            )
        return {"policy_loss": loss.detach(), "grad_norm": self.descent.step(loss)}


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


def value_loss(value: nn.Module, rows: FlowRows, returns: Tensor) -> Tensor:
    """Mean of (V(s, x_k, t_k) - G_k)^2."""
    residual: Tensor = value(rows.contexts, rows.points, rows.t) - returns
    return residual.square().mean()


def evaluate_field(field: nn.Module, contexts: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """field(contexts, x_t, t); named so that it can be compiled."""
    velocity: Tensor = field(contexts, x_t, t)
    return velocity
