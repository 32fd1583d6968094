"""Adjoint matching: the gradient of a noisy chain's value, computed along the chain.

The stochastic control problem (Domingo-Enrich et al. 2024, arXiv:2409.08861; for a critic: QAM, Li
and Levine 2026, arXiv:2601.14234): the flow's chain becomes noisy, a policy pays lambda times the
KL of its paths from the behaviour's, and earns A(s, a) at the end. The noise is memoryless, x_0
says nothing of the action; then the best policy's actions follow

    pi(a | s) proportional to pi_b(a | s) exp(A(s, a) / lambda)

On the linear path, in continuous time, with g^2 = 2 eta and eta = (1 - t) / t:

    dx = (2 u(x, t) - x / t) dt + g dW
    KL = E int 2 / g^2 ||u - u_v||^2 dt, by Girsanov: the drifts differ by 2 (u - u_v)
    the best u = u_v - eta / lambda E p, p the gradient of -A(s, a) in x_t along the chain

p, the costate, starts as -grad_a A at the chain's end and goes backward by vector-Jacobian products
of the behaviour's steps alone (the "lean" adjoint); u_theta is matched to it on chains of its own.
The policy that results acts as every flow does, without noise.

The steps are ours. Those of the papers, Euler-Maruyama with t moved by one step, are far too wide
where steps are few. Here x_{k+1} is drawn as it lies between x_k and the endpoint x_k + (1 - t_k) u
on straight paths; the endpoint is uncertain as that of a Gaussian of the variance of the
behaviour's actions at one state. Chains of such a behaviour then have the marginals of the path
whatever the number of steps, and a step's KL is that of two Gaussians of one deviation,
||move (u - u_v)||^2 / (2 noise^2), which tends to Girsanov's. The last step goes to the endpoint
itself: noise would ask Q for actions that no policy takes. It is u_theta's, where the papers take
u_v's: what is learned there must answer for the action that it leads to, or it grows as 1 / lambda.
At t = 0, eta is infinite and p is 0; their product is the one that x_1 gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor, nn

from flowmdp.agents.core.anchor import Anchor
from flowmdp.agents.core.critics import Critic
from flowmdp.agents.core.networks import Info
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.spec import FlowSettings, FlowSpec
from flowmdp.mdp.transition import flow_time

if TYPE_CHECKING:
    from flowmdp.agents.core.decision_flow import DecisionFlowConfig

NOISY_CHAINS = 64
"""Of an update; the critic's target has a chain without noise for every transition."""
PATH_KL = 2.5
"""Nats, for every action of a chunk. The best of N samples of the behaviour is log N - (N - 1) / N
from it, 2.5 for N = 32, as many as IFQL chooses among. [ours, untuned]"""
FIRST_RHO = 1.0
"""Of a budget: exp(A) tilts the behaviour by about half a nat, since A is of order one."""


def check_config(divergence: str, path: str) -> None:
    """Raise ConfigurationError for what has another divergence or path in mind."""
    if divergence != "squared":
        raise ConfigurationError(
            f'flow_value="adjoint" pays the KL of paths, not {divergence}: leave divergence out'
        )
    if path != "linear":
        raise ConfigurationError(
            f'flow_value="adjoint" needs path="linear", not {path!r}: leave path out'
        )


def check_flow(flow: FlowSettings | FlowSpec) -> None:
    """Raise ConfigurationError for other noise than that of the path, or for a single step."""
    if flow.noise_scale != 1:
        raise ConfigurationError(
            f'flow_value="adjoint" needs noise_scale=1, not {flow.noise_scale:g}: make the '
            "environment with noise_scale=1 (--noise-scale 1)"
        )
    if flow.flow_steps < 2:
        raise ConfigurationError(
            'flow_value="adjoint" needs flow_steps of at least 2, not 1: the last has no noise'
        )


