"""How the agents treat several modes: `python -m benchmarks.modes`.

Every agent learns the bandit of `benchmarks.mode_problem`, whose contexts have 1, 2, 4 and 8 modes,
and two equally good ones among four, over three seeds, with the best of five settings on another
seed. All start from the same critic and the same behaviour flow, as far as they use one. Runs are
kept in results/recorded/modes.jsonl; what is there is not run again.

    python -m benchmarks.modes            # run what is missing, print the tables, draw the picture
    python -m benchmarks.modes --table    # print and draw from the stored runs alone
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.mode_problem import PROBLEMS, REACH, TURNS, ModeProblem, make_dataset, observe
from flowmdp.agents.core.acting import OuterPolicy
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.env import FlowMDPEnv
from flowmdp.files import read_lines, write_lines
from flowmdp.runs import cache
from flowmdp.runs.config import get_algorithm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEARCH_SEED, SEEDS = 0, (1, 2, 3)
DRAWN, DRAWN_SEED, DRAWN_SAMPLES = ModeProblem(8), 1, 250
TRANSITIONS, SAMPLES = 4_000, 1_000
"""Per problem, of the data and of a policy."""
FLOW_STEPS, STEPS = 10, 1_000
SHARED: dict[str, Any] = {
    "net_arch": (128, 128),
    "batch_size": 128,
    "learning_rate": 1e-3,
    "ema_rate": 0.02,
    "behavior_learning_rate": 2e-3,
    "behavior_steps": 12_000,
    "critic_learning_rate": 2e-3,
    "critic_steps": 6_000,
    "critic_members": 5,
    "pessimism": 2.0,
    "precision": "float32",
    "device": "cpu",
}
"""Ours, untuned, and the same for all, the critic of five networks included: what differs is how a
policy is drawn from it."""


class Method(NamedTuple):
    """An algorithm, what it is always given, and the five settings it is searched over.

    With `best_of` above 1, which only Decision Flow takes, it acts by the best of so many chains.
    """

    algorithm: str
    fixed: dict[str, Any]
    search: tuple[dict[str, Any], ...] = ()
    steps: int = STEPS
    best_of: int = 1


def grid(name: str, *values: float) -> tuple[dict[str, Any], ...]:
    """One argument at several values."""
    return tuple({name: value} for value in values)


FREE = {"budget": None}
DECADES = (0.0001, 0.001, 0.01, 0.1, 1.0)
HIGH = {"expectile": 0.9}
"""IFQL's paper's; RQL has the same."""
BEST_OF = {"critic_steps": SHARED["critic_steps"] + STEPS, **HIGH}
"""Of IFQL, where nothing else learns."""
METHODS = {
    "IQL": Method("iql", {}, grid("beta", 0.3, 1.0, 3.0, 10.0, 30.0)),
    "ReBRAC": Method("rebrac", {}, grid("actor_bc", *DECADES)),
    "FQL": Method("fql", {}, grid("alpha", 0.01, 0.1, 1.0, 10.0, 100.0)),
    "IFQL": Method("ifql", BEST_OF, grid("samples", 8, 32, 64, 128, 256), 0),
    "IFQL, N=4": Method("ifql", BEST_OF | {"samples": 4}, (), 0),
    "IFQL, N=32": Method("ifql", BEST_OF | {"samples": 32}, (), 0),
    "RQL": Method(
        "rql",
        {"value_steps": 300, **HIGH},
        grid("alpha", 0.0003, 0.003, 0.03, 0.3, 3.0),
        STEPS + 300,
    ),
    "DF-dir": Method("df-dir", FREE, grid("rho", *DECADES)),
    "DF-div": Method("df-div", FREE, grid("rho", *DECADES)),
    "DF-div, adjoint": Method(
        "df-div", {"flow_value": "adjoint"}, grid("rho", 0.01, 0.03, 0.1, 0.3, 1.0)
    ),
    "DF-dir, N=32": Method("df-dir", FREE, grid("rho", *DECADES), best_of=32),
    "DF-div, N=32": Method("df-div", FREE, grid("rho", *DECADES), best_of=32),
}
EXTRA = {"IFQL": "FlowBC", "IQL": "IQL, at the mean"}
"""What the trained agent shows beside itself: the flow it samples, the Gaussian without noise."""
COLUMNS = {
    "reward": "mean reward",
    "best": "in a best mode",
    "inside": "reward there",
    "off": "off every mode",
    "kept": "modes kept",
    "smaller": "rarer best mode",
}


def train(method: Method, setting: dict[str, Any], seed: int, parts: Path) -> FlowAlgorithm:
    """A trained agent; behaviour flow and critic come from the folder `parts` where they are."""
    cls = get_algorithm(method.algorithm)
    data = make_dataset(TRANSITIONS, seed)
    steps = cls.only_flow_steps or FLOW_STEPS
    env = FlowMDPEnv(states="dataset", reward="data", dataset=data, flow_steps=steps)
    shared = {name: v for name, v in SHARED.items() if name in cls.config_class.names()}
    agent = cls("MlpPolicy", env, seed=seed, **(shared | method.fixed | setting))
    cache.restore(agent, parts)
    agent.pretrain()
    cache.store(agent, parts)
    return agent.learn(method.steps, log_interval=0)


def look(policy: OuterPolicy, mean: bool, points: bool) -> dict[str, Any]:
    """Measures of a policy's samples by problem, and where asked some samples to draw."""
    found: dict[str, Any] = {"problems": {}}
    contexts = np.arange(SAMPLES) % TURNS
    for problem in PROBLEMS:
        actions, _ = policy.predict(observe(problem, contexts), deterministic=mean)
        measures = problem.measure(contexts, actions)
        found["problems"][problem.name] = {name: round(v, 4) for name, v in measures.items()}
        if points and problem == DRAWN:
            found["points"] = np.round(actions[contexts == 0][:DRAWN_SAMPLES], 3).tolist()
    return found


