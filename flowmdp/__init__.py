"""flowmdp: the steps of a flow policy as a Gymnasium environment, and agents that learn in it.

Importing the package registers `FlowMDP-<task>-v0` for every task and imports no simulator,
no torch and no datasets:

    import flowmdp
    env = gymnasium.make("FlowMDP-hopper-medium-v0")

`FlowMDP-v0` is the flow environment of any other robot, `gymnasium.make("FlowMDP-v0", env_id=...)`.
"""

from __future__ import annotations

import gymnasium as _gym

from flowmdp.envs.tasks import TASKS as _TASKS

__version__ = "0.2.0"


def register_envs() -> None:
    """Register the flow environment of every task, and of any robot; import does it."""
    kwargs = {"FlowMDP-v0": {}, **{f"FlowMDP-{name}-v0": {"task": name} for name in _TASKS}}
    for env_id, task in kwargs.items():
        if env_id not in _gym.registry:
            _gym.register(
                id=env_id,
                entry_point="flowmdp.make:make_flow_env",
                vector_entry_point="flowmdp.make:make_flow_vector_env",
                kwargs=task,
            )


register_envs()


def robot_of(task: str | None) -> str | None:
    """The name of a task's robot, None for a robot of the user's own."""
    return _TASKS[task].robot if task in _TASKS else None