class NoisyChains(NamedTuple):
    """What the policy learns from; no gradient."""

    contexts: Tensor  # (batch, context_dim)
    points: Tensor  # x_k, noise first, (flow_steps + 1, batch, action_dim)
    reference: Tensor  # u_v(x_k), (flow_steps, batch, action_dim)
    costates: Tensor  # p_k, (flow_steps, batch, action_dim)


class NoisySteps(NamedTuple):
    """x_{k+1} = keep_k x_k + move_k u(x_k) + noise_k N(0, I); all of shape (flow_steps,)."""

    keep: Tensor
    move: Tensor
    noise: Tensor  # a standard deviation
    eta: Tensor  # half the squared diffusion at t_k

    @property
    def cost(self) -> Tensor:
        """KL of a step for ||u - u_v||^2 = 1."""
        return 0.5 * (self.move / self.noise).square()


def noisy_steps(flow_steps: int, variance: Tensor) -> NoisySteps:
    """The memoryless steps of the linear path.

    Args:
        flow_steps: At least 2.
        variance: Of one coordinate of the behaviour's actions at one state, a scalar.
    """
    t = torch.arange(flow_steps, dtype=torch.float64, device=variance.device) / flow_steps
    following, rest = t + 1 / flow_steps, 1 - t
    kept = t / following * ((1 - following) / rest) ** 2
    endpoint = following - kept * t  # x_{k+1} is about kept x_k + endpoint (x_k + (1 - t) u)
    uncertain = variance * rest**2 / (rest**2 + t**2 * variance)  # variance of the endpoint
    bridge = (1 - following) ** 2 * (1 - kept * t / following)
    noise = (bridge + endpoint**2 * uncertain).sqrt()
    eta = rest / t
    eta[:1].fill_(flow_steps * (1 - 1 / flow_steps) ** 2)
    return NoisySteps(*(x.float() for x in (kept + endpoint, endpoint * rest, noise, eta)))


@torch.no_grad()
def roll_out(policy: nn.Module, steps: NoisySteps, contexts: Tensor, noises: Tensor) -> Tensor:
    """Noisy chains of a policy; their last step goes to its mean.

    Args:
        policy: u(s, x_t, t).
        steps: See `noisy_steps`.
        contexts: Shape (batch, context_dim).
        noises: Drawn from N(0, I), x_0 first, shape (flow_steps, batch, action_dim).

    Returns:
        The points, shape (flow_steps + 1, batch, action_dim).
    """
    points, flow_steps = [noises[0]], len(noises)
    for k in range(flow_steps):
        u = policy(contexts, points[-1], flow_time(k, flow_steps))
        points.append(steps.keep[k] * points[-1] + steps.move[k] * u)
        if k + 1 < flow_steps:
            points[-1] += steps.noise[k] * noises[k + 1]
    return torch.stack(points)


def costates(
    behavior: nn.Module, steps: NoisySteps, contexts: Tensor, points: Tensor, final: Tensor
) -> tuple[Tensor, Tensor]:
    """The costates p_k along chains, and the behaviour's velocities there.

    p_k = keep_k p_{k+1} + move_k (du_v / dx)^T p_{k+1}; that of x_0 is the one of x_1, see above.

    Args:
        behavior: u_v(s, x_t, t); its parameters take no gradient.
        steps: See `noisy_steps`.
        contexts: Shape (batch, context_dim).
        points: Shape (flow_steps + 1, batch, action_dim).
        final: The costate of the action, shape (batch, action_dim).

    Returns:
        p_k and u_v(x_k), both of shape (flow_steps, batch, action_dim).
    """
    found, velocities, flow_steps = [final], [], len(points) - 1
    for k in reversed(range(flow_steps)):
        with torch.enable_grad():
            x = points[k].detach().requires_grad_()
            u = behavior(contexts, x, flow_time(k, flow_steps))
        velocities.append(u.detach())
        if k:
            (pulled,) = torch.autograd.grad(u, x, found[-1])
            found.append(steps.keep[k] * found[-1] + steps.move[k] * pulled)
    found.append(found[-1])
    return torch.stack(found[:0:-1]), torch.stack(velocities[::-1])


