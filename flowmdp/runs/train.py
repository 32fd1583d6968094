"""`flowmdp train`: data, behaviour flow, critic, policy, evaluation, curves, in one folder."""

from __future__ import annotations

import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from flowmdp.agents import load_agent
from flowmdp.agents.core.acting import OuterPolicy
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.tasks import get_task
from flowmdp.errors import CheckpointError, ConfigurationError
from flowmdp.files import read_json, write_json
from flowmdp.runs import cache
from flowmdp.runs.callbacks import Interruptible, Keeper
from flowmdp.runs.config import (
    Device,
    check_config,
    make_agent,
    make_config,
    make_data,
    make_env,
    versions,
)
from flowmdp.runs.curves import draw_run
from flowmdp.runs.evaluate import evaluate
from flowmdp.runs.folder import RunFolder, free_folder
from flowmdp.runs.log import ProgressFile, make_logger
from flowmdp.runs.summary import print_table, summarize, summarize_evaluations
from flowmdp.transitions import TransitionDataset

LOG_INTERVAL = 100
"""Gradient steps between two lines of progress.csv."""
DURING, AFTER = 1_000_000, 2_000_000
"""First episode seeds of evaluations during and after training, away from those of the data."""
DECIDING = ("algorithm", "task", "source", "dataset_id", "seed", "steps", "quick", "flow", "config")
"""What decides a run's outcome, in config.json and in result.json."""
FRESH: dict[str, Any] = {"evaluations": [], "updates": 0, "update_seconds": 0.0, "seconds": 0.0}


def train(*, out: Path | None = None, verbose: bool = False, **options: Any) -> None:
    """Train an agent offline: data, behaviour flow, critic, policy, evaluation, curves.

    One command does the whole job. It builds the dataset if it must, fits the behaviour flow and
    the critic (kept in FLOWMDP_CACHE, or ~/.cache/flowmdp, and reused by the next run with the same
    settings), trains the policy, plays the robot with both flows and prints their returns beside
    the data's. The run folder then holds config.json, checkpoint.zip, progress.csv, history.json,
    curves.png, result.json, and TensorBoard files where tensorboard is installed.

    With the name of an algorithm before its --help, as in `flowmdp train df-div --help`, this text
    shows its hyper-parameters too. df-dir, df-div, fql, ifql and rql start their flows from noise
    of 0.3; --noise-scale 1.0 takes the full Gaussian. Ctrl-C saves and prints the command that
    continues: `flowmdp train --resume DIR`, which takes --steps to raise the goal, --device and
    --verbose.

    For example:
      flowmdp train df-div hopper-medium --quick
      flowmdp train df-dir hopper-medium --seed 1 --out runs/my-run
      flowmdp train df-div hopper-medium --dataset zoo/hopper/medium-v0
      flowmdp train df-div hopper-medium --rho 0.3 --batch-size 512
      flowmdp train df-div hopper-medium --paper
      flowmdp train --resume runs/my-run
      flowmdp train --resume runs/my-run --steps 40000

    Args:
        out: Run folder; runs/TASK/ALGORITHM-seedS when not given, or the next free one.
        verbose: Print the logged numbers as tables too.
        **options: Of `make_config`.
    """
    start = time.perf_counter()
    config = make_config(**options)
    default = Path("runs") / config["task"] / f"{config['algorithm']}-seed{config['seed']}"
    folder = RunFolder(out or free_folder(default))
    folder.check_free()
    _work(folder, config, True, verbose, start)


def resume(
    *, resume: Path, steps: int | None = None, device: Device = "auto", verbose: bool = False
) -> None:
    """Continue a run; only its goal and its device may change.

    Args:
        resume: Its folder.
        steps: A goal that is not below the run's own.
        device: auto keeps the run's.
        verbose: Print the logged numbers as tables too.
    """
    start = time.perf_counter()
    folder, config = RunFolder.open(resume)
    if steps is not None:
        if steps < config.get("steps", 0):
            raise ConfigurationError(
                f"--steps {steps} is below the run's goal of {config['steps']}: raise it"
            )
        config["steps"] = steps
    if device != "auto":
        config["device"] = device
    try:
        check_config(config)
    except KeyError as error:
        raise CheckpointError(
            f"{folder.config} lacks {error}: restore it or train again"
        ) from error
    write_json(folder.config, config)
    _work(folder, config, False, verbose, start)


def _work(
    folder: RunFolder, config: dict[str, Any], new: bool, verbose: bool, start: float
) -> None:
    data = make_data(config)
    env = make_env(config, data)
    try:
        agent = _agent(folder, config, env)
        if new:  # only now, so that bad input leaves no folder behind
            folder.create(config)
            print(f"run folder: {folder.path}", file=sys.stderr)
        _run(folder, config, agent, data, verbose, start)
    except KeyboardInterrupt:
        command = f"flowmdp train --resume {shlex.quote(str(folder.path))}"
        raise KeyboardInterrupt(f"continue with: {command}") from None
    finally:
        env.close()


def _run(
    folder: RunFolder,
    config: dict[str, Any],
    agent: FlowAlgorithm,
    data: TransitionDataset,
    verbose: bool,
    start: float,
) -> None:
    """Everything that happens in the run's folder; `start` is when the command began."""
    history = _history(folder, agent)
    progress = ProgressFile(folder.progress)
    progress.forget_after(agent.pretrain_updates, agent.num_timesteps)
    agent.set_logger(make_logger(folder, progress, verbose))
    before = history["seconds"]

    def save() -> None:
        history["seconds"] = before + time.perf_counter() - start
        agent.save(folder.checkpoint)
        write_json(folder.history, history)

    try:
        finished = _learn(agent, config, history, save)
    finally:
        agent.logger.close()
    if not finished:
        raise KeyboardInterrupt
    draw_run(folder.path, quiet=True)
    _conclude(folder, config, agent, data, history)


