"""Conditional flow matching (Lipman et al. 2023, arXiv:2210.02747): a field learns from data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.networks import Info
from flowmdp.mdp.path import PATHS, Path


class FlowNoise(NamedTuple):
    """Where on their paths flows are matched."""

    x_0: Tensor  # N(0, I), (batch, action_dim)
    t: Tensor  # uniform in [0, 1], (batch, 1)

    @classmethod
    def draw(cls, actions: Tensor, generator: torch.Generator) -> FlowNoise:
        """Noise and flow times for actions of shape (batch, action_dim)."""
        device = actions.device
        x_0 = torch.randn(actions.shape, generator=generator, device=device)
        return cls(x_0, torch.rand((len(x_0), 1), generator=generator, device=device))


def flow_matching_loss(
    field: nn.Module, batch: Batch, noise: FlowNoise, *, path: Path = PATHS["linear"]
) -> tuple[Tensor, Info]:
    """Mean of ||u(s, x_t, t) - dx_t/dt||^2, summed over dimensions [Lipman et al. 2023].

    Args:
        field: The velocity field.
        batch: Its contexts (batch, context_dim) and actions x_1 (batch, action_dim) are used; of a
            chunk those that were taken.
        noise: Gives x_0 and t.
        path: From x_0 to x_1; on the straight one dx_t/dt is x_1 - x_0.
    """
    x_0, t = noise
    velocity: Tensor = field(batch.contexts, path.point(x_0, batch.actions, t), t)
    target: Tensor = path.velocity(x_0, batch.actions, t)
    error = (velocity - target).square()
    loss = (error if batch.valid is None else error * batch.valid).sum(-1).mean()
    return loss, {"loss": loss.detach()}
