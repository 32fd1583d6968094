"""How strongly the policy is held to the behaviour, and the rule that steers it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Anchor(nn.Module):
    """rho, the weight of staying with the behaviour, in advantage units.

    What a given rho allows differs between datasets. It is one of three, the first that is given:

    `budget` [ours]: rho is steered so that the mean squared distance between the policy's and the
    behaviour's action from the same noise stays at

        allowed = budget * variance

    The variance is that of one coordinate of the behaviour's own actions at one state: a policy
    moves along one direction, the gradient of Q, whatever the number of coordinates. Every few
    steps log rho moves by `RATE` times the relative excess.

    `rho`: as it is.

    `behavior_weight`: rho is this share of mean |Q|, measured when the policy starts. TD3+BC
    (Fujimoto and Gu 2021, arXiv:2106.06860) and ReBRAC weigh Q and behaviour so, with the mean of
    every batch: where actions decide much of Q, a policy may go far.

    Args:
        rho: Its value, or the first one if there is a budget; there None is 100, where the policy
            is the behaviour: from below it goes far astray before rho has risen.
        budget: Allowed transport, see above.
        behavior_weight: See above.
    """

    RATE = 0.02
    log_rho: Tensor
    allowed: Tensor

    def __init__(self, rho: float | None, budget: float | None, behavior_weight: float) -> None:
        super().__init__()
        self.budget = budget
        self.behavior_weight = behavior_weight if rho is None and budget is None else None
        self.register_buffer("log_rho", torch.tensor(math.log(100.0 if rho is None else rho)))
        self.register_buffer("allowed", torch.ones(()))

    @property
    def rho(self) -> Tensor:
        """A scalar."""
        return self.log_rho.exp()

    @torch.no_grad()
    def fit(self, magnitude: Tensor, actions: Tensor, others: Tensor) -> None:
        """Measure what is allowed, or what rho is.

        Args:
            magnitude: Mean |Q| in advantage units, a scalar.
            actions: The behaviour's, one per state, shape (batch, action_dim).
            others: The same from other noise.
        """
        if self.budget is not None:
            variance = (actions - others).square().mean() / 2
            self.allowed.copy_((self.budget * variance).clamp_min(1e-6))
        if self.behavior_weight is not None:
            self.log_rho.copy_((self.behavior_weight * magnitude).clamp_min(1e-3).log())

    @torch.no_grad()
    def steer(self, transport: Tensor) -> None:
        """Move rho by the measured mean squared distance, a scalar."""
        if self.budget is not None:
            excess = (transport / self.allowed - 1).clamp(-1, 1)
            self.log_rho.add_(self.RATE * excess).clamp_(-5.0, 5.0)
