"""Every table of numbers in README.md and docs/, from the stored results: `python docs/tables.py`.

Rewrites what stands between `<!-- table: NAME -->` and `<!-- end table -->`; `--check` changes
nothing, and exits with 1 and the names of the blocks that are stale. A new table is a generator
of its rows below, the head first; or a line of TABLES.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowmdp.compare import bootstrap, report
from flowmdp.compare.bootstrap import mean
from flowmdp.compare.comparison import Comparison, labels_of
from flowmdp.compare.report import interval, spread
from flowmdp.compare.results import Fields, Grouped, load_results

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^( *)<!-- table: (\S+) -->\n.*?<!-- end table -->", re.DOTALL | re.MULTILINE)

ORIGINS = {
    "flowmdp/hopper/medium-v0": "SAC early in its training",
    "zoo/hopper/medium-v0": "RL Zoo's SAC",
    "flowmdp/hopper/medium-replay-v0": "six snapshots of SAC up to medium",
    "zoo/hopper/mixed-v0": "RL Zoo's A2C, SAC, PPO, TRPO and TQC in turns",
    "flowmdp/walker2d/medium-v0": "PPO from the middle of its training",
    "zoo/walker2d/medium-v0": "RL Zoo's TRPO",
    "flowmdp/walker2d/medium-replay-v0": "five snapshots of PPO up to medium",
    "zoo/walker2d/mixed-v0": "RL Zoo's A2C, TRPO, SAC and TQC in turns",
    "flowmdp/halfcheetah/medium-v0": "PPO early in its training",
    "flowmdp/pointmaze/umaze-v0": "a planner with noise",
    "flowmdp/pointmaze/medium-v0": "a planner with noise",
    "dapg/pen/expert-v0": "DAPG's expert, a hand of 24 joints",
    "dapg/door/expert-v0": "DAPG's expert, 28 joints",
    "dapg/door/human-v0": "25 demonstrations by people",
}
"""Dataset -> what it was recorded from, in the pages' order."""
NAMES = {
    **{"df-dir": "DF-dir", "df-div": "DF-div", "rebrac": "ReBRAC", "rql": "RQL", "fql": "FQL"},
    **{"iql": "IQL", "ifql": "IFQL", "flow-bc": "FlowBC"},
}
"""Label -> algorithm, in the order of the pages' columns."""
HOPPER, WALKER = "flowmdp/hopper/medium-v0", "zoo/walker2d/medium-v0"
REPLAY, MIXED = "flowmdp/hopper/medium-replay-v0", "zoo/walker2d/mixed-v0"
MORE = "df-dir", "df-div", "rebrac", "iql"
"""Labels that have more seeds on two datasets."""
SEARCHED = {
    "df-dir weight=0.0125": "0.0125",
    "rebrac actor_bc=0.3": "0.3",
    "rql alpha=0.01": "0.01",
}
"""Label of a searched setting -> its value."""
ACTING = "published", "noiseless"
SPANS = "95 %, other seeds", "95 %, other datasets"

Labels = dict[str, list[Fields]]
"""Label -> results in the order of their seeds."""
Rows = Iterator[Sequence[object]]
"""The head of a table, and its rows."""
CLONE = {"df-dir/behavior/sampled": "clone"}
"""As NAMES: a label, then the fields in which its results hold the play that is meant."""
SHORT = {
    **{"flow-bc short clone": "FlowBC", "flow-bc noise=0.3 short clone": "FlowBC, noise 0.3"},
    **{"df-dir short clone": "DF-dir", "df-div short clone": "DF-div", "iql brief": "IQL"},
    **{"rebrac": "ReBRAC", "fql short clone": "FQL", "ifql short clone": "IFQL"},
    "rql short clone": "RQL",
}
"""The same of the tables on shorter clones."""
SHORT_FILES = "short_clone", "brief", "main"
FROZEN = {
    **{"df-dir behavior_weight=0.025": "DF-dir", "df-div behavior_weight=0.01": "DF-div"},
    **{"df-div flow_value=adjoint budget=2.5": "DF-div, adjoint", "dsrl noise_bound=0.5": "DSRL"},
    **{"ifql samples=8": "IFQL, 8 samples", "ifql noise_scale=0.3": "IFQL, noise 0.3"},
    **{"ifql samples=32": "IFQL", "rebrac actor_bc=0.1": "ReBRAC", "fql alpha=1.0": "FQL"},
    "iql beta=10.0": "IQL",
}
"""The same of the policies under one critic."""


