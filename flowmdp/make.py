"""What `gym.make("FlowMDP-<task>-v0")` calls: puts a task's robot, data and models together.

The only module of the core that imports agents and envs, and only when it is called.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ConfigurationError
from flowmdp.rewards import REWARDS

if TYPE_CHECKING:
    from flowmdp.rewards import Behavior, Critic
    from flowmdp.transitions import TransitionDataset


def make_flow_env(
    task: str,
    source: str | None = None,
    *,
    reward: str = "return",
    states: str = "env",
    checkpoint: str | None = None,
    dataset_id: str | None = None,
    render_mode: str | None = None,
    **settings: Any,
) -> FlowMDPEnv:
    """Build the flow environment of a task; every argument is JSON-able.

    Args:
        task: Name of the task, `hopper-medium`.
        source: "builtin", "minari" or "d4rl"; None takes the task's default.
        reward: See `FlowMDPEnv`; "direction" and "divergence" load the models of `checkpoint`.
        states: "env" runs the robot; "dataset" runs on recorded states, without a simulator.
        checkpoint: File that holds a critic and a behaviour flow; None takes the ones that ship for
            the task, where there are any.
        dataset_id: Minari id of another dataset with the task's outer environment.
        render_mode: The outer environment's: "rgb_array", "human" ...; only for `states="env"`.
        **settings: The other arguments of `FlowMDPEnv`: flow_steps, rho, divergence ...

    Raises:
        UnknownTaskError: For an unknown task or source.
        ConfigurationError: For an argument out of range, or a reward whose models are not there.
        DatasetError: For `states="dataset"` when the dataset cannot be had.
    """
    from flowmdp.envs.outer import make_outer
    from flowmdp.envs.tasks import get_task

    source = get_task(task).source(source)
    if states == "dataset" and render_mode is not None:
        raise ConfigurationError("states='dataset' has no robot to render: leave out render_mode")
    critic, behavior = _models(task, source, reward, checkpoint)
    return FlowMDPEnv(
        None if states == "dataset" else make_outer(task, source, render_mode=render_mode),
        dataset=partial(_load_dataset, task, source, dataset_id),
        critic=critic,
        behavior=behavior,
        task=task,
        source=source,
        reward=reward,
        states=states,
        **settings,
    )


def _load_dataset(task: str, source: str, dataset_id: str | None) -> TransitionDataset:
    """The task's dataset; imported here, so that a live robot does not pay for Minari."""
    from flowmdp.envs.datasets import load_dataset

    return load_dataset(task, source, dataset_id)


def _models(
    task: str, source: str, reward: str, checkpoint: str | None
) -> tuple[Critic | None, Behavior | None]:
    """Critic and behaviour flow for a reward that needs them, or (None, None)."""
    if checkpoint is None and (reward not in REWARDS or not REWARDS[reward].models):
        return None, None
    from flowmdp.agents import load_models, pretrained_path
    from flowmdp.envs.tasks import get_task

    path = Path(checkpoint) if checkpoint is not None else None
    if path is None and source == get_task(task).default_source:
        path = pretrained_path(task)
    if path is None:
        raise ConfigurationError(
            f"reward {reward!r} needs a critic and a behaviour flow, and none ship for {task} "
            f"({source}): train them with `flowmdp train df-div {task}` and pass checkpoint=FILE"
        )
    critic, behavior = load_models(path)
    return critic, behavior
