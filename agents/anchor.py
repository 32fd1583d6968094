"""How strongly the policy is held to the behaviour, and the rule that steers it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Anchor(nn.Module):
    """rho, the weight of staying with the behaviour; fixed, or steered to a budget [ours].

    What a given rho allows differs between datasets. With a budget, rho is steered so that the mean
    squared distance between the policy's and the behaviour's action from the same noise stays at

        allowed = budget * variance

    The variance is that of one coordinate of the behaviour's own actions at one state: a policy
    moves along one direction, the gradient of Q, whatever the number of coordinates. Every few
    steps log rho moves by `RATE` times the relative excess.

    Args:
        rho: Its (first) value; None: 1, and with a budget 100, where the policy is the behaviour,
            because from below the policy goes far astray before rho has risen.
        budget: Allowed transport, see above; None keeps rho fixed.
    """

    RATE = 0.02
    log_rho: Tensor
    allowed: Tensor

    def __init__(self, rho: float | None, budget: float | None) -> None:
        super().__init__()
        if rho is None:
            rho = 1.0 if budget is None else 100.0
        self.budget = budget
        self.register_buffer("log_rho", torch.tensor(math.log(rho)))
        self.register_buffer("allowed", torch.ones(()))

    @property
    def rho(self) -> Tensor:
        """A scalar."""
        return self.log_rho.exp()

    @torch.no_grad()
    def fit(self, actions: Tensor, others: Tensor) -> None:
        """Measure what is allowed.

        Args:
            actions: The behaviour's, one per state, shape (batch, action_dim).
            others: The same from other noise.
        """
        if self.budget is not None:
            variance = (actions - others).square().mean() / 2
            self.allowed.copy_((self.budget * variance).clamp_min(1e-6))

    @torch.no_grad()
    def steer(self, transport: Tensor) -> None:
        """Move rho by the measured mean squared distance, a scalar."""
        if self.budget is not None:
            excess = (transport / self.allowed - 1).clamp(-1, 1)
            self.log_rho.add_(self.RATE * excess).clamp_(-5.0, 5.0)
