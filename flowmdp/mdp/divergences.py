"""How far a policy's velocity u is from the behaviour's u_v, per flow step (DF-div's D).

The squared norm is the default: summed over a chain it is a budget on transport, how far actions
may move (Wasserstein-2). The Gaussian KL is the one that keeps actions inside the data's support.
Sums over dimensions, never means, so that `rho` means the same for every action dimension.

All functions take NumPy arrays or torch tensors: velocity and reference of shape (..., action_dim)
give shape (...).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Divergence = Callable[[Any, Any], Any]
"""divergence(velocity (..., action_dim), reference (..., action_dim)) -> (...), 0 where equal."""

KL_STD = 0.5
"""Standard deviation of the velocities that `gaussian_kl` compares. [ours, untuned]"""


def squared(velocity: Any, reference: Any) -> Any:
    """||u - u_v||^2."""
    return ((velocity - reference) ** 2).sum(-1)


def smooth_norm(velocity: Any, reference: Any, eps: float = 1e-2) -> Any:
    """sqrt(||u - u_v||^2 + eps^2) - eps: the norm, with a gradient of 0 where both agree."""
    return _sqrt(squared(velocity, reference) + eps**2) - eps


def cosine(velocity: Any, reference: Any, eps: float = 1e-6) -> Any:
    """1 - cos(u, u_v), in [0, 2]: the direction alone; 1 where one of the two is zero."""
    if not isinstance(velocity, np.ndarray):
        from torch.nn.functional import cosine_similarity  # there already: these are its tensors

        return 1 - cosine_similarity(velocity, reference, dim=-1, eps=eps)
    lengths = [np.linalg.norm(u, axis=-1).clip(eps) for u in (velocity, reference)]
    return 1 - (velocity * reference).sum(-1) / (lengths[0] * lengths[1])


def gaussian_kl(velocity: Any, reference: Any, std: float = KL_STD) -> Any:
    """KL between two Gaussians of standard deviation std, ||u - u_v||^2 / (2 std^2)."""
    return squared(velocity, reference) / (2 * std**2)


DIVERGENCES: dict[str, Divergence] = {
    "squared": squared,
    "smooth_norm": smooth_norm,
    "cosine": cosine,
    "gaussian_kl": gaussian_kl,
}


def direction(velocity: Any, eps: float) -> Any:
    """Unit vector u / sqrt(||u||^2 + eps^2), shape kept; finite at zero velocity."""
    return velocity / _sqrt((velocity**2).sum(-1)[..., None] + eps**2)


def _sqrt(x: Any) -> Any:
    return np.sqrt(x) if isinstance(x, np.ndarray | np.floating) else x.sqrt()
