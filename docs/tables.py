"""Every table of numbers in README.md and docs/, from the stored results: `python docs/tables.py`.

Rewrites what stands between `<!-- table: NAME -->` and `<!-- end table -->`; `--check` changes
nothing, and exits with 1 and the names of the blocks that are stale. A new table is a function
below, with its name in front.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowmdp.compare.bootstrap import (
    Estimate,
    difference,
    difference_over_seeds,
    interquartile_mean,
    mean,
    over_seeds,
)
from flowmdp.compare.report import (
    Comparison,
    aggregate_table,
    difference_table,
    interval,
    markdown,
    spread,
)
from flowmdp.compare.results import Grouped, Result, as_acting, group, load_results

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^( *)<!-- table: (\S+) -->\n.*?<!-- end table -->", re.DOTALL | re.MULTILINE)
TABLES: dict[str, Callable[[], str]] = {}

DATASETS = {
    "flowmdp/hopper/medium-v0": ("hopper-medium", "SAC early in its training"),
    "zoo/hopper/medium-v0": ("zoo hopper-medium", "RL Zoo's SAC"),
    "flowmdp/hopper/medium-replay-v0": (
        "hopper-medium-replay",
        "six snapshots of SAC up to medium",
    ),
    "zoo/hopper/mixed-v0": ("zoo hopper-mixed", "RL Zoo's A2C, SAC, PPO, TRPO and TQC in turns"),
    "flowmdp/walker2d/medium-v0": ("walker2d-medium", "PPO from the middle of its training"),
    "zoo/walker2d/medium-v0": ("zoo walker2d-medium", "RL Zoo's TRPO"),
    "flowmdp/walker2d/medium-replay-v0": (
        "walker2d-medium-replay",
        "five snapshots of PPO up to medium",
    ),
    "zoo/walker2d/mixed-v0": ("zoo walker2d-mixed", "RL Zoo's A2C, TRPO, SAC and TQC in turns"),
    "flowmdp/halfcheetah/medium-v0": ("halfcheetah-medium", "PPO early in its training"),
    "flowmdp/pointmaze/umaze-v0": ("pointmaze-umaze", "a planner with noise"),
    "flowmdp/pointmaze/medium-v0": ("pointmaze-medium", "a planner with noise"),
    "dapg/pen/expert-v0": ("dapg pen-expert", "DAPG's expert, a hand of 24 joints"),
    "dapg/door/expert-v0": ("dapg door-expert", "DAPG's expert, 28 joints"),
    "dapg/door/human-v0": ("dapg door-human", "25 demonstrations by people"),
}
"""Dataset -> its name in the pages, and what it was recorded from; in the pages' order."""
NAMES = {
    **{"df-dir": "DF-dir", "df-div": "DF-div", "rebrac": "ReBRAC", "rql": "RQL", "fql": "FQL"},
    **{"iql": "IQL", "ifql": "IFQL", "flow-bc": "FlowBC"},
}
"""Label -> algorithm, in the order of the pages' columns."""
HOPPER, WALKER = "flowmdp/hopper/medium-v0", "zoo/walker2d/medium-v0"
REPLAY, MIXED = "flowmdp/hopper/medium-replay-v0", "zoo/walker2d/mixed-v0"
SEARCHED = {
    "df-dir weight=0.0125": "0.0125",
    "rebrac actor_bc=0.3": "0.3",
    "rql alpha=0.01": "0.01",
}


