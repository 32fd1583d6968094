"""How fast robots step while a policy learns on them: `python -m benchmarks.online`.

Prints, for 8 Hoppers in this process (Dummy) and in processes of their own (Subproc): steps of all
robots per second when their actions are given, when FlowPPO's policy draws them (256x3, chunks of 4
actions, 4 flow steps), the share of the two, and the rate with learning between the rollouts. The
three take turns, and the best turn of each counts: compare shares, not rates.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from flowmdp.agents import FlowPPO

TASK = "FlowMDP-hopper-medium-v0"
STEPS = 64


class Clock(BaseCallback):
    """When rollouts begin and end."""

    def _on_training_start(self) -> None:
        self.spent = 0.0

    def _on_rollout_start(self) -> None:
        self.start = time.perf_counter()

    def _on_rollout_end(self) -> None:
        self.spent += time.perf_counter() - self.start

    def _on_step(self) -> bool:
        return True


def bare(env: VecEnv, turns: int) -> float:
    """Robot steps per second under actions that were drawn before."""
    shape = turns * STEPS, env.num_envs, *(env.action_space.shape or ())
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, shape).astype(np.float32)
    env.reset()
    steps, start = 0, time.perf_counter()
    for action in actions:
        infos = env.step(action)[3]
        steps += sum(info.get("executed_steps", 1) for info in infos)
    return steps / (time.perf_counter() - start)


def learning(agent: FlowPPO, turns: int) -> tuple[float, float]:
    """Robot steps per second of rollouts alone, and with learning."""
    clock, before, start = Clock(), agent.robot_steps, time.perf_counter()
    agent.learn(turns * STEPS * agent.n_envs, callback=clock)
    steps, total = agent.robot_steps - before, time.perf_counter() - start
    return steps / clock.spent, steps / total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--robots", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=4)
    parser.add_argument("--turns", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds: dict[str, Any] = {"Dummy": DummyVecEnv, "Subproc": SubprocVecEnv}
    for name, kind in kinds.items():
        settings = {"decision": "action", "chunk": options.chunk}
        env = make_vec_env(TASK, options.robots, env_kwargs=settings, vec_env_cls=kind, seed=0)
        agent = FlowPPO("MlpPolicy", env, flow_steps=4, n_steps=STEPS, critic_warmup=0, seed=0)
        agent.learn(STEPS * options.robots)  # what is slow the first time
        found = [(bare(env, 1), *learning(agent, 1)) for _ in range(options.turns)]
        alone, acting, whole = map(max, zip(*found, strict=True))
        print(
            f"{name}: robots {alone:.0f}/s, with the policy {acting:.0f}/s "
            f"({acting / alone:.0%}), learning {whole:.0f}/s ({whole / alone:.0%})",
            flush=True,
        )
        env.close()


if __name__ == "__main__":
    main()