@functools.cache
def grouped(*names: str, acting: str = "published") -> Grouped:
    """The results of tables by dataset and label, as played that way."""
    return load_results(*(ROOT / "results" / f"{name}.jsonl" for name in names), acting=acting)


def runs(*names: str, acting: str = "published") -> dict[str, Labels]:
    """Dataset id -> results by label."""
    found = grouped(*names, acting=acting)
    return {dataset.dataset_id: labels for dataset, labels in found.items()}


def recorded(name: str, **wanted: Any) -> list[dict[str, Any]]:
    """The rows of results/recorded/NAME.jsonl that have these values."""
    lines = (ROOT / "results" / "recorded" / f"{name}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    return [row for row in rows if wanted.items() <= row.items()]


def comparison(labels: Iterable[str], *names: str, acting: str = "published") -> Comparison:
    """Of labels, over the datasets that all of them have."""
    return Comparison.of(grouped(*names, acting=acting), list(labels), share=0)


def called(dataset: str) -> str:
    """A dataset's name in the pages: its task, after its owner if that is somebody else."""
    owner, robot, kind = dataset.removesuffix("-v0").split("/")
    return f"{robot}-{kind}" if owner == "flowmdp" else f"{owner} {robot}-{kind}"


def played(labels: Labels, path: str) -> list[Fields]:
    """A label's results, or what stands deeper in them: "label/field/field"."""
    label, *fields = path.split("/")
    return [functools.reduce(lambda found, name: found[name], fields, run) for run in labels[label]]


def returns(results: Sequence[Fields]) -> list[float]:
    """Mean return of every seed."""
    return [result["mean_return"] for result in results]


def each(values: Iterable[float], digits: int = 0) -> str:
    """Numbers in a row."""
    return ", ".join(f"{value:.{digits}f}" for value in values)


def score(results: Iterable[Sequence[Fields]]) -> float:
    """Mean over datasets of the mean score over seeds."""
    return float(
        np.mean([np.mean([run["normalized_score"] for run in seeds]) for seeds in results])
    )


def make(rows: Iterable[Sequence[object]], text: int) -> str:
    """A Markdown table, its head first, whose first `text` columns are text."""
    head, *cells = [[str(cell) for cell in row] for row in rows]
    made = report.markdown(head, cells, text).rstrip().replace("&#124;", "\\|")
    return made.replace("|  |", "| |").replace("|  |", "| |")


def summary(
    labels: Iterable[str], *names: str, against: str | None = None, acting: str = "published"
) -> str:
    """The report's table of means, or of differences, without the notes under it."""
    found = comparison(labels, *names, acting=acting)
    made = report.difference_table(found, against) if against else report.aggregate_table(found)
    return made.split("\n\n")[0]


def lead_of(label: str, other: str, found: Comparison) -> tuple[str, str, str]:
    """Lead over another label and its two intervals; empty for itself."""
    if label == other:
        return "", "", ""
    pair = found.scores[label], found.scores[other]
    lead, here = interval(bootstrap.difference_over_seeds(*pair), sign="+")
    return lead, here, interval(bootstrap.difference(*pair), sign="+")[1]


def big(columns: dict[str, str], *names: str) -> Rows:
    """Datasets x columns of returns over seeds, and the mean score below."""
    found = runs(*names)
    yield "", "data", *columns.values()
    for dataset in ORIGINS:
        data = next(iter(found[dataset].values()))[0]["data"]["mean_return"]
        cells = (spread(returns(played(found[dataset], path))) for path in columns)
        yield called(dataset), f"{data:.0f}", *cells
    means = (score(played(found[dataset], path) for dataset in ORIGINS) for path in columns)
    yield "**mean score**", "", *(f"**{value:.1f}**" for value in means)


def by_seed(dataset: str) -> Rows:
    """Every seed of one dataset, with those that were added."""
    labels = runs("main", "more_seeds")[dataset]
    yield called(dataset), *(run["seed"] for run in labels["df-dir"]), "mean"
    for path, name in (CLONE | {label: NAMES[label] for label in MORE}).items():
        values = returns(played(labels, path))
        yield name, *(f"{value:.0f}" for value in values), spread(values)


STILL = {f"{label}/noiseless": name for label, name in NAMES.items()}
TABLES: dict[str, Callable[[], str]] = {
    # fourteen datasets x clone and eight algorithms, as trained; and from x_0 = 0
    "main": lambda: make(big(CLONE | NAMES, "main"), text=1),
    "noiseless": lambda: make(big(STILL, "main"), text=1),
    "scores": lambda: summary(NAMES, "main"),
    "noiseless-scores": lambda: summary(NAMES, "main", acting="noiseless"),
    "differences": lambda: summary(NAMES, "main", against="df-dir"),
    "differences-iql": lambda: summary(NAMES, "main", against="iql"),
    "more-seeds-walker": lambda: make(by_seed(MIXED), text=1),
    "more-seeds-hopper": lambda: make(by_seed(REPLAY), text=1),
    # on shorter clones
    "short-clone": lambda: make(big(SHORT, *SHORT_FILES), text=1),
    "short-clone-scores": lambda: summary(SHORT, *SHORT_FILES),
    "short-clone-differences": lambda: summary(SHORT, *SHORT_FILES, against="rebrac"),
    # one argument at a time
    "ablations-walker": lambda: make(ablations(WALKER, ("main", "ablations")), text=2),
    "ablations-short-clone": lambda: make(
        ablations(HOPPER, ("short_clone", "ablations_short_clone"), " short clone"), text=2
    ),
}


def table(name: str, text: int) -> Callable[[Callable[[], Rows]], Callable[[], Rows]]:
    """Register the generator of that table, whose first `text` columns are text."""

    def register(rows: Callable[[], Rows]) -> Callable[[], Rows]:
        TABLES[name] = lambda: make(rows(), text)
        return rows

    return register


@table("ogbench", text=2)
def ogbench() -> Rows:
    """Success rates in percent; chunks of five actions."""
    spans = "seeds 1, 2, 3", "mean", "95 %, all episodes"
    yield "", "", *spans, "from x_0 = 0", "the data"
    for dataset, labels in grouped("ogbench", "ogbench_cube").items():
        for label, results in labels.items():
            sampled, still, data = (
                [100 * run["success_rate"] for run in played(labels, f"{label}{way}")]
                for way in ("", "/noiseless", "/data")
            )
            means = spread(sampled, 1), report.success_span(results), spread(still, 1)
            noise = results[0]["flow"]["noise_scale"]
            name = f"{NAMES[label.split()[0]]}, noise of {noise:g}"
            yield dataset.task, name, each(sampled), *means, each(data[:1], 1)


@table("one-critic-ifql", text=1)
def one_critic_ifql() -> Rows:
    """Success of IFQL in percent, scene by scene and goal by goal."""
    rates = {
        tuple(goal.task.split("-task")): f"{100 * labels['ifql goals'][0]['success_rate']:.0f}"
        for goal, labels in grouped("frozen_goals").items()
    }
    yield "", *(f"goal {number}" for number in "12345")
    for scene in dict.fromkeys(scene for scene, _ in rates):
        yield scene, *(rates.get((scene, number), "") for number in "12345")


@table("one-critic-search", text=2)
def one_critic_search() -> Rows:
    """Success in percent of settings under one frozen critic, goal by goal."""
    found = grouped("frozen_search")
    yield "", "", *(dataset.task for dataset in found), "mean"
    for label in labels_of(found):
        runs = (labels[label][0] if label in labels else {} for labels in found.values())
        rates = [100 * run.get("success_rate", np.nan) for run in runs]
        name, _, setting = label.partition(" ")
        shown = [f"{rate:.0f}" if rate >= 0 else "" for rate in (*rates, np.mean(rates))]
        yield NAMES.get(name, name.upper()), setting, *shown


@table("one-critic-goals", text=1)
def one_critic_goals() -> Rows:
    """Success in percent of the policies under one critic, every seed, the best first."""
    found = comparison(FROZEN, "frozen_5000")
    yield "", *(goal.task for goal in found.datasets), "mean"
    for label, own in found.estimates(mean).items():
        yield FROZEN[label], *map(each, found.scores[label]), f"{own.value:.0f}"


def behind_the_first(found: Comparison, names: dict[str, str]) -> Rows:
    """Every seed, the best mean first, and how far each is behind it, paired by seed."""
    yield "", *(goal.task for goal in found.datasets), "mean", "behind the first", "95 %"
    best, *_ = own = found.estimates(mean)
    for label in own:
        scores = found.scores[label]
        pairs = zip(found.scores[best], scores, strict=True)
        behind = interval(bootstrap.over_seeds([first - other for first, other in pairs], mean))
        shown = ("", "") if label == best else behind
        yield names[label], *map(each, scores), f"{own[label].value:.0f}", *shown


@table("one-critic", text=1)
def one_critic() -> Rows:
    """The same after 10,000 steps."""
    names = {f"{label} steps=10000": name for label, name in FROZEN.items()}
    return behind_the_first(comparison(names, "frozen_critic"), names)


@table("one-critic-seeds", text=1)
def one_critic_seeds() -> Rows:
    """The best of them, with two more seeds."""
    found = labels_of(grouped("frozen_seeds"))
    names = {label: FROZEN[label.removesuffix(" steps=10000")] for label in found}
    return behind_the_first(comparison(names, "frozen_critic", "frozen_seeds"), names)


@table("own-critics", text=1)
def own_critics() -> Rows:
    """Success in percent with a critic of one's own, by recipe."""
    (labels,) = grouped("own_critics").values()
    recipes = {"": "shared recipe", " paper": "each paper's own"}
    yield "", *recipes.values()
    for label in labels:
        if not label.endswith(" paper"):
            found = (labels.get(label + recipe, ()) for recipe in recipes)
            yield f"`{label}`", *(each(100 * run["success_rate"] for run in own) for own in found)


@table("one-critic-steps", text=1)
def one_critic_steps() -> Rows:
    """What more steps give on one goal, success in percent."""
    few, many = (next(iter(grouped(f"frozen_{steps}").values())) for steps in (5_000, 20_000))
    yield "", "5,000 steps", "20,000 steps", "on the way, after 5,000, 10,000, 15,000, 20,000"
    for label, name in FROZEN.items():
        for run in many.get(f"{label} steps=20000", []):
            ends = (100 * one["success_rate"] for one in (few[label][0], run))
            way = each(100 * rate for rate in run["curve"]["success_rate"])
            yield name, *(f"{end:.0f}" for end in ends), way


@table("top", text=1)
def top() -> Rows:
    """The README's: the five best, and DF-dir's lead."""
    sampled, still = (comparison(NAMES, "main", acting=way) for way in ACTING)
    yield "", "mean score", "95 % (seeds)", "from x_0 = 0", "DF-dir minus it", SPANS[1]
    for label, own in list(sampled.estimates(mean).items())[:5]:
        value, low, high = bootstrap.difference(sampled.scores[label], sampled.scores["df-dir"])
        lead = interval(bootstrap.Estimate(-value, -high, -low), sign="+")
        quiet = f"{float(mean(still.scores[label])):.1f}"
        yield NAMES[label], *interval(own), quiet, *(("", "") if label == "df-dir" else lead)


@table("datasets", text=3)
def datasets() -> Rows:
    """What the algorithms learn from."""
    yield "", "dataset", "recorded from", "episodes", "return"
    for dataset, origin in ORIGINS.items():
        data = runs("main")[dataset]["df-dir"][0]["data"]
        yield called(dataset), f"`{dataset}`", origin, data["episodes"], each([data["mean_return"]])


@table("more-seeds", text=1)
def more_seeds() -> Rows:
    """Mean scores with the added seeds."""
    found = comparison(MORE, "main", "more_seeds")
    own = found.estimates(mean)
    yield "", "mean", "95 %", "minus ReBRAC", *SPANS
    for label in MORE:
        yield NAMES[label], *interval(own[label]), *lead_of(label, "rebrac", found)


@table("search", text=4)
def search() -> Rows:
    """The last search: default and winner, with the mean of the scores with and without noise."""
    yield "", "default", "winner", "mean of both scores, seed 4"
    for row in recorded("noted", table="search"):
        winner = f"**{row['winner']}**" if row["winner"] else "the default"
        yield row["label"], row["default"], winner, each(row["scores"], digits=1)


@table("second-settings-seeds", text=7)
def second_settings_seeds() -> Rows:
    """Every seed of the searched settings, beside the defaults."""
    labels = [label for searched in SEARCHED for label in (searched.split()[0], searched)]
    defaults = {"df-dir": "DF-dir, 0.025", "rebrac": "ReBRAC, 0.1", "rql": "RQL, 0.03"}
    yield "seeds 1, 2, 3, as trained", *({**defaults, **SEARCHED}[label] for label in labels)
    found = runs("main", "second_settings")
    for dataset in ORIGINS:
        yield called(dataset), *(each(returns(found[dataset][label])) for label in labels)
    trained, still = (comparison(labels, "main", "second_settings", acting=way) for way in ACTING)
    means = {label: np.mean(trained.scores[label], axis=0) for label in labels}
    yield "**mean score**", *(f"{each(one, 1)}: **{one.mean():.1f}**" for one in means.values())
    quiet = []
    for label in labels:
        one = np.mean(still.scores[label], axis=0)
        deterministic = np.array_equal(one, means[label])
        quiet.append("" if deterministic else f"{each(one, 1)}: {one.mean():.1f}")
    yield "without noise", *quiet


@table("second-settings-differences", text=1)
def second_settings_differences() -> Rows:
    """The searched settings minus the defaults."""
    defaults = {label: label.split()[0] for label in SEARCHED}
    found = comparison((*SEARCHED, *defaults.values()), "main", "second_settings")
    yield "", "seed 1", "seed 2", "seed 3", "the test, 2 and 3", "all three", SPANS[1]
    for label, default in defaults.items():
        gain = np.mean(found.scores[label], axis=0) - np.mean(found.scores[default], axis=0)
        numbers = (*gain, gain[1:].mean(), gain.mean())
        *_, elsewhere = lead_of(label, default, found)
        yield NAMES[default], *(f"{n:+.1f}" for n in numbers), elsewhere


@table("second-settings", text=1)
def second_settings() -> Rows:
    """The table that the rule of the search alone would have made."""
    labels = [*SEARCHED, "df-div", "iql", "ifql", "fql", "flow-bc"]
    found = comparison(labels, "main", "second_settings")
    middles = found.estimates(bootstrap.interquartile_mean)
    yield "", "mean", "95 %", "IQM", "95 %", "minus IQL", *SPANS
    for label, own in found.estimates(mean).items():
        setting = f", {SEARCHED[label]}" if label in SEARCHED else ""
        cells = *interval(own), *interval(middles[label]), *lead_of(label, "iql", found)
        yield NAMES[label.split()[0]] + setting, *cells


@table("large", text=4)
def large() -> Rows:
    """512x4 networks and 200,000 updates."""
    main, larger = runs("main")[REPLAY], runs("large")[REPLAY]
    steps = {"ReBRAC": " (30,000 updates)", "IQL": " (30,000)"}
    at = "20,000, 40,000, 60,000, 80,000, 100,000 and at the end"
    yield "", "256x3, as above", "512x4, 200,000", f"evaluations of five episodes after {at}"
    for row in recorded("noted", table="large"):
        name, values = row["label"], returns(row["evaluations"])
        label = next(label for label in NAMES if NAMES[label] == name)
        curve = "; ".join(filter(None, (each(values[:5]), each(values[5:]))))
        there = larger.get(f"{label} large")
        small = spread(returns(main[label])) + steps.get(name, "")
        yield name, small, spread(returns(there)) if there else "", curve


def ablation(labels: Labels, name: str, path: str, part: str = "") -> tuple[str, ...]:
    """A row: as trained, every seed, without noise."""
    shown, still = returns(played(labels, path)), returns(played(labels, f"{path}/noiseless"))
    return part, name, spread(shown), each(shown), spread(still)


ABLATIONS = "", "", "as trained", "seeds 1, 2, 3", "without noise"


@table("ablations-paper", text=2)
def ablations_paper() -> Rows:
    """The paper's setting beside ours."""
    yield ABLATIONS
    for dataset in (HOPPER, WALKER):
        labels, part = runs("main", "ablations")[dataset], called(dataset)
        yield ablation(labels, "clone, noise of 0.3", "df-dir/behavior", part=part)
        yield ablation(labels, "clone, noise of 1", "df-dir paper/behavior")
        for end, said in ("", ""), (" paper", ", `--paper`"):
            for label in ("df-dir", "df-div"):
                yield ablation(labels, NAMES[label] + said, label + end)


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


def ablations(dataset: str, names: Sequence[str], end: str = "") -> Rows:
    """One argument at a time: a row for every change of which all three seeds have run."""
    labels = runs(*names)[dataset]
    clone = f"flow-bc noise=0.3{end}" if end else "df-dir/behavior"
    yield ABLATIONS
    yield ablation(labels, f"{'the' if end else ''}{end or 'clone'}, noise of 0.3", clone)
    for label in ("df-dir", "df-div"):
        yield ablation(labels, f"{NAMES[label]}{end and ','}{end}", label + end)
    for part in dict.fromkeys(part for part, _ in CHANGES.values()):
        head = part
        for label in ("df-dir", "df-div"):
            for change, (of_part, text) in CHANGES.items():
                own = f"{label} {change}{end}"
                if of_part == part and len(labels.get(own, ())) == 3:
                    said = f" {text}" if text.startswith("sees") else f", {text}"
                    yield ablation(labels, NAMES[label] + said, own, part=head)
                    head = ""


@table("rollout-steps", text=1)
def rollout_steps() -> Rows:
    """Returns by seed, and the mean score."""
    yield "roll-outs", "hopper-medium", "walker2d-medium", "score"
    for label, said in ("df-dir", "ten steps"), ("df-dir K=3", "three steps"):
        found = [labels[label] for labels in runs("rollout_steps").values()]
        yield said, *(each(returns(seeds)) for seeds in found), f"{score(found):.1f}"


WAYS = {
    **{"flow-bc, ppo": "noisy steps (`ppo`)", "flow-bc, ppo 0.05": "noisy steps, 0.05 to 0.1"},
    **{"flow-bc, latent": "latent noise (`latent`)", "ifql, replay": "replay (`replay`) of IFQL"},
}
"""Label -> a way to learn on robots, in the order of the tables."""


def learned_online(name: str, labels: dict[str, str]) -> Rows:
    """Clone, last tenth, best evaluation and end of runs on robots, means over their seeds."""
    yield "", "", "robot steps", "before", "last tenth", "best", "seeds at the end", "minutes"
    for dataset, found in grouped(name).items():
        task = dataset.task if "-task" in dataset.task else called(dataset.dataset_id)
        for label in (label for label in labels if label in found):
            results, cells = found[label], []
            succeeds = results[0].get("success_rate") is not None
            unit, measure = (100, "success_rate") if succeeds else (1, "mean_return")
            goal = results[0]["online"]["robot_steps"]
            for run in results:
                steps, values = (np.array(run["curve"][key]) for key in ("steps", measure))
                before = (run["behavior"] or {}).get(measure, np.nan)
                if label.endswith("-bare"):  # which has no clone
                    before = values[0]
                last, best = values[steps >= 0.9 * goal].mean(), values.max()
                cells.append([unit * number for number in (before, last, best)])
            ends = each(unit * run[measure] for run in results)
            means = (str(round(value)) for value in np.mean(cells, axis=0))
            minutes = np.mean([run["wall_seconds"] for run in results]) / 60
            yield task, labels[label], f"{goal:,}", *means, ends, f"{minutes:.0f}"
            task = ""


TABLES["online"] = lambda: make(learned_online("online", WAYS), text=2)


FOREIGN = {
    **{"ppo-noise": "SB3's PPO, noise", "tqc-noise": "sb3-contrib's TQC, noise"},
    **{"sac-noise": "SB3's SAC, noise", "td3-noise": "SB3's TD3, noise"},
    **{"cleanrl-ppo": "CleanRL-style PPO, noise", "cleanrl-sac": "CleanRL-style SAC, noise"},
    "ppo-flow": "SB3's PPO, a correction of every flow step",
    "ppo-bare": "SB3's PPO, the bare robot from nothing",
    "sac-bare": "SB3's SAC, the bare robot from nothing",
}
"""Name in `benchmarks.foreign` -> an algorithm of others, and what it decides."""
TABLES["foreign"] = lambda: make(learned_online("foreign", FOREIGN), text=2)


@table("few-steps", text=1)
def few_steps() -> Rows:
    """Other solvers, fewer steps, one network."""
    yield "", "Euler, 1 step", "2", "3", "5", "10", "20", "Heun, 1", "2", "5", "distilled"
    for row in recorded("few_steps"):
        name = f"{NAMES[row['algorithm']]}, {called(row['dataset_id'])}, seed {row['seed']}"
        yield name, *(f"{way['mean_return']:.0f}" for way in row["ways"].values())


MODES = {
    **{"FlowBC": "FlowBC", "IQL": "IQL, sampled", "IQL, at the mean": "IQL, at the mean"},
    **{"ReBRAC": "ReBRAC", "FQL": "FQL", "IFQL, N=4": "IFQL, N = 4", "IFQL, N=32": "IFQL, N = 32"},
    **{"IFQL": "IFQL, N = 256", "RQL": "RQL", "DF-dir": "DF-dir", "DF-div": "DF-div"},
    "DF-div, adjoint": "DF-div, adjoint",
    **{"DF-dir, N=32": "DF-dir, best of 32", "DF-div, N=32": "DF-div, best of 32"},
}
MODES_SEARCH = {
    **{"IQL": "IQL", "ReBRAC": "ReBRAC", "FQL": "FQL", "IFQL": "IFQL, best of N", "RQL": "RQL"},
    **{"DF-dir": "DF-dir, `endpoint`", "DF-div": "DF-div", "DF-div, adjoint": "DF-div, adjoint"},
    "DF-dir, N=32": "DF-dir, best of 32 of its own chains",
    "DF-div, N=32": "DF-div, best of 32 of its own chains",
}
"""Method in the record -> in the table, in its order."""


def reward(row: dict[str, Any]) -> float:
    """Mean over the problems of the bandit."""
    return float(np.mean([measures["reward"] for measures in row["problems"].values()]))


@table("modes-search", text=3)
def modes_search() -> Rows:
    """The five settings of every method, seed 0."""
    yield "method", "settings", "chosen"
    for method, shown in MODES_SEARCH.items():
        found = recorded("modes", part="search", method=method)
        settings = [next(iter(row["setting"].values())) for row in found]
        rewards = [reward(row) for row in found]
        pairs = zip(settings, rewards, strict=True)
        tried = ", ".join(f"{value:g}: {one:.2f}" for value, one in pairs)
        name = next(iter(found[0]["setting"])).replace("samples", "N")
        yield shown, f"{name} {tried}", f"{settings[int(np.argmax(rewards))]:g}"


@table("modes", text=6)
def modes() -> Rows:
    """Reward, share in a best mode, share off every mode; modes kept where two are best."""
    problems = list(recorded("modes", part="runs")[0]["problems"])
    columns = [problem.replace("4 modes, 2 best", "2 best of 4") for problem in problems]
    yield "", *columns, "mean"
    for method, shown in MODES.items():
        seeds = recorded("modes", part="runs", method=method)
        cells = []
        for problem in problems:
            found = [row["problems"][problem] for row in seeds]
            value = {name: np.mean([one[name] for one in found]) for name in found[0]}
            text = f"{value['reward']:.2f} ({value['best']:.0%}, {value['off']:.0%})"
            kept = f", {value['kept']:.1f}" if "2 best" in problem else ""
            cells.append(text.replace("%", " %") + kept)
        yield shown, *cells, f"{np.mean([reward(row) for row in seeds]):.2f}"


def measured() -> list[tuple[str, dict[str, Any]]]:
    """Dataset and agent of every run whose mechanism was measured."""
    said = {"": "", "advantage": " `advantage`", "direction": " `direction`", "paper": " `--paper`"}
    order = {dataset: n for n, dataset in enumerate(ORIGINS)}
    rows = []
    for row in recorded("mechanism"):
        dataset, algorithm, variant = row["dataset_id"], row["algorithm"], row["label"][7:]
        name = f"{called(dataset)}, {NAMES[algorithm]}{said[variant]}"
        rows.append((order[dataset], algorithm, list(said).index(variant), name, row))
    return [(name, row) for *_, name, row in sorted(rows, key=lambda row: row[:3])]


@table("mechanism", text=2)
def mechanism() -> Rows:
    """Gain over the behaviour, cosine with the gradient of Q and length, along chains."""
    spots = "0.5", "last step"
    columns = "gained: t = 0", *spots, "cosine: t = 0", *spots, "length of u_theta - u_v: t = 0"
    yield "", "returns (clone, same noise)", *columns, "last step"
    for name, row in measured():
        gain = np.subtract(row["policy"]["gain"], row["behavior"]["gain"])
        cosine, length = row["policy"]["cosine_change"], row["policy"]["change"]
        middle = len(gain) // 2
        numbers = [gain[0], gain[middle], gain[-1], cosine[0], cosine[middle], cosine[-1]]
        cells = (f"{number:.2f}" for number in (*numbers, length[0], length[-1]))
        yield name, f"{row['return']:.0f} ({row['behavior_return']:.0f})", *cells


@table("mechanism-flow-value", text=3)
def flow_value() -> Rows:
    """Correlation of V with the chain's return, at the first and the last step."""
    yield "", "one state", "all"
    rows = [(name, row["value"]) for name, row in measured() if "value" in row]
    rows.sort(key=lambda row: (row[0].split(",")[0], "--paper" not in row[0]))
    for name, value in rows:
        parts = value["correlation_within"], value["correlation"]
        yield name, *(f"{part[0]:.2f}, {part[-1]:.2f}" for part in parts)


@table("hundred-episodes", text=5)
def hundred_episodes() -> Rows:
    """A hundred episodes of every seed, and their mean."""
    found = recorded("noted", table="hundred-episodes")
    columns = dict.fromkeys(row["dataset_id"] for row in found if "dataset_id" in row)
    yield "", *map(called, columns), "score"
    for label in dict.fromkeys(row["label"] for row in found):
        cells, own = [], [row for row in found if row["label"] == label]
        for dataset in columns:
            cell = [row for row in own if row.get("dataset_id") == dataset]
            seeds = each(row["mean_return"] for row in cell if "seed" in row)
            (whole,) = (row["mean_return"] for row in cell if "seed" not in row)
            cells.append(f"{whole:.0f} ({seeds})")
        (scored,) = (row["normalized_score"] for row in own if "normalized_score" in row)
        yield label, *cells, f"{scored:.1f}"


@table("ppo", text=1)
def ppo() -> Rows:
    """PPO paid by the robot: mean return of the last 40 episodes, by actions so far."""
    rows = recorded("noted", table="ppo")
    yield "Actions of the robot", *(f"{row['actions']:,}" for row in rows)
    yield "Mean return", *returns(rows)


@table("ppo-rho", text=5)
def ppo_rho() -> Rows:
    """PPO paid by a critic, by the price of leaving the behaviour."""
    yield "The clone", "`rho` 10", "3", "1", "0.3"
    rows: dict[str, dict[float, str]] = {}
    for row in recorded("noted", table="ppo-rho"):
        mark = " (wider exploration)" * row["wider_exploration"]
        cells = rows.setdefault(f"{row['task']} {row['clone']}", {})
        cells[row["rho"]] = f"{row['mean_return']}{mark}"
    for name, cells in rows.items():
        yield name, *(cells.get(rho, "–") for rho in (10, 3, 1, 0.3))


@table("speed-env", text=0)
def speed_env() -> Rows:
    """Flow steps per second by number of chains, and the share of the bare matrix products."""
    rows: dict[int, list[str]] = {}
    for row in recorded("speed", table="speed-env"):
        models = f"{row['with_models']:,} ({row['matrix_products'] * 100:.0f} %)"
        rows.setdefault(row["chains"], []).extend((f"{row['flow_steps_per_second']:,}", models))
    yield "Chains", "NumPy", "NumPy, models", "Torch on the CPU", "Torch, models"
    for chains, cells in rows.items():
        yield chains, *cells


@table("speed-train", text=3)
def speed_train() -> Rows:
    """Gradient steps per second on one thread, and the share of the bare matrix products."""
    rows: dict[str, dict[str, str]] = {}
    for row in recorded("speed", table="speed-train"):
        speed, share = row["steps_per_second"], row["matrix_products"] * 100
        cells = rows.setdefault(row["label"], {})
        column = f"{row['network']} {row['precision']}"
        cells[column] = f"{speed:.{0 if speed >= 10 else 1}f} ({share:.0f} %)"
    yield "", *next(iter(rows.values()))
    for label, cells in rows.items():
        yield label, *cells.values()


@table("speed-gpu", text=2)
def speed_gpu() -> Rows:
    """Updates per second on an H100, by kernels and as CUDA graphs."""
    yield "", "Network", "Kernel by kernel", "CUDA graphs", "Ratio"
    for row in recorded("speed", table="speed-gpu"):
        yield row["label"], row["network"], row["kernels"], row["graphs"], f"{row['ratio']:.1f}"


def pages() -> list[Path]:
    """Where tables may stand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def renewed(block: re.Match[str]) -> str:
    """A page's block as the results have it; KeyError for a name that no table has."""
    indent, name = block.groups()
    lines = f"<!-- table: {name} -->", "", *TABLES[name]().split("\n"), "", "<!-- end table -->"
    return "\n".join(f"{indent}{line}".rstrip() for line in lines)


def main(arguments: Sequence[str]) -> int:
    """Write the tables, or with --check say which are stale; 1 when one is."""
    if unknown := set(arguments) - {"--check"}:
        print(f"unknown option {min(unknown)}: there is --check", file=sys.stderr)
        return 2
    status = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        stale = [block[2] for block in BLOCK.finditer(text) if renewed(block) != block[0]]
        for name in stale:
            print(f"{page.relative_to(ROOT)}: {name}")
        if stale and arguments:
            status = 1
        elif stale:
            page.write_text(BLOCK.sub(renewed, text), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
