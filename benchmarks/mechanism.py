"""Whether Decision Flow works as its paper says: `python -m benchmarks.mechanism RUN...`.

RUN is the folder of a finished `flowmdp train df-dir` or `df-div`. On states of the run's data, and
the same noise for both, chains of the policy and of the behaviour flow are compared at every flow
step k:

    gain        mean A(s, clip(x_k + (1 - t_k) u)), the advantage of the action that u leads to if
                it is kept: does it rise along the chain?
    alignment   mean cosine of the gradient of Q at that action with u_theta, with the change
                u_theta - u_v, and, as the control, with u_v
    residual    DF-div: mean |V(s, x_k, t_k) - G_k|, relative to the deviation of G_k; a value of
                the policy itself is constant along a chain but for the costs that were paid
    correlation DF-div: of V(s, x_k, t_k) and G_k over all chains, and between the chains of one
                state, which is all that a policy asks of V

For DF-div also flow policy iteration: from the behaviour, under the run's critic and a fixed rho,
G_0 on fixed states and noises after every round of evaluation and improvement.

Writes a line per RUN into results/recorded/mechanism.jsonl, prints a table and draws
docs/lab/mechanism.png:

    python -m benchmarks.mechanism        # draw only
"""

from __future__ import annotations

import argparse
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowmdp.agents import DFDiv, load_agent
from flowmdp.agents.core.critics import Critic
from flowmdp.agents.core.decision_flow import DecisionFlow, Rollout
from flowmdp.agents.core.networks import FlowCritic
from flowmdp.agents.df_div import FlowRows, flow_returns
from flowmdp.files import put_line, read_json, read_lines
from flowmdp.mdp.divergences import DIVERGENCES
from flowmdp.runs.config import make_data
from flowmdp.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STATES, NOISES = 2048, 8
RHOS, SEEDS = (0.3, 1.0), (0, 1, 2)
ITERATED_STATES = 512
FIRST_EVALUATIONS, ROUNDS, EVALUATIONS, IMPROVEMENTS = 100, 10, 30, 15
ITERATION: dict[str, Any] = {
    "budget": None,
    "batch_size": 64,
    "precision": "float32",
    "ema_rate": 0.05,  # the policy that is evaluated follows the one that is improved closely
}
RESULTS, FIGURE = Path("results/recorded/mechanism.jsonl"), Path("docs/lab/mechanism.png")


def endpoints(rollout: Rollout) -> Tensor:
    """Where the velocity of each step leads if it is kept, x_k + (1 - t_k) u_k, clipped.

    Returns:
        Shape (flow_steps, batch, action_dim); the last is the executed action.
    """
    flow_steps = len(rollout.velocities)
    remaining = 1 - torch.arange(flow_steps, device=rollout.points.device) / flow_steps
    return (rollout.points[:-1] + remaining[:, None, None] * rollout.velocities).clamp(-1, 1)


def cosines(first: Tensor, second: Tensor, least: float = 1e-6) -> Tensor:
    """Cosine of the angle between vectors of the last axis; NaN where one is shorter than `least`.

    Args:
        first: Shape (..., action_dim).
        second: Of the same shape.
        least: Length below which a vector has no direction.
    """
    short = torch.minimum(first.norm(dim=-1), second.norm(dim=-1)) < least
    return F.cosine_similarity(first, second, dim=-1).masked_fill(short, torch.nan)


def action_gradients(critic: Critic, observations: Tensor, actions: Tensor) -> Tensor:
    """grad_a A(s, a), the direction of grad_a Q, shape (batch, action_dim)."""
    actions = actions.detach().requires_grad_()
    total = critic.advantages(observations, actions).sum()
    (gradient,) = torch.autograd.grad(total, actions)
    return gradient


def falls(values: list[float], tolerance: float = 0.0) -> int:
    """How many values are lower than the one before by more than `tolerance`."""
    return int((np.diff(values) < -tolerance).sum())


def fields_at(field: nn.Module, rollout: Rollout) -> Tensor:
    """The velocities of `field` at the points of the chains, (flow_steps, batch, action_dim)."""
    flow_steps = len(rollout.velocities)
    with torch.no_grad():
        velocities = [
            field(rollout.contexts, point, k / flow_steps)
            for k, point in enumerate(rollout.points[:-1])
        ]
    return torch.stack(velocities)


def mean_of(values: Tensor) -> list[float]:
    """Means over the batch, one per flow step: (flow_steps, batch) -> (flow_steps,)."""
    return [round(value, 4) for value in values.nanmean(1).tolist()]