def run(name: str, setting: dict[str, Any], seed: int, parts: Path) -> list[dict[str, Any]]:
    """Train one agent; the row of its policy, and of what it shows beside itself."""
    start = time.process_time()
    agent = train(METHODS[name], setting, seed, parts)
    best_of = METHODS[name].best_of
    options = {"best_of": best_of} if best_of > 1 else {}
    policies = {name: (agent.outer_policy(**options), False)}
    if name in EXTRA:
        policies[EXTRA[name]] = (
            (agent.behavior_policy(), False) if name == "IFQL" else (agent.outer_policy(), True)
        )
    seconds = round(time.process_time() - start, 1)
    rows = [
        {"method": method, "seed": seed, "setting": setting, "seconds": seconds}
        | look(policy, mean, points=seed == DRAWN_SEED)
        for method, (policy, mean) in policies.items()
    ]
    print(
        f"{name:12} seed {seed} {setting!s:18} {mean_reward(rows[0]):6.3f}, {seconds} s", flush=True
    )
    return rows


def mean_reward(row: dict[str, Any]) -> float:
    """Over all problems; what the search goes by."""
    return float(np.mean([measures["reward"] for measures in row["problems"].values()]))


def read(path: Path) -> dict[str, Any]:
    """What is stored: the settings that all share, the search and the runs."""
    stored: dict[str, Any] = {"shared": {}, "search": [], "runs": []}
    for row in read_lines(path) if path.exists() else ():
        part = row.pop("part")
        if part == "shared":
            stored[part] = row
        else:
            stored[part].append(row)
    return stored


def write(path: Path, stored: dict[str, Any]) -> None:
    """Store it, a line per row."""
    rows = [("shared", stored["shared"])]
    rows += [(part, row) for part in ("search", "runs") for row in stored[part]]
    write_lines(path, [{"part": part, **row} for part, row in rows])


def run_missing(path: Path) -> dict[str, Any]:
    """Search and run what the file lacks; it is written after every agent."""
    stored = read(path)
    stored["shared"] = SHARED | {"steps": STEPS, "flow_steps": FLOW_STEPS, "n": TRANSITIONS}
    with tempfile.TemporaryDirectory() as folder:

        def add(part: str, name: str, setting: Any, seed: int) -> None:
            key = (name, setting, seed)
            if key not in [(row["method"], row["setting"], row["seed"]) for row in stored[part]]:
                stored[part] += run(name, setting, seed, Path(folder))
                write(path, stored)

        for name, method in METHODS.items():
            for setting in method.search:
                add("search", name, setting, SEARCH_SEED)
        for seed in SEEDS:
            for name, method in METHODS.items():
                add("runs", name, chosen(stored["search"], name) if method.search else {}, seed)
    return stored


