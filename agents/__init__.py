"""Agents that learn offline in the flow MDP, behind Stable-Baselines3's interface."""

from flowmdp.agents.df_dir import DFDir
from flowmdp.agents.df_div import DFDiv
from flowmdp.agents.flow_bc import FlowBC
from flowmdp.agents.reward_models import load_models, pretrained_path
from flowmdp.agents.saving import load_agent

ALGORITHMS = {"flow-bc": FlowBC, "df-dir": DFDir, "df-div": DFDiv}

__all__ = [
    "ALGORITHMS",
    "DFDir",
    "DFDiv",
    "FlowBC",
    "load_agent",
    "load_models",
    "pretrained_path",
]
