"""Critics Q(s, a) of the outer MDP, in two modes.

`IQLCritic` (Kostrikov et al. 2022, arXiv:2110.06169; what Decision Flow's appendix C uses) never
asks for the value of an action that is not in the data. `TDCritic` [ours] goes on learning under
the policy that is being improved.

Both learn a state value V(s) too. Flow critics and policies see neither Q nor V but the
**advantage in advantage units**, A(s, a) = (Q(s, a) - V(s)) / nu, where nu is the mean absolute
difference between Q at the data's action and Q at the behaviour flow's action in the same state
[ours]: what a policy can win is that spread, often below one per cent of Q itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowmdp.agents.core.batch import Batch, DeviceDataset, lambda_returns
from flowmdp.agents.core.networks import EnsembleMlp, frozen_copy, polyak

Info = dict[str, Tensor]


SMOOTHING_CLIP = 2.5
"""Of the noise in `smoothed`, in its standard deviations, as in TD3."""


class BehaviorTargets(NamedTuple):
    """What Q and V regress to while the policy is the behaviour; both of shape (n,)."""

    q: Tensor
    v: Tensor


class Critic(nn.Module):
    """Ensemble Q(s, a), its Polyak target and a state value V(s).

    While there is no policy but the behaviour, it learns from the data's own trajectories [ours]: V
    regresses to their TD(lambda) returns, which carry value back many times faster than one-step
    targets do, and Q to r + gamma (1 - terminated) V(s'), which in a deterministic simulator is
    free of the returns' noise, a hundred times larger than the differences between actions.

    Args:
        observation_dim: Width of an observation.
        action_dim: Width of an action.
        net_arch: Hidden widths.
        members: Number of Q networks.
        gamma: Discount per outer step.
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

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Pessimistic Q(s, a) in reward units, shape (batch,)."""
        return self.aggregate(self._members(self.q, observations, actions))

    def advantages(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(Q(s, a) - V(s)) / nu, shape (batch,); no gradient reaches the critic's parameters."""
        q = self.values(observations, actions)
        with torch.no_grad():
            baseline: Tensor = self.v(observations).squeeze((0, -1))
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

    def loss(
        self, batch: Batch, next_actions: Tensor | None, fit_value: bool = True
    ) -> tuple[Tensor, Info]:
        """Sum of the Q and V losses, and what to log.

        Args:
            batch: Transitions.
            next_actions: The policy's at s', (batch, action_dim); IQL asks for none.
            fit_value: False leaves V as it is, and its loss out.
        """
        q = self._members(self.q, batch.observations, batch.actions)
        with torch.no_grad():
            bootstrap = self._bootstrap(batch.next_observations, next_actions)
            target = batch.rewards + self.gamma * batch.masks * bootstrap
        loss = q_loss = (q - target).square().mean(-1).sum()  # over the batch, then members
        info = {"q_loss": q_loss.detach(), "q_data": q.detach().mean()}
        if fit_value:
            v = self.v(batch.observations).squeeze((0, -1))
            residual = self._value_target(batch, q.detach()) - v
            v_loss = ((self.expectile - (residual < 0).float()).abs() * residual.square()).mean()
            loss, info["v_loss"] = q_loss + v_loss, v_loss.detach()
        return loss, info

    @torch.no_grad()
    def behavior_targets(self, data: DeviceDataset, lam: float) -> BehaviorTargets:
        """Targets of all transitions under `target_v`; `lam` is TD(lambda)'s."""
        chunks = data.next_observations.split(1 << 14)
        next_values = torch.cat([self.target_v(chunk).squeeze((0, -1)) for chunk in chunks])
        v = lambda_returns(data.rewards, next_values, data.masks, data.continues, self.gamma, lam)
        return BehaviorTargets(data.rewards + self.gamma * data.masks * next_values, v)

    def behavior_loss(self, batch: Batch, targets: BehaviorTargets) -> tuple[Tensor, Info]:
        """Squared errors of Q and V against the batch's targets, and what to log."""
        q = self._members(self.q, batch.observations, batch.actions)
        q_loss = (q - targets.q).square().mean(-1).sum()
        v_loss = (self.v(batch.observations).squeeze((0, -1)) - targets.v).square().mean()
        info = {"q_loss": q_loss.detach(), "v_loss": v_loss.detach(), "q_data": q.detach().mean()}
        return q_loss + v_loss, info

    def update_target(self) -> None:
        """One Polyak step of the target ensemble."""
        polyak(self.q.parameters(), self.target_q.parameters(), self.tau)

    def _bootstrap(self, next_observations: Tensor, next_actions: Tensor | None) -> Tensor:
        raise TypeError("use IQLCritic or TDCritic")

    def _value_target(self, batch: Batch, q: Tensor) -> Tensor:
        """What V regresses to, (batch,); `q` are the members at the batch, (members, batch)."""
        return self.aggregate(q)

    def aggregate(self, q: Tensor) -> Tensor:
        """(members, batch) -> (batch,): the minimum, or mean - pessimism * std."""
        if self.pessimism is None:
            return q.amin(0)
        if self.pessimism == 0:
            return q.mean(0)
        return q.mean(0) - self.pessimism * q.std(0)

    @staticmethod
    def _members(network: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        q: Tensor = network(torch.cat([observations, actions], dim=-1)).squeeze(-1)
        return q


class IQLCritic(Critic):
    """Q regresses to r + gamma (1 - terminated) V(s'), V to an expectile of Q [DF, appendix C]."""

    def _bootstrap(self, next_observations: Tensor, next_actions: Tensor | None) -> Tensor:
        value: Tensor = self.v(next_observations).squeeze((0, -1))
        return value

    def _value_target(self, batch: Batch, q: Tensor) -> Tensor:
        return self.aggregate(self._members(self.target_q, batch.observations, batch.actions))


class TDCritic(Critic):
    """Q regresses to r + gamma (1 - terminated) Q'(s', a') with the policy's own a' [ours]."""

    def _bootstrap(self, next_observations: Tensor, next_actions: Tensor | None) -> Tensor:
        assert next_actions is not None
        return self.aggregate(self._members(self.target_q, next_observations, next_actions))


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


CRITICS: dict[str, type[Critic]] = {"iql": IQLCritic, "td": TDCritic}
