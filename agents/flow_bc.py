"""FlowBC: behaviour cloning with a flow, by conditional flow matching.

Sources: Lipman et al. 2023 (arXiv:2210.02747) for the loss; Decision Flow (Hu et al. 2025,
arXiv:2505.20350) uses exactly this flow, frozen, as the behaviour u_v. Ours: the moving average of
the weights acts.

Logged (train/):
    loss: the flow-matching error ||u(s, x_t, t) - (x_1 - x_0)||^2, summed over dimensions.
    grad_norm: norm of its gradient before clipping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn

from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.config import PolicyConfig
from flowmdp.agents.core.flow_matching import FlowNoise, flow_matching_loss
from flowmdp.agents.core.networks import Info
from flowmdp.arguments import Range
from flowmdp.mdp.path import PATHS


@dataclass(frozen=True, kw_only=True)
class FlowBCConfig(PolicyConfig):
    """Hyper-parameters of FlowBC."""

    learning_rate: Annotated[float, Range("[0, inf)")] = 1e-3
    """Adam's, of the policy [ours: lab book, thirteenth round]."""
    path: Literal["linear", "trigonometric"] = "linear"
    """Path from noise to action on which the flow is matched to the data."""


class FlowBC(FlowAlgorithm[FlowBCConfig], name="flow-bc"):
    """Clones the data's behaviour with a flow policy."""

    config_class = FlowBCConfig
    shows_behavior = True
    default_steps = 30_000
    learns_online = False

    def build(self) -> None:
        """The policy's optimiser."""
        self.policy_optimizer = self.policy_descent()

    def update(self) -> Info:
        """One step of flow matching."""
        batch = self.sample(cloning=True)
        noise = FlowNoise.draw(batch.actions, self.generator)
        path, field = PATHS[self.config.path], self.policy.field
        return self.minimize(
            self.policy_optimizer, flow_matching_loss, field, batch, noise, path=path
        )

    def behavior_field(self) -> nn.Module:
        """The policy itself."""
        return self.policy.ema
