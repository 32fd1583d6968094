"""What fewer flow steps cost: `python -m benchmarks.few_steps RUN...`.

Plays the trained agent of every run folder with 1, 2, 3, 5, 10 and 20 Euler steps from noise to
action (trained with 10), with Heun's method at 1, 2 and 5, and distilled into one network: a
`DistilledField` that regresses to the agent's own map from (state, noise) to action, on the data's
states. Writes a line per run into results/recorded/few_steps.jsonl (--out) and prints the means.
"""

from __future__ import annotations

import argparse
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmdp.agents.core.acting import OuterPolicy
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.networks import Descent, frozen_copy
from flowmdp.agents.core.one_step import DistilledField, SampledField
from flowmdp.agents.evaluation import Policy, evaluate
from flowmdp.envs.robots.outer import make_outer
from flowmdp.files import put_line, read_json
from flowmdp.runs.config import make_data
from flowmdp.runs.play import open_agent
from flowmdp.runs.summary import summarize
from flowmdp.transitions import TransitionDataset

SOLVERS = [("euler", n) for n in (1, 2, 3, 5, 10, 20)] + [("heun", n) for n in (1, 2, 5)]
DISTILL_STEPS, DISTILL_RATE = 10_000, 1e-3
EVALUATION_SEED = 3_000_000


def distillation_loss(field: DistilledField, contexts: Tensor, x_0: Tensor, x_1: Tensor) -> Tensor:
    """Mean of ||field(s, x_0) - x_1||^2; contexts (batch, context_dim), x_0, x_1 (batch, dim)."""
    return (field.actions(contexts, x_0) - x_1).square().sum(-1).mean()


def distill(agent: FlowAlgorithm, data: TransitionDataset) -> tuple[DistilledField, float]:
    """One network for the agent's chains, and its root mean squared error on fresh noises."""
    spec = agent.spec
    torch.manual_seed(0)
    generator = torch.Generator(agent.device).manual_seed(0)
    teacher = SampledField(agent.policy.ema, spec.flow_steps)
    states = torch.as_tensor(data.observations, device=agent.device)
    field = DistilledField(spec.context_dim, spec.action_dim, agent.config.net_arch).to(
        agent.device
    )
    average = frozen_copy(field)
    descent = Descent(field, DISTILL_RATE, 1.0, average)

    def sample(n: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.randint(len(states), (n,), generator=generator, device=agent.device)
        contexts = agent.policy.normalizer(states[rows])
        x_0 = torch.randn((n, spec.action_dim), generator=generator, device=agent.device)
        x_0 = spec.noise_scale * x_0
        with torch.no_grad(), agent.autocast():
            return contexts, x_0, teacher.actions(contexts, x_0)

    for _ in range(DISTILL_STEPS):
        batch = sample(256)
        with agent.autocast():
            loss = distillation_loss(field, *batch)
        descent.step(loss)
    with torch.no_grad():
        error = distillation_loss(average, *sample(4096)).sqrt().item()
    return average, error


def measure(run: Path, episodes: int) -> dict[str, Any]:
    """Returns of one run's agent in every way of acting."""
    config = read_json(run / "config.json")
    agent = open_agent(run, None, "auto")
    play = partial(make_outer, config["task"], config["source"])

    def outcome(policy: Policy) -> dict[str, Any]:
        returns = evaluate(policy, play, episodes, EVALUATION_SEED).returns
        return {"returns": returns, **summarize(config["task"], returns)}

    ways = {
        f"{solver} {n}": outcome(agent.outer_policy(n_steps=n, solver=solver))
        for solver, n in SOLVERS
    }
    field, error = distill(agent, make_data(config))
    ways["distilled"] = outcome(OuterPolicy(agent, field, n_steps=1))
    names = ("task", "dataset_id", "algorithm", "seed", "steps")
    return {**{name: config[name] for name in names}, "distillation_rmse": error, "ways": ways}


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders that `flowmdp train` made")
    parser.add_argument("--out", type=Path, default=Path("results/recorded/few_steps.jsonl"))
    parser.add_argument("--episodes", type=int, default=20)
    options = parser.parse_args()
    for run in options.runs:
        result = measure(run, options.episodes)
        put_line(options.out, {"run": run.name, **result}, itemgetter("run"))
        cells = [f"{name} {way['mean_return']:.0f}" for name, way in result["ways"].items()]
        print(f"{run.name}: {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