def noisy_chains(
    policy: nn.Module,
    behavior: nn.Module,
    critic: Critic,
    steps: NoisySteps,
    observations: Tensor,
    contexts: Tensor,
    noises: Tensor,
) -> NoisyChains:
    """Chains of the policy, with all that it learns from; arguments as of `roll_out`.

    `observations`, shape (batch, observation_dim), are the critic's.
    """
    points = roll_out(policy, steps, contexts, noises)
    final = -action_gradient(critic, observations, points[-1])
    along, reference = costates(behavior, steps, contexts, points, final)
    return NoisyChains(contexts, points, reference, along)


def action_gradient(critic: Critic, observations: Tensor, points: Tensor) -> Tensor:
    """The gradient of A(s, a) in a at a = clip(point), shape (batch, action_dim).

    Outside the box it is the one at its edge, which leads back where Q falls towards it.
    """
    with torch.enable_grad():
        actions = points.detach().clamp(-1, 1).requires_grad_()
        value = critic.values(observations, actions).sum() / critic.scale
    (gradient,) = torch.autograd.grad(value, actions)
    return gradient


def matching_loss(
    policy: nn.Module,
    chains: NoisyChains,
    noise: None = None,
    *,
    steps: NoisySteps,
    rho: Tensor | float,
) -> tuple[Tensor, Info]:
    """The mean over chains and steps of rho / eta_k ||u - u_v||^2 + 2 (u - u_v) p_k.

    That is half the mean of ||2 (u - u_v) / sigma + sigma p||^2, sigma^2 = 2 eta / rho, less what
    does not depend on u; where rho is small its gradient is 2 p and not 1 / rho.
    """
    flow_steps, batch, _ = chains.reference.shape
    t = torch.arange(flow_steps, device=chains.points.device) / flow_steps
    velocity = policy(
        chains.contexts.repeat(flow_steps, 1),
        chains.points[:-1].flatten(0, 1),
        t.repeat_interleave(batch)[:, None],
    ).unflatten(0, (flow_steps, batch))
    moved = velocity - chains.reference
    distance = moved.square().sum(-1)
    loss = (rho / steps.eta[:, None] * distance + 2 * (moved * chains.costates).sum(-1)).mean()
    path_kl = (steps.cost @ distance.detach()).mean()
    return loss, {"policy_loss": loss.detach(), "path_kl": path_kl}


class PathAnchor(Anchor):
    """lambda, the weight of the path KL, in advantage units.

    As `Anchor`'s rho, but that `budget` is the path KL itself, in nats: the trust region of TRQAM
    (2026, arXiv:2605.27079), held by `Anchor`'s rule.
    """

    variance: Tensor
    """Of one coordinate of the behaviour's actions at one state, a scalar."""

    def __init__(self, rho: float | None, budget: float | None, behavior_weight: float) -> None:
        super().__init__(rho, budget, behavior_weight)
        self.register_buffer("variance", torch.ones(()))

    @classmethod
    def of(cls, config: DecisionFlowConfig, chunk: int) -> Self:
        """The anchor that a config asks for."""
        rho, budget, weight = config.rho, config.budget, config.behavior_weight
        if (rho, budget, weight) == (None, None, None):
            budget = PATH_KL
        if budget is not None:
            budget, rho = budget * chunk, rho or FIRST_RHO
        return cls(rho, budget, weight or 1.0)

    @torch.no_grad()
    def fit(self, magnitude: Tensor, actions: Tensor, others: Tensor) -> None:
        """As `Anchor.fit`; measures the variance, too."""
        super().fit(magnitude, actions, others)
        self.variance.copy_(((actions - others).square().mean() / 2).clamp_min(1e-6))
        if self.budget is not None:
            self.allowed.fill_(self.budget)
