"""`flowmdp report` on results written by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from matplotlib.figure import Figure

from flowmdp.cli import main

ROOT = Path(__file__).resolve().parents[2]
UNITS = "robot steps", "gradient steps"


def write(
    folder: Path,
    label: str | None,
    scores: list[float | None],
    dataset: str = "zoo/hopper/medium-v0",
    **more: Any,
) -> None:
    """One result per score, with seeds 0, 1, 2 ...; the return is ten times the score.

    Those with a label are rows of a table's results, the others lie in run folders.
    """
    for seed, score in enumerate(scores):
        result = {
            "task": "hopper-medium",
            "source": "builtin",
            "dataset_id": dataset,
            "algorithm": "df-div",
            "seed": seed,
            "steps": 100,
            "mean_return": 10 * (score or 0),
            "normalized_score": score,
            "returns": [1.0, 2.0],
            "best_evaluation": {"mean_return": 10 * (score or 0) + 5, "step": 50},
            "behavior": {"mean_return": 100.0 + seed},
            "data": {"mean_return": 200.0},
            "flow": {"flow_steps": 10},
            "config": {"rho": 0.5, "net_arch": [16, 16]},
            "command": f"flowmdp train df-div hopper-medium --seed {seed}",
            **more,
        }
        if label is not None:
            folder.mkdir(exist_ok=True, parents=True)
            with (folder / "table.jsonl").open("a") as file:
                file.write(json.dumps({"label": label, **result}) + "\n")
        else:
            run = folder / f"{dataset}_{seed}".replace("/", "-")
            run.mkdir(parents=True)
            (run / "result.json").write_text(json.dumps(result))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, in their order."""
    figures: list[Figure] = []
    monkeypatch.setattr("flowmdp.compare.figures.save", lambda figure, _: figures.append(figure))
    return figures


