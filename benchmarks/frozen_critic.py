"""One critic under every way to improve a policy: `python -m benchmarks.frozen_critic RUN NAME`.

RUN is the folder of a finished `flowmdp train ifql`. NAME (df-dir, df-div, fql, rebrac, iql, dsrl;
or ifql, which has nothing to learn) learns a policy on the run's data from the run's critic, which
stays as it is, and from the same clone. So methods differ by their policies alone. One row per way
to act goes to the file of --results, which `flowmdp report` reads: as the method acts, and where
that draws from noise also the best of --best-of actions.

    python -m benchmarks.frozen_critic runs/ifql df-dir behavior_weight=0.01 --steps 5000
"""

from __future__ import annotations

import argparse
import ast
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import KVWriter, Logger

from flowmdp.agents import load_agent
from flowmdp.agents.evaluation import EvaluationResult, evaluate
from flowmdp.envs.robots.outer import make_robot
from flowmdp.files import put_line, read_json
from flowmdp.runs import cache
from flowmdp.runs.config import make_agent, make_config, make_data, make_env
from flowmdp.runs.folder import RunFolder
from flowmdp.runs.summary import episodes_of, outcome, summarize_evaluations
from flowmdp.runs.train import AFTER, DECIDING
from flowmdp.schemas import Result

SHARED = (
    *("batch_size", "net_arch", "precision", "gamma", "critic_members", "pessimism"),
    *("path", "behavior_learning_rate", "behavior_steps"),
)
"""Hyper-parameters that are the run's, as far as a method has them."""
FLOW = "noise_scale", "chunk"


class Last(KVWriter):
    """Keeps the last logged numbers, means since the evaluation before."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        """Take what has just been learned with."""
        train = {key: value for key, value in key_values.items() if key.startswith("train/")}
        self.values |= {key: float(value) for key, value in train.items()}


def parsed(text: str) -> Any:
    """The number that a text stands for, or the text."""
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def learned(
    run: dict[str, Any],
    critic: Any,
    name: str,
    steps: int,
    own: dict[str, Any],
    every: int,
    look: Callable[[int, Any], None],
    last: Last,
) -> Any:
    """The configuration, and the agent that has learned under the critic."""
    known = {part: run["config"][part] for part in SHARED if part in run["config"]}
    known |= {"net_arch": tuple(known["net_arch"]), "critic_steps": 0}
    known |= {part: run["flow"][part] for part in FLOW} | own
    where = {part: run[part] for part in ("task", "source", "seed")}
    where["dataset"] = run["dataset_id"]
    if name in ("iql", "rebrac"):  # without a clone
        known = {part: known[part] for part in known if part not in SHARED[-3:]}
    if name.startswith("df-"):
        known |= {"critic": "iql"}  # which asks for no more chains than the policy learns from
    config = make_config(name, steps=steps, device="cpu", **where, **known)
    with make_env(config, make_data(config)) as env:
        agent: Any = make_agent(config, env)
        cache.restore(agent)
        part = agent.critic_part
        part.finish = partial(agent.critic.load_state_dict, critic.state_dict())
        part.learn = lambda *_: {}
        agent.pretrain(progress_bar=True)
        agent.set_logger(Logger(None, [last]))
        if name == "rebrac":  # TD3's delay is for a critic that learns
            agent.phase = lambda: True
        for step in range(0, 0 if name == "ifql" else steps, every):
            more = min(every, steps - step)
            agent.learn(more, None, every, reset_num_timesteps=False, progress_bar=True)
            look(min(step + every, steps), agent)
    return config, agent


def main() -> None:
    """Learn once, play, append a row for each way to act."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("own", nargs="*", help="hyper-parameters, NAME=VALUE")
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--eval-every", type=int, help="steps; for a curve of ten episodes each")
    parser.add_argument("--best-of", type=int, nargs="+", default=[1])
    parser.add_argument("--results", type=Path, default=Path("results/frozen_critic.jsonl"))
    options = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(1)
    folder, run = RunFolder.open(options.run)
    source = read_json(folder.result, Result)
    own = {key: parsed(value) for key, value in (one.split("=", 1) for one in options.own)}
    critic = load_agent(folder.checkpoint, device="cpu").critic
    robot = partial(make_robot, run["task"], run["source"])

    def played_by(agent: Any, episodes: int, best_of: int = 1) -> EvaluationResult:
        policy = agent.outer_policy(**({"best_of": best_of} if best_of > 1 else {}))
        deterministic = agent.acts_at_mean and best_of == 1
        return evaluate(policy, robot, episodes, run["seed"] + AFTER, deterministic, progress=True)

    def look(step: int, agent: Any) -> None:
        if options.eval_every:
            episodes = episodes_of(run["task"], played_by(agent, 10))
            evaluations.append({"step": step, **episodes})

    evaluations: list[dict[str, Any]] = []
    last = Last()
    every = options.eval_every or options.steps
    config, agent = learned(run, critic, options.name, options.steps, own, every, look, last)
    for best_of in options.best_of:
        played = played_by(agent, options.episodes, best_of)
        more = [f"steps={options.steps}"] * (options.steps != parser.get_default("steps"))
        more += [f"best of {best_of}"] * (best_of > 1)
        label = " ".join([options.name, *options.own, *more])
        row = {
            "label": label,
            **{key: config.get(key) for key in DECIDING},
            **outcome(run["task"], played),
            **summarize_evaluations(run["task"], evaluations if best_of == 1 else []),
            **{key: source[key] for key in ("data", "behavior")},
            "log": last.values,
            "wall_seconds": time.perf_counter() - start,
            "command": shlex.join(["python", "-m", "benchmarks.frozen_critic", *sys.argv[1:]]),
        }
        put_line(options.results, row, itemgetter("task", "label", "seed"))
        print(f"{label}: {row.get('success_rate', row['mean_return'])}")


if __name__ == "__main__":
    main()