def along_chains(agent: DecisionFlow, rollout: Rollout) -> dict[str, Any]:
    """Gain and alignment of chains at each flow step, and their directions' controls."""
    observations, reached = rollout.observations, endpoints(rollout)
    gains, gradients = [], []
    for actions in reached:
        with torch.no_grad():
            gains.append(agent.critic.advantages(observations, actions))
        gradients.append(action_gradients(agent.critic, observations, actions))
    gain, gradient = torch.stack(gains), torch.stack(gradients)
    policy, behavior = (fields_at(f, rollout) for f in (agent.policy.ema, agent.behavior))
    shuffled = gradient.roll(1, dims=1)  # of another state: what chance gives
    return {
        "gain": mean_of(gain),
        "rises": mean_of((gain[1:] > gain[:-1]).float()),
        "cosine_policy": mean_of(cosines(policy, gradient)),
        "cosine_behavior": mean_of(cosines(behavior, gradient)),
        "cosine_change": mean_of(cosines(policy - behavior, gradient)),
        "cosine_change_shuffled": mean_of(cosines(policy - behavior, shuffled)),
        "change": mean_of((policy - behavior).square().sum(-1).sqrt()),
    }


@torch.no_grad()
def value_along_chains(agent: DFDiv, rollout: Rollout, noises: int = NOISES) -> dict[str, Any]:
    """DF-div's V(s, x_k, t_k) against the return G_k of the chains, at each flow step.

    `carried` is V less the costs paid so far; for a value of the policy itself it would be flat.
    `noises` chains that follow each other begin in the same state.
    """
    flow_steps, reference = len(rollout.velocities), fields_at(agent.behavior, rollout)
    divergence = DIVERGENCES[agent.config.divergence](rollout.velocities, reference)
    rho = agent.anchor.rho
    terminal = agent.critic.advantages(rollout.observations, rollout.actions)
    returns = flow_returns(divergence, terminal, rho)
    t = torch.arange(flow_steps, device=terminal.device) / flow_steps
    value = torch.stack(
        [
            agent.value(rollout.contexts, point, time.expand(len(terminal), 1))
            for point, time in zip(rollout.points[:-1], t, strict=True)
        ]
    )
    costs = rho / flow_steps * divergence
    paid = costs.cumsum(0) - costs
    error = value - returns
    return {
        "value": mean_of(value),
        "return": mean_of(returns),
        "carried": mean_of(value - paid),
        "drift": mean_of((value - paid - value[0]).abs() / returns.std(1)[0]),
        "residual": mean_of(error.abs() / returns.std(1, keepdim=True)),
        "bias": mean_of(error / returns.std(1, keepdim=True)),
        "std": round(returns[0].std().item(), 4),
        "std_within": round(less_mean(returns, noises)[0].std().item(), 4),
        "correlation": correlations(value, returns),
        "correlation_within": correlations(less_mean(value, noises), less_mean(returns, noises)),
    }


def less_mean(values: Tensor, noises: int) -> Tensor:
    """Each chain's value less the mean over its state's chains; shape (flow_steps, batch)."""
    by_state = values.reshape(len(values), -1, noises)
    return (by_state - by_state.mean(2, keepdim=True)).flatten(1)


def correlations(first: Tensor, second: Tensor) -> list[float]:
    """Over the batch, one per flow step: (flow_steps, batch) -> (flow_steps,)."""
    pairs = zip(first.cpu().numpy(), second.cpu().numpy(), strict=True)
    return [round(float(np.corrcoef(a, b)[0, 1]), 4) for a, b in pairs]


def iterate(path: Path, data: Any, rho: float, seed: int) -> dict[str, Any]:
    """G_0 of flow policy iteration from the behaviour, under the checkpoint's critic.

    Args:
        path: Checkpoint of a DF-div agent; policy, V and optimisers start afresh.
        data: Its transitions.
        rho: Weight of the divergence, fixed.
        seed: Of V's first weights, the batches and the noises.
    """
    agent: DFDiv = load_agent(path, dataset=data, device="cpu", seed=seed, **ITERATION)
    agent.generator.manual_seed(seed)
    torch.manual_seed(seed)
    widths = agent.spec.context_dim, agent.spec.action_dim
    value = FlowCritic(*widths, agent.config.net_arch, sees_velocity=False)
    agent.value.load_state_dict(value.state_dict())
    for field in (agent.policy.field, agent.policy.ema):
        field.load_state_dict(agent.behavior.state_dict())
    agent.anchor.log_rho.fill_(float(np.log(rho)))
    for descent in (agent.policy_optimizer, agent.value_optimizer):
        descent.adam.state.clear()
    iteration = FlowPolicyIteration(agent, states=ITERATED_STATES)
    values = [iteration.value()]
    iteration.evaluate(FIRST_EVALUATIONS)
    for _ in range(ROUNDS):
        iteration.evaluate(EVALUATIONS)
        iteration.improve(IMPROVEMENTS)
        values.append(iteration.value())
    values = [round(value, 4) for value in values]
    print(f"rho {rho} seed {seed}: G_0 {values[0]:.3f} -> {values[-1]:.3f}, {falls(values)} falls")
    return {"rho": rho, "seed": seed, "g_0": values, "falls": falls(values)}


