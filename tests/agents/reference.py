"""What every algorithm computes: run it in a process of its own, it prints JSON.

float32, one thread, fixed seeds, synthetic data. The process is told to use instructions that
every x86-64 processor has, so that the numbers are those of the installed torch up to the last
bits.

    python -m tests.agents.reference > tests/agents/reference.json      # to move them knowingly
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
"""Environment variables that make results almost independent of the processor."""

UPDATES, EVERY = 100, 25
OBS_DIM, ACTION_DIM, STEPS, EPISODE = 3, 2, 600, 25

CASES: dict[str, dict[str, Any]] = {
    "flow-bc": {},
    "df-dir": {},
    "df-dir advantage": {"objective": "advantage"},
    "df-dir direction": {"objective": "direction", "critic": "iql", "critic_noise": 0.1},
    "df-dir curved": {"path": "trigonometric", "budget": 0.1},
    "df-div": {},
    "df-div iql": {"critic": "iql", "rho": 1.0, "divergence": "cosine"},
    "df-div adjoint": {"flow_value": "adjoint"},
    "df-div previous": {"pessimism": None, "smoothing": 0.0},
    "iql": {},
    "rebrac": {},
    "rebrac paper": {"critic_members": 2, "pessimism": None},
    "fql": {},
    "fql paper": {"critic_members": 2, "pessimism": 0.0, "smoothing": 0.0},
    "ifql": {"samples": 4},
    "rql": {"value_steps": 50},
    "rql paper": {"value_steps": 50, "critic_members": 10, "pessimism": 0.5},
    "dsrl": {},
    "qc": {"samples": 4},
    "qc paper": {"samples": 4, "critic_members": 2, "pessimism": 0.0, "smoothing": 0.0},
}
"""Name of the algorithm, and what distinguishes the case -> hyper-parameters."""


def dataset() -> Any:
    """Episodes of random numbers, every second one terminated."""
    import numpy as np

    from flowmdp.transitions import TransitionDataset

    rng = np.random.default_rng(0)
    observations = rng.standard_normal((STEPS, OBS_DIM), np.float32)
    actions = np.tanh(rng.standard_normal((STEPS, ACTION_DIM), np.float32))
    step = np.arange(STEPS) % EPISODE
    starts, last = step == 0, step == EPISODE - 1
    terminated = last & (np.arange(STEPS) // EPISODE % 2 == 0)
    previous = np.roll(actions, 1, axis=0)
    previous[starts] = 0
    return TransitionDataset(
        id="synthetic",
        observations=observations,
        actions=actions,
        rewards=rng.standard_normal(STEPS).astype(np.float32) - np.square(actions).sum(1),
        next_observations=np.roll(observations, -1, axis=0),
        terminations=terminated,
        truncations=last & ~terminated,
        previous_actions=previous,
        starts=starts,
    )


def measure(case: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Behaviour and critic after pre-training; actions, critic and log after the updates."""
    import numpy as np
    import torch
    from stable_baselines3.common.logger import KVWriter, Logger

    from flowmdp.agents import ALGORITHMS
    from flowmdp.agents.core.algorithm import FlowAlgorithm
    from flowmdp.env import FlowMDPEnv

    cls: Any = ALGORITHMS[case.split()[0]]
    env = FlowMDPEnv(
        states="dataset",
        reward="data",
        dataset=dataset(),
        flow_steps=cls.only_flow_steps or 4,
        include_previous_action=case.endswith("previous"),
        **cls.environment_of(cls.config_class.of(changes)),
    )
    log: dict[str, list[float]] = {}

    class Keep(KVWriter):
        def write(self, key_values: Any, key_excluded: Any, step: int = 0) -> None:
            for key, value in key_values.items():
                if not key.startswith("time/"):
                    log.setdefault(key, []).append(float(value))

        def close(self) -> None:
            pass

    names = cls.config_class.names()
    budget = {name: 60 for name in ("behavior_steps", "critic_steps") if name in names}
    agent = cls(
        "MlpPolicy",
        env,
        batch_size=32,
        net_arch=(24, 24),
        precision="float32",
        seed=3,
        device="cpu",
        **budget,
        **changes,
    )
    agent.set_logger(Logger(None, [Keep()]))
    rng = np.random.default_rng(1)
    states = rng.standard_normal((3, OBS_DIM), np.float32)
    noise = rng.standard_normal((3, ACTION_DIM), np.float32)

    def look() -> dict[str, Any]:
        found = {"act": agent.act(states, noise=noise).tolist()}
        if hasattr(agent, "critic"):
            q = agent.critic.values(
                agent.policy.normalizer(torch.tensor(states)), torch.tensor(noise)
            )
            found["critic"] = q.tolist()
        if cls.behavior_field is not FlowAlgorithm.behavior_field:
            behavior = agent.behavior_policy().predict(states, deterministic=True)[0]
            found["behavior"] = behavior.tolist()
        return found

    agent.pretrain()
    before = look()
    agent.learn(UPDATES, log_interval=EVERY)
    return {"pretrained": before, "learned": look(), "log": log}


def main() -> None:
    """Measure all cases and print them."""
    import torch

    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(CASES)
    found = {case: measure(case, CASES[case]) for case in chosen}
    json.dump({"torch": torch.__version__, "cases": found}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in PORTABLE.items()):
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.agents.reference", *sys.argv[1:]],
            os.environ | PORTABLE,
        )
    main()
