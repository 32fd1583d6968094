"""Flow policy iteration: DF-div's two halves, one at a time.

Decision Flow (Hu et al. 2025, arXiv:2505.20350, section 4.3) alternates policy evaluation and
policy improvement in the flow MDP. `DFDiv.learn` does one step of each per update; here they can be
run apart, under a critic that stays as it is, to see whether the flow MDP's return rises.
"""

from __future__ import annotations

import torch

from flowmdp.agents.core.critics import Info
from flowmdp.agents.core.decision_flow import Rollout
from flowmdp.agents.df_div import DFDiv
from flowmdp.errors import ConfigurationError


class FlowPolicyIteration:
    """Evaluates and improves an agent's policy in turns.

    Args:
        agent: Pre-trained; its policy and flow value are changed in place, its critic and rho not.
        states: Fixed states and noises on which `value` measures.
    """

    def __init__(self, agent: DFDiv, states: int = 1024) -> None:
        self.agent = agent
        batch = agent.data.sample(states, agent.generator)
        self._fixed = (*batch.flow_states, agent.starts_like(batch.actions))

    def evaluate(self, n: int) -> Info:
        """Fit the flow value to the policy's returns, `n` >= 1 steps; the last one's log."""
        check_steps(n)
        for _ in range(n):
            rows, returns, info = self.agent.score(self._roll_out())
            info |= self.agent._evaluate(rows, returns)
        return info

    def improve(self, m: int) -> Info:
        """Climb the flow value, `m` >= 1 steps of the policy; the last one's log."""
        check_steps(m)
        for _ in range(m):
            rows, _, _ = self.agent.score(self._roll_out())
            info = self.agent._improve(rows)
        return info

    def value(self) -> float:
        """Mean return G_0 of the flow MDP on the fixed states and noises."""
        rollout = self.agent.roll_out(self.agent.policy.ema, *self._fixed)
        return self.agent.score(rollout)[2]["g_0"].item()

    def _roll_out(self) -> Rollout:
        batch = self.agent.sample()
        x_0 = self.agent.starts_like(batch.actions)
        with torch.no_grad():
            return self.agent.roll_out(self.agent.policy.ema, *batch.flow_states, x_0)


def check_steps(n: int) -> None:
    """Raise ConfigurationError unless n is at least 1."""
    if n < 1:
        raise ConfigurationError(f"{n} steps were asked for: it must be at least 1")