class FlowPolicyIteration:
    """DF-div's two halves in turns, under a critic and a rho that stay as they are.

    Args:
        agent: Pre-trained; its policy and flow value are changed in place.
        states: Fixed states and noises on which `value` measures.
    """

    def __init__(self, agent: DFDiv, states: int = 1024) -> None:
        self.agent = agent
        batch = agent.data.sample(states, agent.generator)
        self._fixed = (*batch.flow_states, agent.starts_like(batch.actions))

    def evaluate(self, n: int) -> None:
        """Fit the flow value to the policy's returns, `n` steps."""
        for _ in range(n):
            self.agent.evaluate(self._rows())

    def improve(self, m: int) -> None:
        """Climb the flow value, `m` steps of the policy."""
        for _ in range(m):
            self.agent.improve(self._rows())

    def value(self) -> float:
        """Mean return G_0 of the flow MDP on the fixed states and noises."""
        rollout = self.agent.roll_out(self.agent.policy.ema, *self._fixed)
        return float(self.agent.score(rollout)[1]["g_0"])

    def _rows(self) -> FlowRows:
        batch = self.agent.sample()
        x_0 = self.agent.starts_like(batch.actions)
        rollout = self.agent.roll_out(self.agent.policy.ema, *batch.flow_states, x_0)
        return self.agent.score(rollout)[0]


def label_of(folder: str, dataset_id: str, seed: int) -> str:
    """The algorithm's label in a table: a run folder's name less its dataset and seed."""
    label = folder.removeprefix(dataset_id.replace("/", "-") + "_").removesuffix(f"seed{seed}")
    return label.rstrip("-_")