def _agent(folder: RunFolder, config: dict[str, Any], env: Any) -> FlowAlgorithm:
    """The agent of the checkpoint, or a new one where there is none yet."""
    if folder.checkpoint.exists():
        agent: FlowAlgorithm = load_agent(folder.checkpoint, env=env, device=config["device"])
        return agent
    return make_agent(config, env)


def _history(folder: RunFolder, agent: FlowAlgorithm) -> dict[str, Any]:
    """Evaluations and clocks so far, as far as the checkpoint has come.

    Raises:
        CheckpointError: When the file is damaged.
    """
    if not (folder.checkpoint.exists() and folder.history.exists()):
        return {**FRESH, "evaluations": []}
    history = read_json(folder.history)
    if missing := FRESH.keys() - history:
        raise CheckpointError(
            f"{folder.history} lacks {', '.join(sorted(missing))}: restore it, or delete it to "
            "continue without the evaluations so far"
        )
    history["evaluations"] = [
        evaluation
        for evaluation in history["evaluations"]
        if evaluation["step"] <= agent.num_timesteps
    ]
    return history


def _learn(
    agent: FlowAlgorithm, config: dict[str, Any], history: dict[str, Any], save: Any
) -> bool:
    """Pre-train and train; False when the user stopped it. Either way all is saved."""
    tenth = max(1, config["steps"] // 10)
    play = partial(make_outer, config["task"], config["source"])

    def evaluate_now() -> list[float]:
        seed, episodes = config["seed"] + DURING, config["eval_episodes"]
        return evaluate(agent.outer_policy(), play, episodes, seed, agent.acts_at_mean).returns

    remaining = config["steps"] - agent.num_timesteps
    with Interruptible() as interrupt:
        if remaining > 0 and not _pretrained(agent, interrupt, save):
            return False
        if remaining > 0:
            keeper = Keeper(
                config["steps"],
                evaluate_now,
                save,
                history,
                config["eval_every"] or tenth,
                config["save_every"] or tenth,
                interrupt,
            )
            interval = min(LOG_INTERVAL, tenth)
            try:
                agent.learn(remaining, keeper, log_interval=interval, reset_num_timesteps=False)
            finally:
                keeper.close()
            save()
    return bool(agent.num_timesteps >= config["steps"])


def _pretrained(agent: FlowAlgorithm, interrupt: Interruptible, save: Any) -> bool:
    """Behaviour flow and critic, from the cache or by training; False when the user stopped it."""
    if agent.num_timesteps > 0 or not agent.parts:
        return True
    if agent.pretrain_updates == 0:
        cache.restore(agent)
    if agent.pretrain_updates == agent.pretrain_steps:
        return True
    if not agent.pretrain(progress_bar=True, callback=interrupt.go_on):
        save()
        return False
    save()
    cache.store(agent)
    return True


def _conclude(
    folder: RunFolder,
    config: dict[str, Any],
    agent: FlowAlgorithm,
    data: TransitionDataset,
    history: dict[str, Any],
) -> None:
    """Evaluate both flows on the bare robot, write result.json and curves.png, print a table.

    Every flow plays twice, from sampled noise and from zero; the way of the algorithm's paper is
    the result, both are stored.
    """
    start = time.perf_counter()
    task, episodes = config["task"], config["episodes"]
    play = partial(make_outer, task, config["source"])

    def play_all(policy: OuterPolicy, deterministic: bool) -> dict[str, Any]:
        seed = config["seed"] + AFTER
        result = evaluate(policy, play, episodes, seed, deterministic, progress=True)
        summary = summarize(task, result.returns)
        return {"episodes": episodes, **summary, "returns": result.returns}

    def outcome(policy: OuterPolicy) -> dict[str, Any]:
        ways = {"sampled": play_all(policy, False), "noiseless": play_all(policy, True)}
        return {**ways["noiseless" if agent.acts_at_mean else "sampled"], **ways}

    agent_outcome = outcome(agent.outer_policy())
    behavior = None
    if agent.shows_behavior:
        policy = agent.behavior_policy()
        behavior = agent_outcome if policy.field is agent.policy.ema else outcome(policy)
    returns = data.returns_within(get_task(task).horizon).tolist()
    recorded = {"episodes": len(returns), **summarize(task, returns)}
    seconds = history["seconds"] + time.perf_counter() - start
    rate = history["updates"] / history["update_seconds"] if history["update_seconds"] else None
    result = {
        **{name: config[name] for name in DECIDING},
        **agent_outcome,
        **summarize_evaluations(task, history["evaluations"]),
        "behavior": behavior,
        "data": recorded,
        "updates_per_second": rate,
        "wall_seconds": seconds,
        "device": str(agent.device),
        "command": config["command"],
        "versions": versions(),
    }
    write_json(folder.result, result)
    draw_run(folder.path, quiet=True)
    flows = {config["algorithm"]: agent_outcome}
    if behavior is not None and behavior is not agent_outcome:
        flows["behaviour flow"] = behavior
    rows: dict[str, dict[str, Any]] = {}
    for name, flow in flows.items():
        rows |= {name: flow["sampled"], f"{name}, no noise": flow["noiseless"]}
    rows["data"] = recorded
    print_table(f"{task}, {agent.num_timesteps} updates, seed {config['seed']}", rows)
    quoted = shlex.quote(str(folder.path))
    print(f"results in {folder.path}; watch it: flowmdp record {quoted} --out video.mp4")
