"""QC: Q-learning on action chunks with the best of several samples of a behaviour flow, a baseline.

Source: Li et al. 2025, "Reinforcement Learning with Action Chunking", arXiv:2507.07969. A flow
clones the behaviour. The best of N of its samples acts, and stands in the critic's target too:

    Q(s, a) regresses to r + gamma mask Q'(s', a'),  a' = argmax_{i <= N} Q'(s', flow(s', z_i))

The paper's actions are chunks of five robot actions: take an environment with `chunk=5`. r is then
the chunk's discounted reward and gamma its `chunk`-th power. Without chunks it is best-of-N
Q-learning on single actions (Ghasemipour et al. 2021, EMaQ, arXiv:2007.11091, with a flow).

As in the paper: N = 32, a Polyak rate of 0.005, gamma 0.99, batches of 256, Adam at 3e-4 for the
critic, flows of ten steps, and with `paper` the mean of two Q networks.

Differences [ours]: the critic is the one of all agents; offline only; the flow is trained before
the critic instead of beside it, and the critic starts from the data's returns, hence far fewer
steps (paper: a million); networks of 256x3 instead of 512x4; the critic's rewards are scaled to
returns of order one; Q' itself chooses a' (in their code Q does, and Q' values the choice); the
critic learns from chunks that the data did not finish, too (their code leaves them out); noise of
0.3 instead of 1, see `DecisionFlow.environment`; the N noises are shifted copies of one, as IFQL's,
in the target as well, so that the target evaluates the policy that acts.

Logged (train/):
    critic_q_loss, critic_q_data, critic_grad_norm: of the critic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from flowmdp.agents.core.best_of import BestOf, SamplesConfig
from flowmdp.agents.core.config import MEAN_OF_TWO, SmoothedConfig
from flowmdp.agents.core.networks import Info


@dataclass(frozen=True, kw_only=True)
class QCConfig(SamplesConfig, SmoothedConfig):
    """Hyper-parameters of QC."""


class QC(BestOf[QCConfig], name="qc"):
    """Best of N from a behaviour flow, in the backup too (Li et al. 2025, arXiv:2507.07969)."""

    config_class = QCConfig
    default_steps = 5_000
    expectiles = False
    paper: ClassVar[dict[str, Any]] = MEAN_OF_TWO

    def update(self) -> Info:
        """One step of the critic."""
        batch = self.sample()
        with torch.no_grad(), self.autocast():
            x_0 = self.starts_like(batch.actions)
            chosen = self.choice.actions(batch.next_contexts, x_0, target=True)
        return self.critic_part.follow(batch, chosen[:, None])
