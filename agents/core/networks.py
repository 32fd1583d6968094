"""Networks: ensembles of MLPs as batched matrix products, velocity fields, the normaliser."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Module = TypeVar("Module", bound=nn.Module)

Info = dict[str, Tensor]
"""Scalars to log, by name."""


class EnsembleMlp(nn.Module):
    """`members` independent GELU MLPs of one shape, evaluated together.

    Every layer is one batched matrix product, so an ensemble costs one kernel per layer, not one
    per member. With `layer_norm`, hidden layers are normalised before the activation, as is usual
    for critics (Ball et al. 2023, arXiv:2302.02948).

    Args:
        input_dim: Width of the input.
        output_dim: Width of the output.
        net_arch: Widths of the hidden layers.
        members: Number of MLPs.
        layer_norm: Normalise hidden layers.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        net_arch: Sequence[int],
        members: int = 1,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        widths = [input_dim, *net_arch, output_dim]
        self.layer_norm = layer_norm
        self.members = members
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(widths):
            bound = 1 / math.sqrt(fan_in)  # nn.Linear's initial distribution
            self.weights.append(nn.init.uniform_(_new(members, fan_in, fan_out), -bound, bound))
            self.biases.append(nn.init.uniform_(_new(members, 1, fan_out), -bound, bound))

    def forward(self, inputs: Tensor) -> Tensor:
        """Evaluate all members on the same inputs: (batch, input_dim) -> (members, batch, out).

        Under autocast the output layer stays in float32: bfloat16 steps by 0.4 % of a value, more
        than the differences between actions that the agents live on.
        """
        single = self.members == 1
        hidden = inputs if single else inputs.expand(self.members, *inputs.shape)
        *layers, (weight, bias) = zip(_held(self.weights), _held(self.biases), strict=True)
        for inner_weight, inner_bias in layers:
            hidden = self._activate(_affine(hidden, inner_weight, inner_bias, single))
        with torch.autocast(inputs.device.type, enabled=False):
            output = _affine(hidden.float(), weight, bias, single)
        return output.unsqueeze(0) if single else output

    def _activate(self, hidden: Tensor) -> Tensor:
        if self.layer_norm:
            width = hidden.shape[-1:]
            # a bias of 0 takes PyTorch's fast path on a CPU
            hidden = F.layer_norm(hidden, width, bias=hidden.new_zeros(width))
        return F.gelu(hidden)


class VelocityField(nn.Module):
    """u(s, x_t, t): the velocity of a flow policy.

    Args:
        context_dim: Width of the conditioning (the normalised observation, and the previous action
            with its flag where that is part of the flow state).
        action_dim: Width of an action.
        net_arch: Widths of the hidden layers.
        include_time: False hides t from the network (the paper's literal flow state [s, x_t]).
    """

    def __init__(
        self,
        context_dim: int,
        action_dim: int,
        net_arch: Sequence[int],
        include_time: bool = True,
    ) -> None:
        super().__init__()
        self.include_time = include_time
        self.mlp = EnsembleMlp(context_dim + action_dim + 1, action_dim, net_arch)

    def forward(self, context: Tensor, x_t: Tensor, t: Tensor | float) -> Tensor:
        """Velocity, shape (batch, action_dim).

        Args:
            context: Shape (batch, context_dim).
            x_t: Point on the path, shape (batch, action_dim).
            t: Flow time in [0, 1], a number or shape (batch, 1).
        """
        if not isinstance(t, Tensor):
            t = torch.full_like(x_t[:, :1], t)  # by shape, not len: torch.export counts on it
        if not self.include_time:
            t = torch.zeros_like(t)
        velocity: Tensor = self.mlp(torch.cat([context, x_t, t], dim=-1)).squeeze(0)
        return velocity


