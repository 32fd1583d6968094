"""Critics Q(s, a) of the robot's MDP and the losses they learn by.

A critic first learns from the data's own trajectories, while there is no policy but the behaviour
[ours]: V regresses to their TD(lambda) returns, which carry value back many times faster than
one-step targets do, and Q to r + gamma (1 - terminated) V(s'), which in a deterministic simulator
is free of the returns' noise, a hundred times larger than the differences between actions. Then it
learns on in one of two modes:

    iql   never asks for the value of an action that is not in the data (Kostrikov et al. 2022,
          arXiv:2110.06169; what Decision Flow's appendix C uses)
    td    goes on learning under the policy that is being improved [ours]

Flow critics and policies see neither Q nor V but the **advantage in advantage units**,
A(s, a) = (Q(s, a) - V(s)) / nu, where nu is the mean absolute difference between Q at the data's
action and Q at the behaviour flow's action in the same state [ours]: what a policy can win is that
spread, often below one per cent of Q itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowmdp.agents.core.batch import Batch, DeviceDataset, lambda_returns
from flowmdp.agents.core.networks import EnsembleMlp, Info, frozen_copy, polyak

SCALE_SAMPLES = 4096
"""States from which the advantage unit nu is measured."""
SMOOTHING_CLIP = 2.5
"""Of the noise in `smoothed`, in its standard deviations, as in TD3."""


class Critic(nn.Module):
    """Ensemble Q(s, a), its Polyak target and a state value V(s).

    Args:
        observation_dim: Width of an observation.
        action_dim: Width of an action; of a chunk's actions together.
        net_arch: Hidden widths.
        members: Number of Q networks.
        gamma: Discount from s to s', per chunk where there are chunks.
        tau: Polyak rate of the target.
        expectile: Of the state value's regression, in [0.5, 1); 0.5 is the mean.
        pessimism: Q = mean - pessimism * std of the members; None takes their minimum.
    """

    scale: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        net_arch: Sequence[int] = (256, 256, 256),
        *,
        members: int = 2,
        gamma: float = 0.99,
        tau: float = 0.005,
        expectile: float = 0.7,
        pessimism: float | None = None,
    ) -> None:
        super().__init__()
        self.gamma, self.tau = gamma, tau
        self.expectile, self.pessimism = expectile, pessimism
        width = observation_dim + action_dim
        self.q = EnsembleMlp(width, 1, net_arch, members, layer_norm=True)
        self.target_q = frozen_copy(self.q)
        self.v = EnsembleMlp(observation_dim, 1, net_arch, layer_norm=True)
        self.target_v = frozen_copy(self.v)
        self.register_buffer("scale", torch.ones(()))

    def members(self, observations: Tensor, actions: Tensor, target: bool = False) -> Tensor:
        """Q of every member, or of every target, shape (members, batch)."""
        network = self.target_q if target else self.q
        q: Tensor = network(torch.cat([observations, actions], dim=-1)).squeeze(-1)
        return q

    def aggregate(self, q: Tensor) -> Tensor:
        """(members, batch) -> (batch,): the minimum, or mean - pessimism * std."""
        if self.pessimism is None:
            return q.amin(0)
        if self.pessimism == 0:
            return q.mean(0)
        return q.mean(0) - self.pessimism * q.std(0)

    def values(self, observations: Tensor, actions: Tensor, target: bool = False) -> Tensor:
        """Pessimistic Q(s, a) in scaled reward units, shape (batch,)."""
        return self.aggregate(self.members(observations, actions, target))

    def state_values(self, observations: Tensor) -> Tensor:
        """V(s), shape (batch,)."""
        v: Tensor = self.v(observations).squeeze((0, -1))
        return v

    def advantages(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(Q(s, a) - V(s)) / nu, shape (batch,); no gradient reaches the critic's parameters."""
        q = self.values(observations, actions)
        with torch.no_grad():
            baseline = self.state_values(observations)
        return (q - baseline) / self.scale

    @torch.no_grad()
    def fit_scale(self, observations: Tensor, data: Tensor, flow: Tensor) -> Tensor:
        """Set nu to the mean |Q(s, a_data) - Q(s, a_flow)|; actions (batch, action_dim).

        Returns:
            Mean |Q(s, a_data)| / nu, a scalar.
        """
        q = self.values(observations, data)
        difference = q - self.values(observations, flow)
        self.scale.copy_(difference.abs().mean().clamp_min(1e-6))
        return q.abs().mean() / self.scale

    @torch.no_grad()
    def start_at(self, value: float) -> None:
        """Shift all values, before anything is learned, to a number of their order."""
        for network in (self.q, self.target_q, self.v, self.target_v):
            network.biases[-1].add_(value)

    def update_target(self) -> None:
        """One Polyak step of the target ensemble."""
        polyak(self.q.parameters(), self.target_q.parameters(), self.tau)


class ReturnTargets(NamedTuple):
    """What Q and V regress to while the policy is the behaviour; both of shape (n,)."""

    q: Tensor
    v: Tensor


@torch.no_grad()
def return_targets(
    critic: Critic, data: DeviceDataset, lam: float, average: float | None = None
) -> ReturnTargets:
    """Targets of all transitions under the critic's `target_v`, each (n,); `lam` is TD(lambda)'s.

    `average` stands for every V while V knows nothing: a truncation then bootstraps from what the
    behaviour earns on average, so that returns do not depend on where a time limit cut.
    """
    rewards, masks, gamma = data.rewards, data.masks, critic.gamma
    if average is not None:
        next_values = rewards.new_full((1,), average).expand_as(rewards)
    else:
        rows = torch.arange(len(data), device=rewards.device).split(1 << 14)
        parts = [critic.target_v(data.states_after(part)) for part in rows]
        next_values = torch.cat([part.squeeze((0, -1)) for part in parts])
    v = lambda_returns(rewards, next_values, masks, data.continues, gamma, lam, data.chunk)
    return ReturnTargets((gamma * masks).mul_(next_values).add_(rewards), v)


