"""How strongly the policy is held to the behaviour, and the rule that steers it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Anchor(nn.Module):
    """rho, the weight of staying with the behaviour; fixed, or steered to a budget [ours].

    What a given rho allows differs between datasets. With a budget, rho is steered so that the mean
    squared distance between the policy's and the behaviour's action from the same noise stays at
    `budget` times the variance that one coordinate of the behaviour's own actions has at one state.
    A policy moves along one direction, the gradient of Q: a budget of 1 is one standard deviation,
    0.03 a sixth of one, whatever the number of coordinates. Every few steps log rho moves by `RATE`
    times the relative excess.

    Args:
        rho: Its (first) value.
        budget: Allowed transport in units of the variance; None keeps rho fixed.
    """

    RATE = 0.02
    log_rho: Tensor
    variance: Tensor

    def __init__(self, rho: float, budget: float | None) -> None:
        super().__init__()
        self.budget = budget
        self.register_buffer("log_rho", torch.tensor(math.log(rho)))
        self.register_buffer("variance", torch.ones(()))

    @property
    def rho(self) -> Tensor:
        """A scalar."""
        return self.log_rho.exp()

    @torch.no_grad()
    def fit(self, actions: Tensor, others: Tensor) -> None:
        """Take the variance from two independent actions per state, (batch, action_dim) each."""
        self.variance.copy_((actions - others).square().mean() / 2)

    @torch.no_grad()
    def steer(self, transport: Tensor) -> None:
        """Move rho by the measured mean squared distance, a scalar."""
        if self.budget is not None:
            allowed = (self.budget * self.variance).clamp_min(1e-6)
            excess = (transport / allowed - 1).clamp(-1, 1)
            self.log_rho.add_(self.RATE * excess).clamp_(-5.0, 5.0)
