"""What others' algorithms make of a cloned flow: `python -m benchmarks.foreign RUN NAME`.

RUN is a run of `flowmdp train flow-bc TASK --chunk 4 --flow-steps 4`. Stable-Baselines3's PPO, SAC
and TD3, sb3-contrib's TQC, and scripts in CleanRL's style that know an id alone choose the noise
that its flow starts from, whole chunks at once; `ppo-flow` corrects every flow step; `ppo-bare` and
`sac-bare` learn on the robot from nothing. One row per run goes to the file of --results, which
`flowmdp report` reads; CleanRL's scripts know no evaluation, so their returns are of training.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import TQC
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization
from tqdm import tqdm

from flowmdp.agents.evaluation import EvaluationResult
from flowmdp.envs.robots.outer import make_robot
from flowmdp.files import read_json
from flowmdp.runs.folder import RunFolder
from flowmdp.runs.summary import outcome, summarize_evaluations
from flowmdp.schemas import Result
from tests.mdp import cleanrl_ppo, cleanrl_sac

GAMMA = 0.99  # per chunk
EVALUATIONS, EPISODES = 10, 10
NETS = {"net_arch": [128] * 3, "activation_fn": torch.nn.Tanh}
OFF = {"gradient_steps": 4, "gamma": GAMMA, "policy_kwargs": NETS}


class Recipe(NamedTuple):
    """An algorithm, what it decides, and its settings."""

    algorithm: Any
    decides: str
    robots: int
    settings: dict[str, Any]


RECIPES: dict[str, Recipe] = {
    "ppo-noise": Recipe(
        *(PPO, "noise", 8),
        {
            **{"n_steps": 128, "batch_size": 256, "n_epochs": 10, "gamma": GAMMA},
            **{"policy_kwargs": {"log_std_init": -1.0}},
        },
    ),
    "sac-noise": Recipe(SAC, "noise", 1, {**OFF, "target_entropy": 0.0}),
    "tqc-noise": Recipe(TQC, "noise", 1, {**OFF, "target_entropy": 0.0}),
    "td3-noise": Recipe(TD3, "noise", 1, OFF),
    "ppo-flow": Recipe(
        *(PPO, "flow", 8),
        {
            **{"n_steps": 1_024, "batch_size": 256, "policy_kwargs": {"log_std_init": -2.0}},
            **{"gamma": GAMMA ** (1 / 4), "gae_lambda": 0.95 ** (1 / 4)},
        },
    ),
    "ppo-bare": Recipe(PPO, "bare", 8, {}),
    "sac-bare": Recipe(SAC, "bare", 1, {}),
}
CLEANRL: dict[str, tuple[Any, Any]] = {
    "cleanrl-ppo": (cleanrl_ppo, {"num_envs": 8, "gamma": GAMMA}),
    "cleanrl-sac": (cleanrl_sac, {"gradient_steps": 4, "target_entropy": 0.0, "gamma": GAMMA}),
}


class Judge(BaseCallback):
    """Counts the robots' steps, evaluates in their course, and ends at the goal."""

    def __init__(self, env: VecEnv, goal: int, bare: bool) -> None:
        super().__init__()
        self.judge, self.goal, self.bare = env, goal, bare
        self.done, self.bar = 0, tqdm(total=goal, desc="robot steps")
        self.evaluations: list[dict[str, Any]] = []

    def played(self, episodes: int = EPISODES) -> list[float]:
        """Returns of the robot under the actor's means."""
        sync_envs_normalization(self.training_env, self.judge)
        self.judge.seed(1_000)
        returns: Any = evaluate_policy(
            self.model, self.judge, episodes, return_episode_rewards=True, warn=False
        )[0]
        return [float(value) for value in returns]

    def _on_training_start(self) -> None:
        self._evaluate()

    def _on_step(self) -> bool:
        steps = sum(info.get("executed_steps", int(self.bare)) for info in self.locals["infos"])
        self.done += steps
        self.bar.update(steps)
        if self.done >= self.goal * len(self.evaluations) / EVALUATIONS:
            self._evaluate()
        return self.done < self.goal

    def _evaluate(self) -> None:
        self.evaluations.append({"step": self.done, "returns": self.played()})
        self.bar.set_postfix({"return": f"{np.mean(self.evaluations[-1]['returns']):.0f}"})