def chosen(search: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The setting of the highest mean reward."""
    rows = [row for row in search if row["method"] == name]
    setting: dict[str, Any] = max(rows, key=mean_reward)["setting"]
    return setting


def to_show(stored: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs; while there are none, what the chosen settings gave in the search."""
    if stored["runs"]:
        runs: list[dict[str, Any]] = stored["runs"]
        return runs
    found = {row["method"] for row in stored["search"]}
    settings = {name: chosen(stored["search"], name) for name in METHODS if name in found}
    settings |= {extra: settings[name] for name, extra in EXTRA.items() if name in settings}
    return [row for row in stored["search"] if row["setting"] == settings.get(row["method"])]


def tables(stored: dict[str, Any]) -> str:
    """Markdown: the search, then one table per problem, means over seeds."""
    lines = ["| method | mean reward of the five settings | chosen |", "|---|---|---|"]
    for name, method in METHODS.items():
        rows = [row for row in stored["search"] if row["method"] == name]
        if method.search and rows:
            rewards = ", ".join(f"{words(row['setting'])}: {mean_reward(row):.2f}" for row in rows)
            lines.append(f"| {name} | {rewards} | {words(chosen(stored['search'], name))} |")
    runs = to_show(stored)
    for problem in PROBLEMS:
        columns = list(COLUMNS.values())[: None if problem.best > 1 else -1]
        lines += ["", f"| {problem.name} | " + " | ".join(columns) + " |"]
        lines.append("|---" * (1 + len(columns)) + "|")
        for name in ordered({row["method"] for row in runs}):
            rows = [row["problems"][problem.name] for row in runs if row["method"] == name]
            lines.append(f"| {name} | " + " | ".join(cells(rows)[: len(columns)]) + " |")
    return "\n".join(lines)


def cells(rows: list[dict[str, float]]) -> list[str]:
    """Means over seeds, in the order of COLUMNS; of the reward also every seed's."""
    mean = {key: np.mean([row[key] for row in rows]) for key in COLUMNS}
    each = ", ".join(f"{row['reward']:.2f}" for row in rows)
    texts = [f"{mean['reward']:.2f} ({each})", f"{mean['best']:.0%}", f"{mean['inside']:.2f}"]
    return [*texts, f"{mean['off']:.0%}", f"{mean['kept']:.1f}", f"{mean['smaller']:.0%}"]


def ordered(names: set[str]) -> list[str]:
    """The clone first, then as in METHODS, each followed by what it shows beside itself."""
    order = [shown for name in METHODS for shown in (name, EXTRA.get(name, name))]
    return [name for name in dict.fromkeys(["FlowBC", *order]) if name in names]


def words(setting: dict[str, Any]) -> str:
    """Such as "rho 0.1"."""
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


def draw(stored: dict[str, Any], out: Path) -> None:
    """Samples of every method in one context of the problem with most modes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {row["method"]: row for row in stored["runs"] if row.get("points")}
    names = [name for name in ordered(set(rows)) if ", N" not in name and ", at" not in name]
    figure = Figure((2.2 * len(names) / 2, 4.8), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, (len(names) + 1) // 2).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, name in zip(panels, names, strict=False):
        draw_samples(axes, name, rows[name])
    figure.savefig(out)


def draw_samples(axes: Axes, name: str, row: dict[str, Any]) -> None:
    """One panel: discs are the modes, green the best; crosses are where they pay most."""
    from matplotlib.patches import Circle

    for center, best in zip(DRAWN.centers[0], DRAWN.is_best, strict=True):
        color = "#3a8f5c" if best else "#bbbbbb"
        axes.add_patch(Circle(tuple(center), REACH, color=color, alpha=0.35, lw=0))
    axes.plot(*np.array(row["points"]).T, ".", ms=2, color="#1f6fb2")
    axes.plot(*DRAWN.optima[0].T, "x", ms=4, mew=0.8, color="#333333")
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    axes.set_title(f"{name}: {row['problems'][DRAWN.name]['reward']:.2f}", size=9)


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=Path("results/recorded/modes.jsonl"))
    parser.add_argument("--figure", type=Path, default=Path("docs/lab/modes.png"))
    options = parser.parse_args()
    stored = read(options.out) if options.table else run_missing(options.out)
    print(tables(stored))
    if any("points" in row for row in stored["runs"]):
        draw(stored, options.figure)


if __name__ == "__main__":
    main()
