"""Agents that learn offline in the flow MDP, behind Stable-Baselines3's interface."""

from flowmdp.agents.core.models import load_models, models_of, pretrained_path
from flowmdp.agents.core.saving import load_agent
from flowmdp.agents.df_dir import DFDir
from flowmdp.agents.df_div import DFDiv
from flowmdp.agents.flow_bc import FlowBC
from flowmdp.agents.fql import FQL
from flowmdp.agents.ifql import IFQL
from flowmdp.agents.iql import IQL
from flowmdp.agents.rebrac import ReBRAC
from flowmdp.agents.rql import RQL

ALGORITHMS = {
    "flow-bc": FlowBC,
    "df-dir": DFDir,
    "df-div": DFDiv,
    "iql": IQL,
    "rebrac": ReBRAC,
    "fql": FQL,
    "ifql": IFQL,
    "rql": RQL,
}

__all__ = [
    "ALGORITHMS",
    "FQL",
    "IFQL",
    "IQL",
    "RQL",
    "DFDir",
    "DFDiv",
    "FlowBC",
    "ReBRAC",
    "load_agent",
    "load_models",
    "models_of",
    "pretrained_path",
]