@pytest.fixture
def report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `flowmdp report` on tmp_path/results; returns its lines from the long table on."""

    def run(*options: str, short: bool = False) -> list[str]:
        capsys.readouterr()
        assert main(["report", str(tmp_path / "results"), *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        second = next(n for n, line in enumerate(lines) if line.startswith("| task |"))
        return lines[:second] if short else lines[second:]

    return run


def test_one_row_per_dataset_and_label(tmp_path: Path, report: Any) -> None:
    write(tmp_path / "results", "a|b", [10, 20, 30])
    runs = tmp_path / "results" / "deep" / "down"
    write(runs, None, [40, 60], "zoo/hopper/expert-v0", best_evaluation=None)
    lines = report()
    assert lines[0].split(" | ")[3:6] == ["label", "seeds", "data"]
    assert report(str(tmp_path / "results" / "deep")) == lines, "a folder in it adds nothing"
    assert report(str(tmp_path / "results" / "table.jsonl")) == lines, "nor does a file"
    assert report(str(next(runs.rglob("result.json")))) == lines
    left = "| hopper-medium | builtin | zoo/hopper"
    assert lines[2:4] == [
        f"{left}/expert-v0 | df-div | 2 † | 200 | 100 ± 1 | 500 ± 141 | 50.0 ± 14.1 | - |",
        f"{left}/medium-v0 | a&#124;b | 3 | 200 | 101 ± 1 | 200 ± 100 | 20.0 ± 10.0 | 205 ± 100 |",
    ]
    assert "after the fact" in lines[0] and any(line.startswith("†: fewer") for line in lines)


def test_the_short_table_has_a_column_per_label(tmp_path: Path, report: Any) -> None:
    write(tmp_path / "results", "a", [10, 20, 30])
    write(tmp_path / "results", "b", [40, 60], "zoo/hopper/expert-v0")
    lines = report(short=True)
    assert lines[0] == "| dataset | data | a | b |"
    assert lines[2:4] == [
        "| zoo/hopper/expert-v0 | 200 | - | 500 ± 141 † |",
        "| zoo/hopper/medium-v0 | 200 | 200 ± 100 | - |",
    ]
    assert lines[-2].startswith("†: fewer")


def test_the_other_way_of_acting(tmp_path: Path, report: Any) -> None:
    still = {"mean_return": 700.0, "normalized_score": 70.0}
    behavior = {"mean_return": 100.0, "noiseless": {"mean_return": 300.0}}
    write(tmp_path / "results", "a", [10], noiseless=still, behavior=behavior)
    assert report()[2].split(" | ")[6:9] == ["100", "100", "10.0"]
    assert report("--acting", "noiseless")[2].split(" | ")[6:9] == ["300", "700", "70.0"]
    assert main(["report", str(tmp_path / "results"), "--acting", "sampled"]) == 2


def test_both_ways_of_acting_side_by_side(tmp_path: Path, report: Any) -> None:
    still = {"mean_return": 700.0, "normalized_score": 70.0, "returns": [500.0, 900.0]}
    write(tmp_path / "results", "flow", [10, 70], noiseless=still)  # 70: the same mean by chance
    write(tmp_path / "results", "mean", [70, 70], noiseless=still, returns=still["returns"])
    rows = [line.split(" | ")[3:5] + line.split(" | ")[7:8] for line in report("--acting", "both")]
    expected = [["flow", "2 †", "400 ± 424"], ["flow noiseless", "2 †", "700 ± 0"]]
    assert rows[2:5] == [*expected, ["mean", "2 †", "700 ± 0"]]


def test_a_policy_without_a_behavior_flow_shows_none(tmp_path: Path, report: Any) -> None:
    write(tmp_path / "results", "bc", [10], behavior={"mean_return": 100, "returns": [1.0, 2.0]})
    write(tmp_path / "results", "none", [10], behavior=None)
    assert [line.split(" | ")[6] for line in report()[2:4]] == ["-", "-"]


def test_aggregate_over_the_datasets_all_labels_share(tmp_path: Path, report: Any) -> None:
    folder = tmp_path / "results"
    for dataset, shift in (("zoo/hopper/medium-v0", 0), ("zoo/hopper/expert-v0", 50)):
        write(folder, "good", [20.0 + shift, 22.0 + shift, 24.0 + shift], dataset)
        write(folder, "poor", [10.0 + shift, 12.0 + shift, 14.0 + shift], dataset)
        write(folder, "same", [20.0 + shift, 22.0 + shift, 24.0 + shift], dataset)
    write(folder, "good", [1.0, 2.0, 3.0], "zoo/hopper/replay-v0")
    for label in ("good", "poor", "same"):
        write(folder, label, [None, None], "zoo/hopper/unknown-v0")
    lines = report()
    text = "\n".join(lines)
    assert "Normalised score over 2 datasets" in text
    assert "replay-v0 (hopper-medium, builtin): no poor, no same." in text
    assert "unknown-v0 (hopper-medium, builtin): no reference scores" in text
    rows = {line.split(" | ")[0]: line.split(" | ")[1:] for line in lines if "| 3 |" in line}
    assert rows["| good"][1] == "47.0" and rows["| poor"][1] == "37.0"
    assert rows["| good"][3] == "47.0", "IQM of 20, 22, 24, 70, 72, 74 without the outer two"
    low, high = (float(end) for end in rows["| good"][2].split(" to "))
    assert 45 < low < 47 < high < 49
    (against,) = (line for line in lines if line.startswith("| label | minus"))
    assert "minus good" in against and "good was chosen because it is the best" in text
    ahead = {line.split(" | ")[0]: line.split(" | ")[1:] for line in lines if " of 2 |" in line}
    assert ahead["| poor"][0] == "-10.0" and ahead["| poor"][3] == "0 of 2 |"
    for column in (1, 2):  # other seeds, other datasets
        assert float(ahead["| poor"][column].split(" to ")[1]) < 0, "a shifted group differs"
        low, high = (float(end) for end in ahead["| same"][column].split(" to "))
        assert low < 0 < high, "an identical one does not"


def test_against_and_reference(tmp_path: Path, report: Any) -> None:
    for label in ("a", "b", "c"):
        write(tmp_path / "results", label, [1, 2, 3])
    write(tmp_path / "results", "a", [4, 5, 6], "zoo/hopper/expert-v0")
    write(tmp_path / "results", "b", [4, 5, 6], "zoo/hopper/expert-v0")
    text = "\n".join(report("--against", "b", "--reference", "c"))
    assert "over 2 datasets" in text and "minus b" in text and "was chosen" not in text
    assert "Left out" not in text and text.count("| c |") == 1
    assert "over 1 dataset:" in "\n".join(report("--against", "b"))


def test_a_label_on_few_datasets_is_compared_when_it_is_named(tmp_path: Path, report: Any) -> None:
    datasets = [f"zoo/hopper/{name}-v0" for name in ("medium", "expert", "medium-replay")]
    for dataset in datasets:
        write(tmp_path / "results", "a", [1, 2, 3], dataset)
        write(tmp_path / "results", "b", [1, 2, 3], dataset)
    write(tmp_path / "results", "b long", [4, 5, 6])
    text = "\n".join(report())
    assert "over 3 datasets" in text and "Not compared: b long, on 1 dataset only" in text
    text = "\n".join(report("--only", "b*"))
    assert "over 1 dataset:" in text and "| a |" not in text and "Not compared" not in text
    assert main(["report", str(tmp_path / "results"), "--only", "c"]) == 2
    assert main(["report", str(tmp_path / "results"), "--against", "b long"]) == 2


def test_nothing_in_common_is_said(tmp_path: Path, report: Any) -> None:
    write(tmp_path / "results", "a", [1, 2, 3])
    write(tmp_path / "results", "b", [1, 2, 3], "zoo/hopper/expert-v0")
    text = "\n".join(report("--figures", str(tmp_path / "figures")))
    assert "nothing to compare" in text and "minus" not in text
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["scores.png"]


def test_runs_of_other_settings_under_one_label_are_named(tmp_path: Path, report: Any) -> None:
    write(tmp_path / "results", "a", [1, 2])
    write(tmp_path / "results", "b", [1], steps=500)
    assert not any("mixes" in line for line in report())
    write(tmp_path / "results", "b", [1], steps=600, seed=7)
    assert any("b on zoo/hopper/medium-v0 mixes steps." in line for line in report())
    for seed, expectile in enumerate((0.7, 0.9)):
        own = {"precision": ("bfloat16", "float32")[seed], "expectile": expectile}
        write(tmp_path / "results", "c", [1], seed=seed, config=own)
        write(tmp_path / "results", "d", [1], seed=seed, config=own if seed else {})
        flow = {"flow_steps": 10, "noise_scale": expectile}
        write(tmp_path / "results", "e", [1], seed=seed, flow=flow)
    text = "\n".join(report())
    assert "c on zoo/hopper/medium-v0 mixes expectile." in text
    assert "d on" not in text, "what an older version has not recorded is no disagreement"
    assert "e on zoo/hopper/medium-v0 mixes noise_scale." in text


def test_csv_commands_and_figures(tmp_path: Path, report: Any) -> None:
    write(tmp_path / "results", "a", [1, 2, 3])
    write(tmp_path / "results", "b", [1, 2])
    out, figures = tmp_path / "runs.csv", tmp_path / "new" / "figures"
    lines = report("--csv", str(out), "--figures", str(figures), "--commands")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 and rows[1]["behavior.mean_return"] == "101.0"
    assert rows[0]["config.rho"] == "0.5" and "returns" not in rows[0]
    place = lines.index("# zoo/hopper/medium-v0, b, seed 1")
    assert lines[place + 1] == "flowmdp train df-div hopper-medium --seed 1"
    for name in ("scores.png", "aggregate.png"):
        pixels = imageio.imread(figures / name)[..., :3].reshape(-1, 3).astype(int)
        assert np.ptp(pixels, axis=1).max() > 50, f"{name}: nothing is drawn in colour"


def succeeded(folder: Path, label: str, rates: list[float], task: str, **more: Any) -> None:
    """One result per success rate of 50 episodes, with seeds 0, 1, 2 ..., on one dataset."""
    for seed, rate in enumerate(rates):
        low = {"success_rate": 0.5, "mean_return": -9.0}
        own: dict[str, Any] = {"success_rate": rate, "mean_return": -2.0, "episodes": 50}
        own |= {"behavior": low, "best_evaluation": low, "data": {"success_rate": 0.25}}
        write(folder, label, [100 * rate], "scene-v0", task=task, **{"seed": seed, **own, **more})


def test_curves_are_means_over_runs_and_tasks(tmp_path: Path, report: Any, drawn: Any) -> None:
    """Runs that were evaluated at other steps are compared at those of the first.

    A family's band is of its tasks' seeds, not of the tasks.
    """
    folder = tmp_path / "results"
    first = {"steps": [0, 10], "mean_return": [-9.0, -9.0], "success_rate": [0.0, 0.4]}
    second = {"steps": [0, 20], "mean_return": [-9.0, -9.0], "success_rate": [0.2, 0.6]}
    for task, curve in (("scene-play-task1", first), ("scene-play-task2", second)):
        succeeded(folder, "a", [0.5], task, curve=curve, online={"by": "ppo"})
    write(folder, "b", [10], curve={"steps": [1, 2], "mean_return": [5.0, 7.0]})
    report("--figures", str(tmp_path / "figures"))
    curves = [axes for figure in drawn for axes in figure.axes if axes.get_xlabel()]
    (robots,), (gradients,) = ([a for a in curves if a.get_xlabel() == x] for x in UNITS)
    np.testing.assert_allclose(robots.lines[0].get_xydata(), [[0, 10], [10, 40]])
    np.testing.assert_allclose(gradients.lines[0].get_xydata(), [[1, 5], [2, 7]])
    assert "scene-play" in robots.get_title() and "task1" not in robots.get_title()
    band = {tuple(point) for path in robots.collections[0].get_paths() for point in path.vertices}
    assert band == {(0, 10), (10, 40)}, "one seed of each task has no band"
    legends = [legend.get_texts() for figure in drawn for legend in figure.legends]
    assert [[text.get_text() for text in texts] for texts in legends] == [["b"], ["a"]]
    drawn.clear()
    succeeded(folder, "c", [0.5], "scene-play-task1", curve=first, online={"by": "ppo"})
    report("--figures", str(tmp_path / "figures"))
    (robots,) = (a for figure in drawn for a in figure.axes if a.get_xlabel() == UNITS[0])
    starts = [line.get_xydata()[0].tolist() for line in robots.lines]
    assert starts == [[0, 0], [0, 0]], "means are over the tasks that both labels have"


def test_success_stands_in_tables_of_its_own(tmp_path: Path, report: Any) -> None:
    folder, tasks = tmp_path / "results", [f"scene-play-task{n}" for n in (1, 2)]
    for label in ("a", "b"):
        write(folder, label, [10, 20, 30])
    for task, shift in zip(tasks, (0.0, 0.4), strict=True):
        succeeded(folder, "a", [0.4 + shift, 0.5 + shift, 0.6 + shift], task)
    succeeded(folder, "b", [0.2, 0.2, 0.2], tasks[0])
    for label in ("a", "b"):
        succeeded(folder, label, [1.0], "scene-play")  # the default goal is one of the numbered
    figures = tmp_path / "figures"
    short = report(short=True)
    assert "success rates and normalised scores have no common mean" in short[0]
    text = "\n".join(report("--commands", "--figures", str(figures)))
    lines = text.splitlines()
    assert "Normalised score over 1 dataset:" in text and "Success rate in % over 2 tasks:" in text
    place = lines.index("| task | dataset | data | a | b |")
    assert lines[place + 2 : place + 5] == [
        "| scene-play | scene-v0 | 25.0 |" + 2 * " 100.0 (92.9 to 100.0) † |",
        "| scene-play-task1 | scene-v0 | 25.0 | 50.0 ± 10.0 (42.1 to 57.9) | "
        "20.0 ± 0.0 (14.4 to 27.1) |",
        "| scene-play-task2 | scene-v0 | 25.0 | 90.0 ± 10.0 (84.2 to 93.8) | - |",
    ]
    long = "| scene-play-task1 | builtin | scene-v0 | a | 3 | 25.0 | 50.0 ± 0.0 | 50.0 ± 10.0"
    assert f"{long} | 42.1 to 57.9 | -2.00 ± 0.00 | 50.0 ± 0.0 |" in text
    place = lines.index("| family | dataset | tasks | a | b |")
    family, after = lines[place + 2 : place + 4]
    assert family.startswith("| scene-play | scene-v0 | 2 | 70.0 (6") and family.endswith("| - |")
    assert after == "", "the default goal, one of the numbered, is not counted twice"
    assert "scene-v0 (scene-play-task2, builtin): no b." in text and "tasks ahead" in text
    assert "# scene-play-task2, scene-v0, a, seed 1" in lines
    pictures = {path.name for path in figures.iterdir()}
    assert pictures == {f"{n}.png" for n in ("scores", "aggregate", "success", "success_aggregate")}


def test_a_label_of_one_kind_only(tmp_path: Path, report: Any) -> None:
    write(tmp_path / "results", "returns", [10, 20, 30])
    succeeded(tmp_path / "results", "success", [0.5], "scene-play-task1")
    text = "\n".join(report("--against", "success", "--reference", "returns"))
    assert text.count("| success | 1 †") == 2 and "minus" not in text


def test_run_folders_are_read_by_their_result(tmp_path: Path, report: Any) -> None:
    write(tmp_path / "results", None, [1])
    (run,) = (tmp_path / "results").iterdir()
    for name in ("config.json", "history.json", "other.json"):
        (run / name).write_text("{}")
    assert "| df-div | 1 † |" in report()[2]


def test_the_results_of_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    """All of them in one report, which prints the means of the rows."""
    assert main(["report", str(ROOT / "results")]) == 0
    rows, columns = {}, []
    for line in capsys.readouterr().out.splitlines():
        cells = line.strip("| ").split(" | ")
        if cells[0] == "task":
            columns = cells
        elif "return" in columns and len(cells) == len(columns):
            row = dict(zip(columns, cells, strict=True))
            rows[row["task"], row["dataset"], row["label"]] = row["return"]
    returns: dict[tuple[str, str, str], list[float]] = {}
    for path in (ROOT / "results").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            result = json.loads(line)
            key = result["task"], result["dataset_id"], result["label"]
            returns.setdefault(key, []).append(result["mean_return"])
    assert sum(map(len, returns.values())) >= 1021
    for key, values in returns.items():
        assert rows[key].split(" ± ")[0] == f"{sum(values) / len(values):.0f}"


def test_the_main_table_is_what_the_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    lines = (ROOT / "docs" / "lab" / "main_table.md").read_text(encoding="utf-8").splitlines()
    header = next(line for line in lines if line.startswith("| | data | clone |"))
    labels = [cell.strip().lower().replace("flowbc", "flow-bc") for cell in header.split("|")][4:-1]
    last = next(line for line in lines if line.startswith("| **mean score** |"))
    published = dict(zip(labels, (cell.strip(" *") for cell in last.split("|")[4:-1]), strict=True))
    assert main(["report", str(ROOT / "results" / "main.jsonl")]) == 0
    printed = capsys.readouterr().out
    rows = [
        line.split(" | ") for line in printed[printed.index("| label | seeds | mean") :].split("\n")
    ]
    means = {row[0].strip("| "): row[2] for row in rows if len(row) == 6}
    assert {label: means[label] for label in published} == published


BAD = {
    "": "holds no results",
    "--against c": "no label 'c': there are a, b",
    "--reference c": "no label 'c'",
    "--reference a b": "leaves nothing to compare",
    "--against a --reference a": "leaves nothing to compare",
    "twice": "are both df-div with seed 0 on zoo/hopper/medium-v0",
    "repeated": "table.jsonl, line 6 are both a with seed 0 on zoo/hopper/medium-v0: keep one",
    "foreign": "table.jsonl, line 6 is no result of `flowmdp train` (it lacks algorithm, data, ",
    "nameless": "table.jsonl, line 6 is no result of `flowmdp train` (it lacks label)",
    "half": "table.jsonl, line 6 is damaged (Unterminated string",
    "list": "table.jsonl, line 6 is damaged (not a JSON object): remove the line or restore",
    "binary": "table.jsonl, line 6 is damaged ('utf-8' codec",
    "foreign run": "run/result.json is no result of `flowmdp train` (it lacks algorithm, data, ",
    "damaged run": "run/result.json is damaged",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    if case:
        write(folder, "a", [1, 2, 3])
        write(folder, "b", [1, 2])
    table = folder / "table.jsonl"
    if case == "twice":
        for name in ("first", "again"):
            write(folder / name, None, [1])
    if case == "repeated":
        write(folder, "a", [1])
    first = table.read_bytes().splitlines()[0] if case else b""
    unlabelled = json.dumps({**json.loads(first or b"{}"), "label": None})
    lines = {"foreign": b"{}", "half": b'{"task": "hop', "list": b"[]", "binary": b'{"task": "\xff'}
    lines["nameless"] = unlabelled.replace('"label": null, ', "").encode()
    if case in lines:
        table.write_bytes(table.read_bytes() + lines[case])
    if case.endswith(" run"):
        (folder / "run").mkdir()
        (folder / "run" / "result.json").write_text("{}" if case == "foreign run" else "{")
    options = case.split() if case.startswith("--") else []
    assert main(["report", str(folder), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert BAD[case] in line


def test_no_such_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "no/such/folder"]) == 2
    assert "no/such/folder does not exist" in capsys.readouterr().err