class FlowCritic(nn.Module):
    """A scalar of the flow state, V(s, x_t, t), or of flow state and velocity, Q(s, x_t, u, t).

    Args:
        context_dim: Width of the conditioning.
        action_dim: Width of an action.
        net_arch: Widths of the hidden layers.
        sees_velocity: Whether a velocity is an input too.
    """

    def __init__(
        self, context_dim: int, action_dim: int, net_arch: Sequence[int], sees_velocity: bool
    ) -> None:
        super().__init__()
        width = context_dim + action_dim * (2 if sees_velocity else 1) + 1
        self.mlp = EnsembleMlp(width, 1, net_arch, layer_norm=True)

    def forward(
        self, context: Tensor, x_t: Tensor, t: Tensor, velocity: Tensor | None = None
    ) -> Tensor:
        """The scalar, shape (batch,).

        Args:
            context: Shape (batch, context_dim).
            x_t: Shape (batch, action_dim).
            t: Shape (batch, 1).
            velocity: Shape (batch, action_dim), where the critic sees it.
        """
        inputs = [context, x_t, t] if velocity is None else [context, x_t, t, velocity]
        value: Tensor = self.mlp(torch.cat(inputs, dim=-1)).squeeze((0, -1))
        return value


class Normalizer(nn.Module):
    """Standardises observations by the dataset's mean and deviation; travels with the policy.

    A coordinate that never varied keeps its unit: whatever it does at play, it is not blown up.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, observation_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(observation_dim))
        self.register_buffer("std", torch.ones(observation_dim))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, observations: Tensor) -> None:
        """Take mean and deviation of `observations`, shape (n, observation_dim)."""
        self.mean.copy_(observations.mean(dim=0))
        std = observations.std(dim=0, correction=min(1, len(observations) - 1)).clamp_min(1e-3)
        self.std.copy_(std.masked_fill(is_constant(observations, least=1.0), 1.0))
        self.fitted.fill_(True)

    def forward(self, observations: Tensor) -> Tensor:
        """Standardise, shape kept."""
        return (observations - self.mean) / self.std

    def inverse(self, standardised: Tensor) -> Tensor:
        """The observations again."""
        return standardised * self.std + self.mean


def is_constant(values: Tensor, least: float = 0.0) -> Tensor:
    """Which columns of (n, width) vary by no more than rounding, for magnitudes from `least` on."""
    low, high = values.amin(0), values.amax(0)
    return high - low <= 1e-5 * torch.maximum(-low, high).clamp_min(least)


class Descent:
    """Adam with clipped gradients, and the moving average of the weights if one is kept.

    Args:
        module: Trained in place.
        learning_rate: Adam's.
        max_grad_norm: The gradient's norm is clipped to this.
        ema: The moving average, updated in place.
        ema_rate: Weight of the new parameters in the average.
    """

    def __init__(
        self,
        module: nn.Module,
        learning_rate: float,
        max_grad_norm: float,
        ema: nn.Module | None = None,
        ema_rate: float = 0.005,
    ) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.averages = [] if ema is None else list(ema.parameters())
        self.max_grad_norm, self.ema_rate = max_grad_norm, ema_rate
        graphed = self.parameters[0].device.type == "cuda"
        self.adam = torch.optim.Adam(
            self.parameters, lr=learning_rate, fused=True, capturable=graphed
        )

    def step(self, loss: Tensor) -> Tensor:
        """One step down `loss`; returns the gradient's norm before clipping, a scalar."""
        self.adam.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)  # spares the gradients of critics it goes through
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.adam.step()
        if self.averages:
            polyak(self.parameters, self.averages, self.ema_rate)
        return grad_norm


def frozen_copy(module: Module) -> Module:
    """A copy of `module` whose parameters take no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def polyak(source: Iterable[Tensor], target: Iterable[Tensor], rate: float) -> None:
    """Move target <- (1 - rate) target + rate source, in place."""
    torch._foreach_lerp_(list(target), list(source), rate)


def _held(parameters: nn.ParameterList) -> Iterable[Tensor]:
    """Its members; its own iteration takes longer than a product of one row."""
    return cast("Iterable[Tensor]", parameters._parameters.values())


def _affine(inputs: Tensor, weight: Tensor, bias: Tensor, single: bool) -> Tensor:
    """Affine layer of an ensemble; of one member without its axis, as a plain matrix product."""
    if single:
        return torch.addmm(bias.squeeze(0), inputs, weight.squeeze(0))  # [0] has a costly gradient
    return torch.baddbmm(bias, inputs, weight)


def _new(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))
