"""Policies that make an action of a noise in one step, as flow policies with flow_steps = 1.

In the flow MDP with a single step the velocity action(s, x_0) - x_0 leads from the noise straight
to the action. So Gaussian, deterministic, distilled and best-of-N policies play the same
environments, and are evaluated by the same code, as the flows they are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from flowmdp.agents.core.batch import taken
from flowmdp.agents.core.networks import EnsembleMlp
from flowmdp.mdp.solver import integrate

LOG_STD_RANGE = (-5.0, 2.0)
"""Of `GaussianField`, as in implicit Q-learning's published code."""


SAMPLING_STEPS = 10
"""Euler steps of a flow that is played as one step (Park et al. 2025, arXiv:2502.02538)."""


class OneStepField(nn.Module):
    """A velocity field that reaches its action in one step of length 1."""

    def actions(self, context: Tensor, x_0: Tensor) -> Tensor:
        """The action each noise becomes, not clipped, shape (batch, action_dim).

        Args:
            context: Shape (batch, context_dim).
            x_0: Noise of the environment, shape (batch, action_dim).
        """
        raise TypeError("OneStepField is abstract: say which action a noise becomes")

    def forward(self, context: Tensor, x_t: Tensor, t: Tensor | float) -> Tensor:
        """Velocity from the noise x_t to its action, shape (batch, action_dim); t is 0."""
        return self.actions(context, x_t) - x_t


class DeterministicField(OneStepField):
    """tanh(mlp(s)), whatever the noise."""

    def __init__(self, context_dim: int, action_dim: int, net_arch: Sequence[int]) -> None:
        super().__init__()
        self.mlp = EnsembleMlp(context_dim, action_dim, net_arch)

    def mean(self, context: Tensor) -> Tensor:
        """Shape (batch, action_dim), in (-1, 1)."""
        return torch.tanh(self.mlp(context).squeeze(0))

    def actions(self, context: Tensor, x_0: Tensor) -> Tensor:
        """The mean."""
        return self.mean(context)


class GaussianField(DeterministicField):
    """tanh(mlp(s)) + std x_0 with one standard deviation per action dimension."""

    def __init__(self, context_dim: int, action_dim: int, net_arch: Sequence[int]) -> None:
        super().__init__(context_dim, action_dim, net_arch)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    @property
    def std(self) -> Tensor:
        """Shape (action_dim,)."""
        return self.log_std.clamp(*LOG_STD_RANGE).exp()

    def actions(self, context: Tensor, x_0: Tensor) -> Tensor:
        """A sample for each noise."""
        return self.mean(context) + self.std * x_0

    def log_prob(self, context: Tensor, actions: Tensor, valid: Tensor | None = None) -> Tensor:
        """Log-density of the actions, of a chunk those that were taken, shape (batch,)."""
        normal = Normal(self.mean(context), self.std, validate_args=False)
        return taken(normal.log_prob(actions), valid).sum(-1)


class DistilledField(OneStepField):
    """mlp(s, x_0): a flow's map from noise to action, learned as one network."""

    def __init__(self, context_dim: int, action_dim: int, net_arch: Sequence[int]) -> None:
        super().__init__()
        self.mlp = EnsembleMlp(context_dim + action_dim, action_dim, net_arch)

    def actions(self, context: Tensor, x_0: Tensor) -> Tensor:
        """The network's output."""
        actions: Tensor = self.mlp(torch.cat([context, x_0], dim=-1)).squeeze(0)
        return actions


class SampledField(OneStepField):
    """A flow's whole chain as one step.

    Args:
        flow: The velocity field.
        flow_steps: Euler steps of its chains.
    """

    def __init__(self, flow: nn.Module, flow_steps: int = SAMPLING_STEPS) -> None:
        super().__init__()
        self._flow = (flow,)  # in a tuple: it belongs to another, and is not stored twice
        self.flow_steps = flow_steps

    def actions(self, context: Tensor, x_0: Tensor) -> Tensor:
        """Where the chains end, clipped to [-1, 1]."""
        (flow,) = self._flow
        x_1: Tensor = integrate(lambda x, t: flow(context, x, t), x_0, self.flow_steps)
        return x_1.clamp(-1, 1)
