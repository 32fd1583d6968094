"""What a run's critic knows of its own policy: `python -m benchmarks.critic_returns RUN...`.

Plays --episodes robots (50) at once from noise and compares Q, the mean of the members at the
actions taken, with the discounted return that followed, in the robot's rewards. States less than
--ahead steps (500) before a time limit are left out, as what follows them is cut off; --before is
how many steps before a fall are averaged by themselves (100).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from flowmdp.files import read_json
from flowmdp.runs.play import open_agent
from flowmdp.sb3 import RobotVecEnv, discounted


def play(agent: Any, run: dict[str, Any], episodes: int) -> list[list[tuple[Any, ...]]]:
    """Of every robot's first episode: (observation, action, reward, discount, info) of a chunk."""
    names = {"source": run["source"], "decision": "action", "chunk": agent.spec.chunk}
    make = partial(gym.make, f"flowmdp:FlowMDP-{run['task']}-v0", **names)
    robots = RobotVecEnv(make, episodes, run["seed"])
    width = agent.spec.observation_dim
    observations: Any = robots.reset()
    played: list[list[tuple[Any, ...]]] = [[] for _ in range(episodes)]
    playing = set(range(episodes))
    while playing:
        actions = agent.explore(observations[:, :width], None)
        following, rewards, dones, infos = robots.step(actions)
        for i in list(playing):
            paid = discounted(float(rewards[i]), infos[i], agent.config.gamma)
            played[i].append((observations[i, :width], actions[i], *paid, infos[i]))
            if dones[i]:
                playing.remove(i)
        observations = following
    robots.close()
    return played


@torch.no_grad()
def q_of(agent: Any, steps: list[tuple[Any, ...]]) -> NDArray[np.float64]:
    """Q in the robot's rewards, shape (steps,)."""
    observations, actions = (
        torch.as_tensor(np.stack([step[part] for step in steps]), dtype=torch.float32)
        for part in (0, 1)
    )
    states = agent.policy.normalizer(observations.to(agent.device))
    q = agent.critic.members(states, actions.flatten(1).to(agent.device))
    values: NDArray[np.float64] = (q.mean(0) / agent._reward_scale).double().cpu().numpy()
    return values


class Seen(NamedTuple):
    """What follows one chunk: its place, the discounted return, the robot steps that are left."""

    chunk: int
    discounted: float
    left: int


def what_follows(steps: list[tuple[Any, ...]], ahead: int) -> list[Seen]:
    """Of one episode: all chunks before a fall, or those `ahead` steps before a time limit."""
    found, follows, left = [], 0.0, 0
    for chunk, (*_, reward, discount, info) in reversed(list(enumerate(steps))):
        follows, left = reward + discount * follows, left + info.get("executed_steps", 1)
        found.append(Seen(chunk, follows, left))
    cut = steps[-1][-1]["TimeLimit.truncated"]
    return [seen for seen in found if seen.left >= ahead or not cut]


def main() -> None:
    """Play, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="of an agent with a critic")
    for name, value in (("episodes", 50), ("ahead", 500), ("before", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    for path in options.runs:
        agent: Any = open_agent(path, None, "auto")
        played = play(agent, read_json(path / "config.json"), options.episodes)
        q, g, near, length, fallen = [], [], [], 0, 0
        for steps in played:
            fell = not steps[-1][-1]["TimeLimit.truncated"]
            length += sum(step[-1].get("executed_steps", 1) for step in steps)
            fallen, values = fallen + fell, q_of(agent, steps)
            for seen in what_follows(steps, options.ahead):
                q.append(values[seen.chunk])
                g.append(seen.discounted)
                near.append(fell and seen.left <= options.before)
        found, returns, end = np.array(q), np.array(g), np.array(near, np.bool_)
        print(
            f"{path}: {fallen} of {len(played)} fell, mean length {length / len(played):.0f}; "
            f"discounted return {returns.mean():.1f}, Q {found.mean():.1f}, "
            f"correlation {np.corrcoef(found, returns)[0, 1]:.2f}; "
            f"before a fall {returns[end].mean():.1f}, Q {found[end].mean():.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