def table(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register the function that makes the table of that name."""

    def register(function: Callable[[], str]) -> Callable[[], str]:
        TABLES[name] = functools.cache(function)
        return function

    return register


@functools.cache
def grouped(*names: str, acting: str = "published") -> Grouped:
    """The results of tables by dataset and label, as played that way."""
    found = load_results(*(ROOT / "results" / f"{name}.jsonl" for name in names))
    return group([way for one in found for way in as_acting(one, acting)])


def runs(*names: str, acting: str = "published") -> dict[str, dict[str, list[Result]]]:
    """Dataset id -> label -> results in the order of their seeds."""
    found = grouped(*names, acting=acting)
    return {dataset.dataset_id: labels for dataset, labels in found.items()}


@functools.cache
def recorded(name: str) -> list[Any]:
    """The rows of results/recorded/NAME.jsonl."""
    lines = (ROOT / "results" / "recorded" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in lines.splitlines()]


def comparison(labels: Iterable[str], *names: str, acting: str = "published") -> Comparison:
    """Of labels, over the datasets that all of them have."""
    return Comparison.of(grouped(*names, acting=acting), list(labels), share=0)


def first(text: str) -> str:
    """A table without the notes under it."""
    return text.split("\n\n")[0]


def make(columns: Sequence[str], rows: Iterable[Sequence[str]], text: int) -> str:
    """A Markdown table whose first `text` columns are text."""
    return markdown(columns, rows, text).rstrip().replace("|  |", "| |").replace("|  |", "| |")


def lead_of(
    label: str, other: str, found: Comparison, turned: bool = False
) -> tuple[str, str, str]:
    """Lead over another label and its two intervals, or its negative; empty for itself."""
    if label == other:
        return "", "", ""
    pair = found.scores[label], found.scores[other]
    here, elsewhere = difference_over_seeds(*pair), difference(*pair)
    if turned:
        here, elsewhere = (Estimate(-v, -high, -low) for v, low, high in (here, elsewhere))
    return *interval(here, sign="+"), interval(elsewhere, sign="+")[1]


def returns(results: Sequence[Result]) -> list[float]:
    """Mean return of every seed."""
    return [result["mean_return"] for result in results]


def clones(results: Sequence[Result], way: str = "sampled") -> list[Result]:
    """How the behaviour flows of runs play."""
    return [result["behavior"][way] for result in results]


def each(values: Iterable[float]) -> str:
    """Whole numbers in a row."""
    return ", ".join(f"{value:.0f}" for value in values)


def score(results: Iterable[Sequence[Result]]) -> float:
    """Mean over datasets of the mean score over seeds."""
    return float(
        np.mean([np.mean([one["normalized_score"] for one in seeds]) for seeds in results])
    )


def big(columns: dict[str, Callable[[dict[str, list[Result]]], list[Result]]], *names: str) -> str:
    """Datasets x columns of returns over seeds, and the mean score below."""
    by_dataset = runs(*names)
    rows = []
    for dataset, (name, _) in DATASETS.items():
        labels = by_dataset[dataset]
        data = next(iter(labels.values()))[0]["data"]["mean_return"]
        rows.append(
            (name, f"{data:.0f}", *(spread(returns(one(labels))) for one in columns.values()))
        )
    means = [score(one(by_dataset[dataset]) for dataset in DATASETS) for one in columns.values()]
    rows.append(("**mean score**", "", *(f"**{value:.1f}**" for value in means)))
    return make(("", "data", *columns), rows, text=1)


def of(label: str, way: str | None = None) -> Callable[[dict[str, list[Result]]], list[Result]]:
    """A column of `big`: the runs of a label, or how they play another way."""
    return lambda labels: [run if way is None else run[way] for run in labels[label]]


MAIN = {
    "clone": lambda labels: clones(labels["df-dir"]),
    **{name: of(label) for label, name in NAMES.items()},
}


@table("main")
def main_table() -> str:
    """Fourteen datasets x clone and eight algorithms, as trained."""
    return big(MAIN, "main")


@table("noiseless")
def noiseless() -> str:
    """The same from x_0 = 0."""
    return big({name: of(label, "noiseless") for label, name in NAMES.items()}, "main")


@table("top")
def top() -> str:
    """The README's: the five best, and DF-dir's lead."""
    sampled, still = (comparison(NAMES, "main", acting=way) for way in ("published", "noiseless"))
    rows = []
    for label in list(sampled.estimates(mean))[:5]:
        lead, _, elsewhere = lead_of(label, "df-dir", sampled, turned=True)
        quiet = f"{float(mean(still.scores[label])):.1f}"
        own = interval(over_seeds(sampled.scores[label], mean))
        rows.append((NAMES[label], *own, quiet, lead, elsewhere))
    columns = "mean score", "95 % (seeds)", "from x_0 = 0", "DF-dir minus it"
    return make(("", *columns, "95 %, other datasets"), rows, text=1)


@table("scores")
def scores() -> str:
    """Mean and interquartile mean of all."""
    return first(aggregate_table(comparison(NAMES, "main")))


@table("noiseless-scores")
def noiseless_scores() -> str:
    """The same from x_0 = 0."""
    return first(aggregate_table(comparison(NAMES, "main", acting="noiseless")))


@table("differences")
def differences() -> str:
    """All others minus DF-dir."""
    return first(difference_table(comparison(NAMES, "main"), "df-dir"))


@table("differences-iql")
def differences_iql() -> str:
    """All others minus IQL."""
    return first(difference_table(comparison(NAMES, "main"), "iql"))


@table("datasets")
def datasets() -> str:
    """What the algorithms learn from."""
    rows = []
    for dataset, (name, origin) in DATASETS.items():
        data = runs("main")[dataset]["df-dir"][0]["data"]
        rows.append(
            (name, f"`{dataset}`", origin, f"{data['episodes']}", f"{data['mean_return']:.0f}")
        )
    return make(("", "dataset", "recorded from", "episodes", "return"), rows, text=3)


def by_seed(dataset: str) -> str:
    """Every seed of one dataset, with those that were added."""
    labels = runs("main", "more_seeds")[dataset]
    order = "df-dir", "df-div", "rebrac", "iql"
    rows = {"clone": returns(clones(labels["df-dir"]))}
    rows |= {NAMES[label]: returns(labels[label]) for label in order}
    seeds = [str(run["seed"]) for run in labels["df-dir"]]
    cells = [
        (name, *(f"{value:.0f}" for value in values), spread(values))
        for name, values in rows.items()
    ]
    return make((DATASETS[dataset][0], *seeds, "mean"), cells, text=1)


TABLES["more-seeds-walker"] = functools.partial(by_seed, MIXED)
TABLES["more-seeds-hopper"] = functools.partial(by_seed, REPLAY)


@table("more-seeds")
def more_seeds() -> str:
    """Mean scores with the added seeds."""
    order = "df-dir", "df-div", "rebrac", "iql"
    found = comparison(order, "main", "more_seeds")
    rows = [
        (
            NAMES[label],
            *interval(over_seeds(found.scores[label], mean)),
            *lead_of(label, "rebrac", found),
        )
        for label in order
    ]
    columns = "mean", "95 %", "minus ReBRAC", "95 %, other seeds", "95 %, other datasets"
    return make(("", *columns), rows, text=1)


@table("search")
def search() -> str:
    """The last search: default and winner, with the mean of the scores with and without noise."""
    rows = []
    for row in noted("search"):
        winner = f"**{row['winner']}**" if row["winner"] else "the default"
        found = ", ".join(f"{value:.1f}" for value in row["scores"])
        rows.append((row["label"], row["default"], winner, found))
    return make(("", "default", "winner", "mean of both scores, seed 4"), rows, text=4)


def pairs() -> list[tuple[str, str]]:
    """The searched settings, each after its default."""
    return [
        pair for label in SEARCHED for pair in ((label.split()[0], ""), (label, SEARCHED[label]))
    ]


@table("second-settings-seeds")
def second_settings_seeds() -> str:
    """Every seed of the searched settings, beside the defaults."""
    found = runs("main", "second_settings")
    labels = [label for label, _ in pairs()]
    rows = [
        (name, *(each(returns(found[dataset][label])) for label in labels))
        for dataset, (name, _) in DATASETS.items()
    ]

    def by_seed(acting: str, label: str) -> list[float]:
        chosen = [runs("main", "second_settings", acting=acting)[one][label] for one in DATASETS]
        return [score([seeds[n]] for seeds in chosen) for n in range(3)]

    def cell(acting: str, label: str, bold: str) -> str:
        values = by_seed(acting, label)
        if acting == "noiseless" and values == by_seed("published", label):
            return ""  # deterministic
        return f"{', '.join(f'{value:.1f}' for value in values)}: {bold}{np.mean(values):.1f}{bold}"

    rows.append(("**mean score**", *(cell("published", label, "**") for label in labels)))
    rows.append(("without noise", *(cell("noiseless", label, "") for label in labels)))
    defaults = {"df-dir": "DF-dir, 0.025", "rebrac": "ReBRAC, 0.1", "rql": "RQL, 0.03"}
    columns = [defaults.get(label, setting) for label, setting in pairs()]
    return make(("seeds 1, 2, 3, as trained", *columns), rows, text=7)


@table("second-settings-differences")
def second_settings_differences() -> str:
    """The searched settings minus the defaults."""
    labels = [label for label, _ in pairs()]
    found = comparison(labels, "main", "second_settings")
    rows = []
    for label in SEARCHED:
        default = label.split()[0]
        new, old = (np.mean(found.scores[one], axis=0) for one in (label, default))
        gain = new - old
        spans = difference(found.scores[label], found.scores[default])
        numbers = (*gain, gain[1:].mean(), gain.mean())
        rows.append((NAMES[default], *(f"{n:+.1f}" for n in numbers), interval(spans, sign="+")[1]))
    columns = "seed 1", "seed 2", "seed 3", "the test, 2 and 3", "all three", "95 %, other datasets"
    return make(("", *columns), rows, text=1)


@table("second-settings")
def second_settings() -> str:
    """The table that the rule of the search alone would have made."""
    labels = [*SEARCHED, "df-div", "iql", "ifql", "fql", "flow-bc"]
    found = comparison(labels, "main", "second_settings")
    middles = found.estimates(interquartile_mean)
    rows = []
    for label, estimate in found.estimates(mean).items():
        setting = f", {SEARCHED[label]}" if label in SEARCHED else ""
        name = NAMES[label.split()[0]] + setting
        cells = *interval(estimate), *interval(middles[label]), *lead_of(label, "iql", found)
        rows.append((name, *cells))
    columns = (
        "mean",
        "95 %",
        "IQM",
        "95 %",
        "minus IQL",
        "95 %, other seeds",
        "95 %, other datasets",
    )
    return make(("", *columns), rows, text=1)


@table("large")
def large() -> str:
    """512x4 networks and 200,000 updates."""
    label = {name: label for label, name in NAMES.items()}
    main, larger = runs("main")[REPLAY], runs("large")[REPLAY]
    steps = {"ReBRAC": " (30,000 updates)", "IQL": " (30,000)"}
    rows = []
    for row in noted("large"):
        name = row["label"]
        values = [one["mean_return"] for one in row["evaluations"]]
        curve = "; ".join(filter(None, (each(values[:5]), each(values[5:]))))
        there = larger.get(f"{label[name]} large")
        small = spread(returns(main[label[name]])) + steps.get(name, "")
        rows.append((name, small, spread(returns(there)) if there else "", curve))
    at = "20,000, 40,000, 60,000, 80,000, 100,000 and at the end"
    columns = "256x3, as above", "512x4, 200,000", f"evaluations of five episodes after {at}"
    return make(("", *columns), rows, text=4)


def ablation_row(group: str, name: str, results: Sequence[Result]) -> tuple[str, ...]:
    """As trained, every seed, without noise."""
    still = [result["noiseless"] for result in results]
    shown = returns(results)
    return group, name, spread(shown), each(shown), spread(returns(still))


def ablation_table(rows: Iterable[tuple[str, ...]]) -> str:
    """Markdown of `ablation_row`s."""
    columns = "as trained", "seeds 1, 2, 3", "without noise"
    return make(("", "", *columns), rows, text=2).replace("&#124;", "\\|")


def behaviors(results: Sequence[Result]) -> list[Result]:
    """The clones of runs as results of their own."""
    return [result["behavior"] for result in results]


@table("ablations-paper")
def ablations_paper() -> str:
    """The paper's setting beside ours."""
    rows = []
    for dataset in (HOPPER, WALKER):
        labels = runs("main", "ablations")[dataset]
        shown = {
            "clone, noise of 0.3": behaviors(labels["df-dir"]),
            "clone, noise of 1": behaviors(labels["df-dir paper"]),
            "DF-dir": labels["df-dir"],
            "DF-div": labels["df-div"],
            "DF-dir, `--paper`": labels["df-dir paper"],
            "DF-div, `--paper`": labels["df-div paper"],
        }
        names = (DATASETS[dataset][0], *[""] * len(shown))
        rows += [
            ablation_row(head, *item) for head, item in zip(names, shown.items(), strict=False)
        ]
    return ablation_table(rows)


CHANGES = {
    "advantage": ("Objective", "`advantage` (the paper's)"),
    "direction": ("Objective", "`direction` (the paper's)"),
    "previous action": ("Flow state", "sees the previous action"),
    **{f"T={n}": ("Flow steps", f"T = {n}") for n in (1, 2, 5, 20)},
    **{f"weight={n}": ("rho", f"share {n} of mean |Q|") for n in ("0.0001", "0.001", "0.1", "1")},
    **{f"rho={n}": ("rho held", f"rho = {n}") for n in ("0.03", "0.3", "3", "30")},
    "iql": ("Critic", "`iql`, frozen"),
    "iql 1 %": ("Bad critic", "`iql` of 200 steps (1 %)"),
    "iql 10 %": ("Bad critic", "`iql` of 2,000 steps (10 %)"),
    "iql noised": ("Bad critic", "`iql` with noise of 0.3 on its weights"),
    "trigonometric": ("Path", "trigonometric"),
    "direction rate=0.003": ("Rate", "`direction`, ten times the learning rate"),
    "two Q": ("Ours", "two Q, their minimum"),
}
"""End of a label -> what was changed, in the order of the tables."""


def changes(labels: dict[str, list[Result]], end: str = "") -> list[tuple[str, ...]]:
    """Rows of one argument at a time, of which all three seeds have run."""
    rows: list[tuple[str, ...]] = []
    for part in dict.fromkeys(part for part, _ in CHANGES.values()):
        head = part
        for label in ("df-dir", "df-div"):
            for change, (of_part, text) in CHANGES.items():
                found = labels.get(f"{label} {change}{end}", ())
                if of_part == part and len(found) == 3:
                    said = f" {text}" if text.startswith("sees") else f", {text}"
                    rows.append(ablation_row(head, NAMES[label] + said, found))
                    head = ""
    return rows


@table("ablations-walker")
def ablations_walker() -> str:
    """One argument at a time on zoo walker2d-medium."""
    labels = runs("main", "ablations")[WALKER]
    rows = [
        ablation_row("", "clone, noise of 0.3", behaviors(labels["df-dir"])),
        *(ablation_row("", NAMES[label], labels[label]) for label in ("df-dir", "df-div")),
    ]
    return ablation_table([*rows, *changes(labels)])


@table("ablations-short-clone")
def ablations_short_clone() -> str:
    """The same on shorter clones, hopper-medium."""
    labels = runs("short_clone", "ablations_short_clone")[HOPPER]
    end = " short clone"
    clone = labels["flow-bc noise=0.3" + end]
    rows = [ablation_row("", "the short clone, noise of 0.3", clone)]
    for label in ("df-dir", "df-div"):
        rows.append(ablation_row("", f"{NAMES[label]}, short clone", labels[label + end]))
    return ablation_table([*rows, *changes(labels, end)])


@table("few-steps")
def few_steps() -> str:
    """Other solvers, fewer steps, one network."""
    rows = []
    for row in recorded("few_steps"):
        name = f"{NAMES[row['algorithm']]}, {DATASETS[row['dataset_id']][0]}, seed {row['seed']}"
        rows.append((name, *(f"{way['mean_return']:.0f}" for way in row["ways"].values())))
    columns = "Euler, 1 step", "2", "3", "5", "10", "20", "Heun, 1", "2", "5", "distilled"
    return make(("", *columns), rows, text=1)


SHOWN = {"IQL": "IQL, sampled", "IFQL, N=4": "IFQL, N = 4", "IFQL, N=32": "IFQL, N = 32"}
SHOWN |= {"IFQL": "IFQL, N = 256", "DF-dir, N=32": "DF-dir, best of 32"}
SHOWN |= {"DF-div, N=32": "DF-div, best of 32"}
MODES = (
    *("FlowBC", "IQL", "IQL, at the mean", "ReBRAC", "FQL", "IFQL, N=4", "IFQL, N=32", "IFQL"),
    *("RQL", "DF-dir", "DF-div", "DF-dir, N=32", "DF-div, N=32"),
)


def reward(row: dict[str, Any]) -> float:
    """Mean over the problems of the bandit."""
    return float(np.mean([measures["reward"] for measures in row["problems"].values()]))


@table("modes-search")
def modes_search() -> str:
    """The five settings of every method, seed 0."""
    shown = {"IFQL": "IFQL, best of N", "DF-dir": "DF-dir, `endpoint`"}
    shown |= {
        f"{name}, N=32": f"{name}, best of 32 of its own chains" for name in ("DF-dir", "DF-div")
    }
    rows = []
    for method in ("IQL", "ReBRAC", "FQL", "IFQL", "RQL", "DF-dir", "DF-div", *list(shown)[2:]):
        found = [row for row in recorded("modes") if row["part"] == "search"]
        found = [row for row in found if row["method"] == method]
        settings = [next(iter(row["setting"].values())) for row in found]
        name = next(iter(found[0]["setting"])).replace("samples", "N")
        pairs = zip(settings, found, strict=True)
        tried = ", ".join(f"{value:g}: {reward(row):.2f}" for value, row in pairs)
        best = settings[int(np.argmax([reward(row) for row in found]))]
        rows.append((shown.get(method, method), f"{name} {tried}", f"{best:g}"))
    return make(("method", "settings", "chosen"), rows, text=3)


@table("modes")
def modes() -> str:
    """Reward, share in a best mode, share off every mode; modes kept where two are best."""
    found = [row for row in recorded("modes") if row["part"] == "runs"]
    problems = list(found[0]["problems"])
    rows = []
    for method in MODES:
        seeds = [row for row in found if row["method"] == method]
        cells = []
        for problem in problems:
            names = "reward", "best", "off", "kept"
            value = {n: np.mean([row["problems"][problem][n] for row in seeds]) for n in names}
            text = f"{value['reward']:.2f} ({value['best']:.0%}, {value['off']:.0%})"
            kept = f", {value['kept']:.1f}" if "2 best" in problem else ""
            cells.append(text.replace("%", " %") + kept)
        total = f"{np.mean([reward(row) for row in seeds]):.2f}"
        rows.append((SHOWN.get(method, method), *cells, total))
    columns = [problem.replace("4 modes, 2 best", "2 best of 4") for problem in problems]
    return make(("", *columns, "mean"), rows, text=1 + len(columns))


def measured() -> list[tuple[str, dict[str, Any]]]:
    """Dataset and agent of every run whose mechanism was measured."""
    said = {"advantage": " `advantage`", "direction": " `direction`", "paper": " `--paper`", "": ""}
    order = {dataset: n for n, dataset in enumerate(DATASETS)}
    rows = sorted(
        recorded("mechanism"),
        key=lambda row: (
            order[row["dataset_id"]],
            row["algorithm"],
            list(said).index(row["label"][7:]) if row["label"][7:] else -1,
        ),
    )
    return [
        (
            f"{DATASETS[row['dataset_id']][0]}, {NAMES[row['algorithm']]}{said[row['label'][7:]]}",
            row,
        )
        for row in rows
    ]


@table("mechanism")
def mechanism() -> str:
    """Gain over the behaviour, cosine with the gradient of Q and length, along chains."""
    rows = []
    for name, row in measured():
        gain = np.subtract(row["policy"]["gain"], row["behavior"]["gain"])
        cosine, length = row["policy"]["cosine_change"], row["policy"]["change"]
        middle = len(gain) // 2
        numbers = [gain[0], gain[middle], gain[-1], cosine[0], cosine[middle], cosine[-1]]
        cells = (f"{number:.2f}" for number in (*numbers, length[0], length[-1]))
        rows.append((name, f"{row['return']:.0f} ({row['behavior_return']:.0f})", *cells))
    spots = "0.5", "last step"
    columns = "gained: t = 0", *spots, "cosine: t = 0", *spots, "length of u_theta - u_v: t = 0"
    head = "", "returns (clone, same noise)", *columns, "last step"
    return make(head, rows, text=2)


@table("mechanism-flow-value")
def flow_value() -> str:
    """Correlation of V with the chain's return, at the first and the last step."""
    rows = []
    named = [(name, row["value"]) for name, row in measured() if "value" in row]
    for name, value in sorted(
        named, key=lambda item: (item[0].split(",")[0], "--paper" not in item[0])
    ):
        parts = value["correlation_within"], value["correlation"]
        rows.append((name, *(f"{part[0]:.2f}, {part[-1]:.2f}" for part in parts)))
    return make(("", "one state", "all"), rows, text=3)


SHORT = {
    "FlowBC": "flow-bc short clone",
    "FlowBC, noise 0.3": "flow-bc noise=0.3 short clone",
    **{"DF-dir": "df-dir short clone", "DF-div": "df-div short clone", "IQL": "iql brief"},
    **{"ReBRAC": "rebrac", "FQL": "fql short clone", "IFQL": "ifql short clone"},
    "RQL": "rql short clone",
}
SHORT_FILES = "short_clone", "brief", "main"


@table("short-clone")
def short_clone() -> str:
    """The big table on shorter clones."""
    return big({name: of(label) for name, label in SHORT.items()}, *SHORT_FILES)


@table("short-clone-scores")
def short_clone_scores() -> str:
    """Its scores."""
    return first(aggregate_table(comparison(SHORT.values(), *SHORT_FILES)))


@table("short-clone-differences")
def short_clone_differences() -> str:
    """All others minus ReBRAC."""
    return first(difference_table(comparison(SHORT.values(), *SHORT_FILES), "rebrac"))


@table("hundred-episodes")
def hundred_episodes() -> str:
    """A hundred episodes of every seed, and their mean."""
    found = noted("hundred-episodes")
    columns = dict.fromkeys(row["dataset_id"] for row in found if "dataset_id" in row)
    rows = []
    for label in dict.fromkeys(row["label"] for row in found):
        cells = []
        own = [row for row in found if row["label"] == label]
        for dataset in columns:
            cell = [row for row in own if row.get("dataset_id") == dataset]
            seeds = each(row["mean_return"] for row in cell if "seed" in row)
            (whole,) = (row["mean_return"] for row in cell if "seed" not in row)
            cells.append(f"{whole:.0f} ({seeds})")
        (scored,) = (row["normalized_score"] for row in own if "normalized_score" in row)
        rows.append((label, *cells, f"{scored:.1f}"))
    head = "", *(DATASETS[dataset][0] for dataset in columns), "score"
    return make(head, rows, text=5)


def noted(name: str) -> list[dict[str, Any]]:
    """The rows of one table of results/recorded/noted.jsonl."""
    return [row for row in recorded("noted") if row["table"] == name]


@table("ppo")
def ppo() -> str:
    """PPO paid by the robot: mean return of the last 40 episodes, by actions so far."""
    rows = noted("ppo")
    columns = "Actions of the robot", *(f"{row['actions']:,}" for row in rows)
    cells = "Mean return", *(f"{row['mean_return']}" for row in rows)
    return make(columns, [cells], text=1)


@table("ppo-rho")
def ppo_rho() -> str:
    """PPO paid by a critic, by the price of leaving the behaviour."""
    found, rows = noted("ppo-rho"), []
    for task, clone in dict.fromkeys((row["task"], row["clone"]) for row in found):
        cells = {row["rho"]: row for row in found if row["task"] == task}
        marks = {
            rho: " (wider exploration)" * row["wider_exploration"] for rho, row in cells.items()
        }
        shown = {rho: f"{cells[rho]['mean_return']}{marks[rho]}" for rho in cells}
        rows.append((f"{task} {clone}", *(shown.get(rho, "–") for rho in (10, 3, 1, 0.3))))
    return make(("The clone", "`rho` 10", "3", "1", "0.3"), rows, text=5)


def speeds(name: str) -> list[dict[str, Any]]:
    """The measurements of one table of results/recorded/speed.jsonl."""
    return [row for row in recorded("speed") if row["table"] == name]


@table("speed-env")
def speed_env() -> str:
    """Flow steps per second by number of chains."""
    rows = [
        (f"{row['chains']}", f"{row['flow_steps_per_second']:,}", f"{row['with_models']:,}")
        for row in speeds("speed-env")
    ]
    models = "With a critic and a behaviour flow of 256x3"
    return make(("Chains", "Flow steps per second, no reward models", models), rows, text=0)


@table("speed-train")
def speed_train() -> str:
    """Gradient steps per second on two cores, and the share of the bare matrix products."""
    cells: dict[str, dict[str, str]] = {}
    for row in speeds("speed-train"):
        text = f"{row['steps_per_second']:.{0 if row['steps_per_second'] >= 10 else 1}f}"
        place = cells.setdefault(row["label"], {})
        place[f"{row['network']} {row['precision']}"] = (
            f"{text} ({row['matrix_products'] * 100:.0f} %)"
        )
    columns = next(iter(cells.values()))
    rows = [(label, *values.values()) for label, values in cells.items()]
    return make(("", *columns), rows, text=1 + len(columns))


@table("speed-gpu")
def speed_gpu() -> str:
    """Updates per second on an H100, by kernels and as CUDA graphs."""
    rows = [
        (
            row["label"],
            row["network"],
            f"{row['kernels']}",
            f"{row['graphs']}",
            f"{row['ratio']:.1f}",
        )
        for row in speeds("speed-gpu")
    ]
    return make(("", "Network", "By kernels", "As graphs", "Ratio"), rows, text=2)


def pages() -> list[Path]:
    """Where tables may stand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def renewed(text: str) -> tuple[str, list[str]]:
    """A page with its tables as the results have them, and the names of those that were not.

    Raises:
        KeyError: For a block whose name no table has.
    """
    stale = []

    def block(match: re.Match[str]) -> str:
        indent, name = match.groups()
        lines = [
            f"<!-- table: {name} -->",
            "",
            *TABLES[name]().split("\n"),
            "",
            "<!-- end table -->",
        ]
        new = "\n".join(f"{indent}{line}".rstrip() for line in lines)
        if new != match[0]:
            stale.append(name)
        return new

    return BLOCK.sub(block, text), stale


def main(arguments: Sequence[str]) -> int:
    """Write the tables, or with --check say which are stale; 1 when one is."""
    if unknown := set(arguments) - {"--check"}:
        print(f"unknown option {min(unknown)}: there is --check", file=sys.stderr)
        return 2
    found = 0
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new, stale = renewed(old)
        found += len(stale)
        for name in stale:
            print(f"{page.relative_to(ROOT)}: {name}")
        if stale and not arguments:
            page.write_text(new, encoding="utf-8")
    return 1 if found and arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
