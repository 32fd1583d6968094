"""FlowBC: behaviour cloning with a flow, by conditional flow matching.

Sources: Lipman et al. 2023 (arXiv:2210.02747) for the loss; Decision Flow (Hu et al. 2025,
arXiv:2505.20350) uses exactly this flow, frozen, as the behaviour u_v. Ours: the moving average of
the weights acts.

Logged:
    train/loss: the flow-matching error ||u(s, x_t, t) - (x_1 - x_0)||^2, summed over dimensions.
    train/grad_norm: norm of its gradient before clipping.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowmdp.agents.core.acting import OuterPolicy
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.critics import Info
from flowmdp.agents.core.networks import Descent
from flowmdp.mdp.path import PATHS, Path, get_path

LINEAR = PATHS["linear"]


def flow_matching_loss(
    field: nn.Module,
    contexts: Tensor,
    x_1: Tensor,
    x_0: Tensor,
    t: Tensor,
    path: Path = LINEAR,
) -> Tensor:
    """Mean of ||u(s, x_t, t) - dx_t/dt||^2, summed over dimensions; a scalar.

    Args:
        field: The velocity field.
        contexts: Shape (batch, context_dim).
        x_1: Data actions, shape (batch, action_dim).
        x_0: Standard Gaussian noise, shape (batch, action_dim).
        t: Uniform flow times in [0, 1], shape (batch, 1).
        path: From x_0 to x_1; on the straight one dx_t/dt is x_1 - x_0.
    """
    velocity: Tensor = field(contexts, path.point(x_0, x_1, t), t)
    target: Tensor = path.velocity(x_0, x_1, t)
    return (velocity - target).square().sum(-1).mean()


def flow_matching_step(
    agent: FlowAlgorithm,
    field: nn.Module,
    descent: Descent,
    batch: Batch,
    generator: torch.Generator,
) -> Info:
    """One step of `descent` down the flow-matching loss of `field`; what to log."""
    x_0 = torch.randn(batch.actions.shape, generator=generator, device=agent.device)
    t = torch.rand((len(x_0), 1), generator=generator, device=agent.device)
    with agent.autocast():
        loss = agent.compiled(flow_matching_loss)(
            field, batch.contexts, batch.actions, x_0, t, get_path(agent.path)
        )
    return {"loss": loss.detach(), "grad_norm": descent.step(loss)}


class FlowBC(FlowAlgorithm):
    """Clones the data's behaviour with a flow policy.

    Args:
        policy: "MlpPolicy".
        env: A flow environment or its id.
        learning_rate: Adam's [ours: docs/experiments.md, thirteenth round].
        **kwargs: Of `FlowAlgorithm`.
    """

    default_steps = 30_000

    def __init__(self, policy: Any, env: Any, learning_rate: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(policy, env, learning_rate, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.descent = Descent(
            self.policy.field, self.learning_rate, 1.0, self.policy.ema, self.ema_rate
        )
        self.optimizers["field"] = self.descent.adam

    def _update(self) -> Info:
        return flow_matching_step(
            self, self.policy.field, self.descent, self.sample(), self.generator
        )

    def behavior_policy(self, **options: Any) -> OuterPolicy:
        """The agent itself."""
        return self.outer_policy(**options)
