"""How long the behaviour should be cloned: `python -m benchmarks.clone_fit TASK [--dataset ID]`.

Trains FlowBC on nine tenths of a dataset's episodes, once per learning rate, and prints the
flow-matching loss of its moving average on the tenth it has not seen, per number of gradient steps.
No robot is played, so the answer can be used without a look at any return.
"""

from __future__ import annotations

import argparse
import dataclasses

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

import flowmdp  # noqa: F401  (registers the environments)
from flowmdp.agents import FlowBC
from flowmdp.agents.core.batch import DeviceDataset
from flowmdp.agents.core.flow_matching import FlowNoise, flow_matching_loss
from flowmdp.envs.data import load_dataset
from flowmdp.transitions import TransitionDataset

ROWS = 50_000  # held-out losses are means over this many draws of a transition, x_0 and t


def split(dataset: TransitionDataset, seed: int) -> tuple[TransitionDataset, TransitionDataset]:
    """Nine tenths of the episodes, drawn at random, and the other tenth."""
    episode = np.cumsum(dataset.starts) - 1
    order = np.random.default_rng(seed).permutation(episode[-1] + 1)
    held_out = np.isin(episode, order[: max(1, len(order) // 10)])

    def take(rows: NDArray[np.bool_]) -> TransitionDataset:
        arrays = [field.name for field in dataclasses.fields(dataset) if field.name != "id"]
        return dataclasses.replace(
            dataset, **{name: getattr(dataset, name)[rows] for name in arrays}
        )

    return take(~held_out), take(held_out)


@torch.no_grad()
def loss_on(agent: FlowBC, dataset: TransitionDataset) -> float:
    """Flow-matching loss of the moving average, the same draws at every call."""
    data = DeviceDataset(dataset, agent.spec, agent.policy.normalizer, None, agent.device)
    generator = torch.Generator(agent.device).manual_seed(0)
    batch = data.sample(ROWS, generator)
    noise = FlowNoise.draw(batch.actions, generator)
    return flow_matching_loss(agent.policy.ema, batch, noise)[0].item()


def main() -> None:
    """Train, measure and print a row per learning rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", help="see `flowmdp tasks`")
    parser.add_argument("--dataset", help="Minari id; the task's own when not given")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument("--steps", type=int, nargs="+", default=[7_500, 15_000, 30_000, 60_000])
    parser.add_argument("--seed", type=int, default=0, help="of split, network and batches")
    options = parser.parse_args()
    train, held_out = split(load_dataset(options.task, dataset_id=options.dataset), options.seed)
    env = gym.make(f"FlowMDP-{options.task}-v0")
    rows = [
        f"| {train.id} | " + " | ".join(f"{steps:,}" for steps in options.steps) + " |",
        "|---|" + "---:|" * len(options.steps),
    ]
    for rate in options.rates:
        agent = FlowBC(
            "MlpPolicy", env, learning_rate=rate, dataset=train, seed=options.seed, verbose=0
        )
        losses = []
        for steps in options.steps:
            agent.learn(steps - agent.num_timesteps, reset_num_timesteps=False, progress_bar=True)
            losses.append(loss_on(agent, held_out))
        rows.append(f"| {rate:g} | " + " | ".join(f"{loss:.4f}" for loss in losses) + " |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
