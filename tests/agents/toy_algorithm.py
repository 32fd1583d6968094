"""A whole algorithm, as somebody would add one: the command, tests and docs find it by themselves.

`tests/conftest.py` imports this file, as `flowmdp/agents/__init__.py` imports those that ship.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.config import PolicyConfig
from flowmdp.agents.core.networks import Info
from flowmdp.agents.core.one_step import DeterministicField
from flowmdp.arguments import Range


@dataclass(frozen=True, kw_only=True)
class ToyBCConfig(PolicyConfig):
    """Hyper-parameters of ToyBC."""

    power: Annotated[float, Range("(0, inf)")] = 2.0
    """Of the distance between actions [ours]."""


def policy_loss(
    policy: DeterministicField, batch: Batch, noise: None = None, *, power: float
) -> tuple[Tensor, Info]:
    """Mean of |a(s) - a_data|^power, summed over dimensions."""
    distance = (policy.mean(batch.contexts) - batch.actions).abs()
    loss = distance.pow(power).sum(-1).mean()
    return loss, {"policy_loss": loss.detach()}


class ToyBC(FlowAlgorithm[ToyBCConfig], name="toy-bc"):
    """Regression to the data's actions."""

    config_class = ToyBCConfig
    only_flow_steps = 1

    def make_field(self) -> DeterministicField:
        return DeterministicField(self.spec.context_dim, self.spec.action_dim, self.config.net_arch)

    def build(self) -> None:
        self.policy_optimizer = self.policy_descent()

    def update(self) -> Info:
        field, power = self.policy.field, self.config.power
        return self.minimize(self.policy_optimizer, policy_loss, field, self.sample(), power=power)
