"""How strongly the policy is held to the behaviour, and the rule that steers it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Anchor(nn.Module):
    """rho, the weight of staying with the behaviour; fixed, or steered to a budget [ours].

    What a given rho allows differs between datasets. With a budget, rho is steered so that the mean
    squared distance between the policy's and the behaviour's action from the same noise stays at

        allowed = budget * nu^2 * variance

    The variance is that of one coordinate of the behaviour's own actions at one state: a policy
    moves along one direction, the gradient of Q, whatever the number of coordinates. nu, the mean
    difference of Q between two such actions in standard deviations of the return, says how much of
    the return the action decides, and so how much of what moves Q is more than the critic's error.
    Every few steps log rho moves by `RATE` times the relative excess.

    Args:
        rho: Its (first) value.
        budget: Allowed transport, see above; None keeps rho fixed.
    """

    RATE = 0.02
    log_rho: Tensor
    allowed: Tensor

    def __init__(self, rho: float, budget: float | None) -> None:
        super().__init__()
        self.budget = budget
        self.register_buffer("log_rho", torch.tensor(math.log(rho)))
        self.register_buffer("allowed", torch.ones(()))

    @property
    def rho(self) -> Tensor:
        """A scalar."""
        return self.log_rho.exp()

    @torch.no_grad()
    def fit(self, actions: Tensor, others: Tensor, nu: Tensor) -> None:
        """Measure what is allowed, from two actions per state, each of (batch, action_dim).

        Args:
            actions: The behaviour's.
            others: The behaviour's, from other noise.
            nu: Mean |Q(s, a) - Q(s, a')| in standard deviations of the return, a scalar.
        """
        if self.budget is not None:
            variance = (actions - others).square().mean() / 2
            self.allowed.copy_((self.budget * nu**2 * variance).clamp_min(1e-6))

    @torch.no_grad()
    def steer(self, transport: Tensor) -> None:
        """Move rho by the measured mean squared distance, a scalar."""
        if self.budget is not None:
            excess = (transport / self.allowed - 1).clamp(-1, 1)
            self.log_rho.add_(self.RATE * excess).clamp_(-5.0, 5.0)
