"""`flowmdp eval`: play the bare robot with a checkpoint."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from flowmdp.agents import load_agent
from flowmdp.agents.core.acting import OuterPolicy
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.decision_flow import DecisionFlow
from flowmdp.runs.evaluate import evaluate
from flowmdp.arguments import check_integers
from flowmdp.runs.config import algorithm_name, check_device, checkpoint_file
from flowmdp.cli.options import Eval
from flowmdp.runs.summary import print_table, summarize
from flowmdp.envs.robots.outer import make_outer
from flowmdp.errors import CheckpointError, ConfigurationError


def open_agent(run_folder: Path, task: str | None, device: str) -> FlowAlgorithm:
    """Load a run's agent for playing the robot.

    Raises:
        CheckpointError: When there is no checkpoint, it is damaged, or it is another task's.
        ConfigurationError: For a GPU that is not there.
    """
    check_device(device)
    path = checkpoint_file(run_folder)
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist: name a folder that `flowmdp train` made, or a checkpoint file"
        )
    agent: FlowAlgorithm = load_agent(path, device=device)
    if agent.spec.task is None:
        raise CheckpointError(
            f"{path} was trained on an environment of its own, not on a task: play it from Python, "
            "agent.outer_policy()"
        )
    if task is not None and task != agent.spec.task:
        raise CheckpointError(
            f"{path} belongs to {agent.spec.task}, not to {task}: name a checkpoint of {task}"
        )
    return agent


def run_eval(options: Eval) -> None:
    """Play and print.

    Raises:
        ConfigurationError: For a number out of range, or an option that the agent cannot take.
    """
    check_integers(1, **{"--episodes": options.episodes, "--best-of": options.best_of})
    check_integers(0, **{"--seed": options.seed})
    agent = open_agent(options.run_folder, options.task, options.device)
    if options.noise_scale is not None:
        agent.set_noise_scale(options.noise_scale)
    policy, name = _policy(agent, options)
    task = agent.spec.task
    assert task is not None
    play = partial(make_outer, task, agent.spec.source)
    result = evaluate(
        policy,
        play,
        options.episodes,
        options.seed,
        deterministic=options.noise_scale is None and agent.acts_at_mean,
        progress=not options.json,
    )
    summary = {"episodes": options.episodes, **summarize(task, result.returns)}
    if options.json:
        record = {"task": task, "seed": options.seed, **summary, "returns": result.returns}
        print(json.dumps(record, indent=2))
    else:
        print_table(f"{task}, {agent.num_timesteps} updates", {name: summary})


def _policy(agent: FlowAlgorithm, options: Eval) -> tuple[OuterPolicy, str]:
    """Who plays, and under which name."""
    chosen: dict[str, Any] = {"n_steps": options.flow_steps, "solver": options.solver}
    if options.best_of > 1:
        if not isinstance(agent, DecisionFlow):
            raise ConfigurationError(
                "--best-of asks the critic of df-dir and df-div, this is a "
                f"{algorithm_name(agent)}: leave it out"
            )
        chosen["best_of"] = options.best_of
    if options.behavior:
        return agent.behavior_policy(**chosen), "behaviour flow"
    return agent.outer_policy(**chosen), algorithm_name(agent)
