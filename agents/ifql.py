"""IFQL: implicit Q-learning, and the best of several samples of a behaviour flow, a baseline.

Sources: Park et al. 2025, "Flow Q-Learning", arXiv:2502.02538, where IFQL is a baseline; it is IDQL
(Hansen-Estruch et al. 2023, arXiv:2304.10573) with a flow in the place of the diffusion. A flow
clones the behaviour, IQL's critic learns beside it, and the agent executes the sample that the
critic values most.

As in the paper's code: the minimum of two Q networks, and of their targets in V's regression, the
best of 32 samples, flows of ten steps, a target of Polyak rate 0.005, batches of 256.

Differences [ours]: the flow is trained before the critic instead of beside it, and the critic
starts from the data's returns, hence far fewer steps (paper: a million); an expectile of 0.7
instead of 0.9; networks of 256x3 instead of 512x4; noise of 0.3 instead of 1, see
`DecisionFlow.environment`. The samples are a function of the one noise x_0 that the flow MDP gives:
sample i starts from the noise whose Gaussian quantiles are x_0's, shifted by a fixed number and
wrapped around. Every sample's noise is Gaussian with the environment's `noise_scale`, and the same
x_0 gives the same action, which makes best-of-N a policy of the flow MDP of one step.

Logged (train/):
    critic_q_loss, critic_v_loss, critic_q_data, critic_grad_norm: of the critic.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowmdp.agents.core.best_of import BestOf, SamplesConfig
from flowmdp.agents.core.config import ImplicitConfig
from flowmdp.agents.core.critics import expectile_loss
from flowmdp.agents.core.networks import Info


@dataclass(frozen=True, kw_only=True)
class IFQLConfig(ImplicitConfig, SamplesConfig):
    """Hyper-parameters of IFQL."""


class IFQL(BestOf[IFQLConfig], name="ifql"):
    """Best of N from a behaviour flow by IQL's critic (Park et al. 2025, arXiv:2502.02538)."""

    config_class = IFQLConfig
    default_steps = 2_000
    expectiles = True

    def update(self) -> Info:
        """One step of the critic."""
        return self.critic_part.learn(expectile_loss, self.sample())
