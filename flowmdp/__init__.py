"""flowmdp: the steps of a flow policy as a Gymnasium environment, and agents that learn in it.

Importing the package registers `FlowMDP-<task>-v0` for every task and imports no simulator,
no torch and no datasets:

    import flowmdp
    env = gymnasium.make("FlowMDP-hopper-medium-v0")
"""

from __future__ import annotations

import gymnasium as _gym

from flowmdp.envs.tasks import TASKS as _TASKS

__version__ = "0.2.0"


def register_envs() -> None:
    """Register the flow environment of every task with Gymnasium; import does it."""
    for name in _TASKS:
        env_id = f"FlowMDP-{name}-v0"
        if env_id not in _gym.registry:
            _gym.register(
                id=env_id,
                entry_point="flowmdp.make:make_flow_env",
                vector_entry_point="flowmdp.make:make_flow_vector_env",
                kwargs={"task": name},
            )


register_envs()
