"""Agents that learn offline in the flow MDP, behind Stable-Baselines3's interface.

An algorithm is one file here and one line below, which enters it in `ALGORITHMS`.
"""

from flowmdp.agents.core.algorithm import ALGORITHMS as ALGORITHMS
from flowmdp.agents.core.models import load_models as load_models
from flowmdp.agents.core.models import models_of as models_of
from flowmdp.agents.core.models import pretrained_path as pretrained_path
from flowmdp.agents.core.saving import load_agent as load_agent
from flowmdp.agents.core.together import together as together
from flowmdp.agents.flow_bc import FlowBC as FlowBC  # isort: split

from flowmdp.agents.df_dir import DFDir as DFDir  # isort: split

from flowmdp.agents.df_div import DFDiv as DFDiv  # isort: split

from flowmdp.agents.iql import IQL as IQL  # isort: split

from flowmdp.agents.rebrac import ReBRAC as ReBRAC  # isort: split

from flowmdp.agents.fql import FQL as FQL  # isort: split

from flowmdp.agents.ifql import IFQL as IFQL  # isort: split

from flowmdp.agents.qc import QC as QC  # isort: split

from flowmdp.agents.rql import RQL as RQL  # isort: split

from flowmdp.agents.dsrl import DSRL as DSRL  # isort: split

from flowmdp.agents.flow_ppo import FlowPPO as FlowPPO  # isort: split
