"""How far a policy's velocity is from the behaviour's, per flow step (DF-div's D).

The squared norm is the default: summed over a chain it is a budget on transport, how far actions
may move (Wasserstein-2). The Gaussian KL is the one that keeps actions inside the data's support.
Sums over dimensions, never means, so that `rho` means the same for every action dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Divergence = Callable[[Tensor, Tensor], Tensor]

KL_STD = 0.5
"""Noise scale at which `gaussian_kl` compares two steps [ours, untuned]."""


def squared(velocity: Tensor, reference: Tensor) -> Tensor:
    """||u - u_v||^2, shape (..., action_dim) -> (...)."""
    return (velocity - reference).square().sum(-1)


def smooth_norm(velocity: Tensor, reference: Tensor, eps: float = 1e-2) -> Tensor:
    """sqrt(||u - u_v||^2 + eps^2) - eps: the norm with a gradient of 0 where both agree."""
    return (squared(velocity, reference) + eps**2).sqrt() - eps


def cosine(velocity: Tensor, reference: Tensor) -> Tensor:
    """1 - cos(u, u_v), in [0, 2]: the direction alone, the speed is free."""
    return 1 - F.cosine_similarity(velocity, reference, dim=-1, eps=1e-6)


def gaussian_kl(velocity: Tensor, reference: Tensor) -> Tensor:
    """KL of Gaussian velocities of standard deviation KL_STD, ||u - u_v||^2 / (2 KL_STD^2)."""
    return squared(velocity, reference) / (2 * KL_STD**2)


DIVERGENCES: dict[str, Divergence] = {
    "squared": squared,
    "smooth_norm": smooth_norm,
    "cosine": cosine,
    "gaussian_kl": gaussian_kl,
}


def direction(velocity: Tensor, eps: float) -> Tensor:
    """U / sqrt(||u||^2 + eps^2), shape kept: the unit vector, finite at zero velocity."""
    return velocity / torch.sqrt(velocity.square().sum(-1, keepdim=True) + eps**2)