def maker(run: dict[str, Any], checkpoint: Path, decides: str) -> Callable[[], gym.Env[Any, Any]]:
    """Makes what is learned on: the noise of chunks, flow steps, or the bare robot."""
    if decides == "bare":
        return lambda: make_robot(run["task"], run["source"])
    flow = {name: run["flow"][name] for name in ("flow_steps", "chunk")}
    how: dict[str, dict[str, Any]] = {
        "noise": {"decision": "noise", "noise_bound": 1.5},
        "flow": {"action_mode": "residual"},
    }
    named = {**flow, **how[decides], "checkpoint": str(checkpoint)}
    return lambda: gym.make(f"flowmdp:FlowMDP-{run['task']}-v0", source=run["source"], **named)


def sb3(recipe: Recipe, make: Callable[[], gym.Env[Any, Any]], seed: int, goal: int) -> Any:
    """Train; evaluations, and returns of the last policy."""
    robots, judge = (
        VecNormalize(make_vec_env(make, n, seed), norm_obs=recipe.decides == "flow", **more)
        for n, more in ((recipe.robots, {"gamma": GAMMA}), (1, {"training": False}))
    )
    judge.norm_reward = False
    settings = dict(recipe.settings)
    if recipe.decides == "bare":
        robots.norm_reward = False  # as SB3's defaults
    if recipe.algorithm is not PPO:
        settings["buffer_size"] = goal
    if recipe.decides == "noise" and recipe.algorithm is not PPO:
        settings["learning_starts"] = goal // 28  # a seventh, in chunks of four
    if recipe.algorithm is TD3:
        size = robots.action_space.shape or ()
        settings["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, 0.3))
    keeper = Judge(judge, goal, recipe.decides == "bare")
    agent = recipe.algorithm("MlpPolicy", robots, seed=seed, device="cpu", **settings)
    agent.learn(100 * goal, callback=keeper)
    return keeper.evaluations, keeper.played(50)


def cleanrl(name: str, make: Callable[[], gym.Env[Any, Any]], seed: int, goal: int) -> Any:
    """Train by an id; means of tenths of the training's episodes, and the last 50."""
    script, settings = CLEANRL[name]
    gym.register("Steered-v0", lambda **_: make())
    chunks = {"total_timesteps": goal // 4}
    if script is cleanrl_sac:
        chunks |= {"buffer_size": goal // 4, "learning_starts": goal // 28}
    returns = script.main(script.Args("Steered-v0", seed, **chunks, **settings))
    parts = np.array_split(np.array(returns), EVALUATIONS)
    found = [
        {"step": goal * (n + 1) // EVALUATIONS, "returns": part.tolist()}
        for n, part in enumerate(parts)
    ]
    return found, returns[-50:]


def main() -> None:
    """Train once; print and append a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", choices=[*RECIPES, *CLEANRL])
    parser.add_argument("--robot-steps", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("results/foreign.jsonl"))
    options = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(1)
    folder, run = RunFolder.open(options.run)
    clone = read_json(folder.result, Result)
    recipe = RECIPES.get(options.name)
    make = maker(run, folder.checkpoint, recipe.decides if recipe else "noise")
    if recipe:
        evaluations, returns = sb3(recipe, make, options.seed, options.robot_steps)
    else:
        evaluations, returns = cleanrl(options.name, make, options.seed, options.robot_steps)
    row = {
        "label": options.name,
        **{name: clone[name] for name in ("task", "source", "dataset_id", "flow", "data")},
        **{"algorithm": options.name, "seed": options.seed, "steps": options.robot_steps},
        **outcome(run["task"], EvaluationResult(returns, [])),
        **summarize_evaluations(run["task"], evaluations),
        "behavior": {name: clone[name] for name in ("mean_return", "normalized_score")},
        "online": {"by": options.name, "robot_steps": options.robot_steps},
        "wall_seconds": time.perf_counter() - start,
        "command": shlex.join(["python", "-m", "benchmarks.foreign", *sys.argv[1:]]),
    }
    with options.results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{options.name}: {clone['mean_return']:.0f} to {row['mean_return']:.0f}", row["curve"])


if __name__ == "__main__":
    main()