def examine(run: Path) -> dict[str, Any]:
    """All measurements of one run folder."""
    folder, config = RunFolder.open(run)
    data = make_data(config)
    exact = {"device": "cpu", "precision": "float32"}
    agent: DecisionFlow = load_agent(folder.checkpoint, dataset=data, **exact)
    batch = agent.data.sample(STATES, torch.Generator().manual_seed(0))
    x_0 = torch.randn(batch.actions.shape, generator=torch.Generator().manual_seed(1))
    x_0 = agent.spec.noise_scale * x_0
    states = batch.observations, batch.contexts
    policy = agent.roll_out(agent.policy.ema, *states, x_0)
    behavior = agent.roll_out(agent.behavior, *states, x_0)
    outcome = read_json(folder.result)
    found: dict[str, Any] = {name: config[name] for name in ("task", "algorithm", "seed", "steps")}
    found |= {name: outcome[name] for name in ("dataset_id", "command", "versions", "episodes")}
    found["label"] = label_of(run.name, config["dataset_id"], config["seed"])
    found["return"] = outcome["mean_return"]
    found["behavior_return"] = outcome["behavior"]["mean_return"]
    found |= {"states": STATES, "rho": round(agent.anchor.rho.item(), 4)}
    found["policy"] = along_chains(agent, policy)
    found["behavior"] = along_chains(agent, behavior)
    if isinstance(agent, DFDiv) and not agent.by_adjoint:
        observations, contexts = (
            state[: STATES // NOISES].repeat_interleave(NOISES, dim=0) for state in states
        )
        repeated = agent.roll_out(agent.policy.ema, observations, contexts, x_0)
        found["value"] = value_along_chains(agent, repeated)
        found["iteration"] = [
            iterate(folder.checkpoint, data, rho, seed) for rho in RHOS for seed in SEEDS
        ]
    return found


def draw(found: list[dict[str, Any]], out: Path) -> None:
    """Gains, alignment and flow policy iteration: one row per dataset, one colour per algorithm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    datasets = sorted({run["dataset_id"] for run in found})
    colors = {label: f"C{i}" for i, label in enumerate(sorted({run["label"] for run in found}))}
    figure = Figure((12, 3.4 * len(datasets)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(datasets), 3, squeeze=False)
    for (gains, alignment, iteration), dataset in zip(rows, datasets, strict=True):
        gains.set(title="advantage gained over the behaviour", xlabel="flow time")
        gains.set_ylabel(dataset, fontsize=11)
        alignment.set(title="cosine of the change with grad Q", xlabel="flow time", ylim=(-0.25, 1))
        iteration.set(title="flow policy iteration: gain of G_0", xlabel="round")
        for run in (run for run in found if run["dataset_id"] == dataset):
            draw_chains(gains, alignment, run, colors[run["label"]])
            draw_iteration(iteration, run, colors[run["label"]])
        gains.legend(fontsize=7, frameon=False)
        if iteration.lines:
            iteration.legend(fontsize=7, frameon=False)
    for axes in rows.flat:
        axes.axhline(0, color="#777777", lw=0.8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


def times(values: list[float]) -> list[float]:
    """Flow times of the steps 0, 1, ... of which there are values."""
    return [k / len(values) for k in range(len(values))]


def draw_chains(gains: Axes, alignment: Axes, run: dict[str, Any], color: str) -> None:
    """What the policy's chains gain over the behaviour's, and how they follow the gradient of Q."""
    policy, behavior = run["policy"], run["behavior"]
    gain = np.subtract(policy["gain"], behavior["gain"])
    gains.plot(times(policy["gain"]), gain, "-o", color=color, ms=3, label=run["label"])
    cosine, control = policy["cosine_change"], policy["cosine_change_shuffled"]
    alignment.plot(times(cosine), cosine, "-o", color=color, ms=3)
    alignment.plot(times(control), control, "--", color=color, lw=0.8)


def draw_iteration(axes: Axes, run: dict[str, Any], color: str) -> None:
    """How far G_0 has come after every round, a line per seed; the larger rho dotted."""
    for entry in run.get("iteration", []):
        label = f"{run['label']}, rho {entry['rho']:g}" if entry["seed"] == SEEDS[0] else None
        gain = np.array(entry["g_0"]) - entry["g_0"][0]
        style = "-" if entry["rho"] == RHOS[0] else ":"
        axes.plot(gain, style, color=color, lw=1, label=label)


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: what the figure shows, at three flow times, and flow policy iteration."""
    lines = ["| dataset | run | quantity | t = 0 | middle | last step |"]
    lines.append("|---|---|---|---|---|---|")
    for run in found:
        rows = {"A of the action ahead, policy": run["policy"]["gain"]}
        rows["the same, behaviour"] = run["behavior"]["gain"]
        for key, label in (
            ("cosine_change", "cosine of u_theta - u_v with grad Q"),
            ("cosine_change_shuffled", "the same, gradient of another state"),
            ("cosine_policy", "cosine of u_theta with grad Q"),
            ("cosine_behavior", "cosine of u_v with grad Q"),
            ("change", "length of u_theta - u_v"),
        ):
            rows[label] = run["policy"][key]
        if "value" in run:
            rows["V less costs paid"] = run["value"]["carried"]
            rows["mean abs(V - G) / std"] = run["value"]["residual"]
            rows["correlation of V and G"] = run["value"]["correlation"]
            rows["the same, chains of one state"] = run["value"]["correlation_within"]
        for label, values in rows.items():
            three = values[0], values[len(values) // 2], values[-1]
            cells = " | ".join(f"{value:.2f}" for value in three)
            lines.append(f"| {run['dataset_id']} | {run['label']} | {label} | {cells} |")
    lines += ["", "| dataset | run | rho | seed | G_0 before | after ten rounds | falls |"]
    lines.append("|---|---|---|---|---|---|---|")
    for run in found:
        for entry in run.get("iteration", []):
            cells = f"{entry['g_0'][0]:.3f} | {entry['g_0'][-1]:.3f} | {entry['falls']}"
            name = f"{run['dataset_id']} | {run['label']}"
            lines.append(f"| {name} | {entry['rho']:g} | {entry['seed']} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Examine the runs, then print and draw everything that is stored."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="folders that `flowmdp train` wrote")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    for run in options.runs:
        put_line(options.results, {"run": run.name, **examine(run)}, itemgetter("run"))
    stored = read_lines(options.results)
    print(table(stored))
    draw(stored, options.figure)


if __name__ == "__main__":
    main()