def average_value(data: DeviceDataset, gamma: float) -> float:
    """The constant V that is the mean of its own Monte-Carlo returns: LSTD(1) with one feature.

    Source: Bradtke and Barto 1996, Boyan 2002. The mean return without a bootstrap, divided by 1 -
    the mean discount that a truncation's bootstrap would get.
    """
    rows = slice(None) if data.starts is None else data.starts
    none, one = (data.rewards.new_full((1,), x).expand_as(data.rewards) for x in (0.0, 1.0))
    cut = (data.masks, data.continues, gamma, 1.0, data.chunk)
    earned = lambda_returns(data.rewards, none, *cut)[rows].mean()
    carried = lambda_returns(none, one, *cut)[rows].mean()
    return (earned / (1 - carried)).item()


def return_loss(critic: Critic, batch: Batch, targets: ReturnTargets) -> tuple[Tensor, Info]:
    """Squared errors of Q and V against the batch's targets, (batch,) each."""
    q = critic.members(batch.observations, batch.actions)
    q_loss = (q - targets.q).square().mean(-1).sum()  # over the batch, then members
    v_loss = (critic.state_values(batch.observations) - targets.v).square().mean()
    info = {"q_loss": q_loss.detach(), "v_loss": v_loss.detach(), "q_data": q.detach().mean()}
    return q_loss + v_loss, info


def expectile_loss(critic: Critic, batch: Batch, noise: None = None) -> tuple[Tensor, Info]:
    """Mode "iql": Q to r + gamma (1 - terminated) V(s'), V to an expectile of Q's target."""
    with torch.no_grad():
        following = critic.state_values(batch.next_observations)
        targets = critic.values(batch.observations, batch.actions, target=True)
    q_loss, info, _ = _bellman_loss(critic, batch, following)
    v_loss = value_loss(critic, batch, targets)
    return q_loss + v_loss, info | {"v_loss": v_loss.detach()}


def td_loss(critic: Critic, batch: Batch, next_actions: Tensor) -> tuple[Tensor, Info]:
    """Mode "td": Q to r + gamma (1 - terminated) Q'(s', a'), a' the policy's, (batch, action_dim).

    V is left alone; `td_value_loss` learns it too.
    """
    loss, info, _ = _td_loss(critic, batch, next_actions)
    return loss, info


def td_value_loss(critic: Critic, batch: Batch, next_actions: Tensor) -> tuple[Tensor, Info]:
    """`td_loss`, and V to an expectile of Q over the data's actions."""
    q_loss, info, q = _td_loss(critic, batch, next_actions)
    v_loss = value_loss(critic, batch, critic.aggregate(q.detach()))
    return q_loss + v_loss, info | {"v_loss": v_loss.detach()}


def _td_loss(critic: Critic, batch: Batch, next_actions: Tensor) -> tuple[Tensor, Info, Tensor]:
    with torch.no_grad():
        following = critic.values(batch.next_observations, next_actions, target=True)
    return _bellman_loss(critic, batch, following)


def _bellman_loss(critic: Critic, batch: Batch, following: Tensor) -> tuple[Tensor, Info, Tensor]:
    """Q against r + gamma (1 - terminated) following; loss, what to log, Q's members."""
    q = critic.members(batch.observations, batch.actions)
    target = batch.rewards + critic.gamma * batch.masks * following
    loss = (q - target).square().mean(-1).sum()
    return loss, {"q_loss": loss.detach(), "q_data": q.detach().mean()}, q


def value_loss(critic: Critic, batch: Batch, targets: Tensor) -> Tensor:
    """|expectile - 1(residual < 0)| residual^2 of V against targets, the mean over the batch."""
    residual = targets - critic.state_values(batch.observations)
    weights = (critic.expectile - (residual < 0).float()).abs()
    return (weights * residual.square()).mean()


def favourites(
    critic: Critic, observations: Tensor, candidates: Tensor, target: bool = False
) -> Tensor:
    """The candidate of the highest Q in every state, shape (batch, action_dim).

    Li et al. 2025, arXiv:2507.07969, put it in a critic's target.

    Args:
        critic: Its pessimistic `values` choose.
        observations: Shape (batch, observation_dim).
        candidates: Actions in [-1, 1], shape (batch, n, action_dim).
        target: Whether the target networks choose.
    """
    n = candidates.shape[1]
    if n == 1:
        return candidates[:, 0]
    values = critic.values(observations.repeat_interleave(n, 0), candidates.flatten(0, 1), target)
    best = values.unflatten(0, (-1, n)).argmax(1)
    rows = torch.arange(best.shape[0], device=best.device)
    chosen: Tensor = candidates[rows, best]
    return chosen


def smoothed(actions: Tensor, noise: Tensor, scale: float) -> Tensor:
    """Target policy smoothing [Fujimoto et al. 2018, TD3, arXiv:1802.09477].

    The policy's actions with clipped noise, for which a critic's target then holds: a Q that is
    high in a narrow place is not believed.

    Args:
        actions: Shape (batch, action_dim).
        noise: Standard Gaussian, of the same shape.
        scale: Standard deviation that the noise gets.

    Returns:
        Shape (batch, action_dim), in [-1, 1].
    """
    clipped = noise.clamp(-SMOOTHING_CLIP, SMOOTHING_CLIP)
    return (actions + scale * clipped).clamp(-1, 1)
