"""The command: the whole job in small, what it leaves, Ctrl-C, and bad input of every kind."""

from __future__ import annotations

import contextlib
import errno
import inspect
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowmdp.agents import ALGORITHMS, load_agent
from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.config import documented
from flowmdp.cli import main, parse
from flowmdp.compare.report import run_report
from flowmdp.runs.config import FLOW, QUICK, get_algorithm, make_config
from flowmdp.runs.folder import read_progress
from tests.runs.tiny_run import failure, tiny_run

RESULT = {
    "task": "hopper-medium",
    "source": "builtin",
    "dataset_id": "flowmdp/hopper/medium-v0",
    "seed": 0,
}


def train(algorithm: str, out: Path, *more: str, steps: int = 20) -> int:
    """`flowmdp train` on hopper-medium, as small as it gets."""
    return main(tiny_run(algorithm, out, *more, steps=steps))


@pytest.fixture
def run(runs: dict[str, Path], hopper_data: Path, tmp_path: Path) -> Path:
    """A copy of the finished DF-div run."""
    return Path(shutil.copytree(runs["df-div"], tmp_path / "run"))


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_main_job_leaves_everything(runs: dict[str, Path], algorithm: str) -> None:
    folder = runs[algorithm]
    names = {path.name.split(".tfevents")[0] for path in folder.iterdir()}
    assert names == {
        "checkpoint.zip",
        "config.json",
        "curves.png",
        "events.out",
        "history.json",
        "progress.csv",
        "result.json",
    }
    result = json.loads((folder / "result.json").read_text())
    assert {name: result[name] for name in RESULT} == RESULT
    assert result["algorithm"] == algorithm and result["steps"] == 20
    assert len(result["returns"]) == result["episodes"] == 2
    assert result["mean_return"] == pytest.approx(sum(result["returns"]) / 2)
    assert result["last_evaluations"]["episodes"] == 3
    assert result["last_evaluations"]["steps"] == [16, 18, 20]
    best = result["best_evaluation"]
    assert "not the result" in best["note"] and best["mean_return"] >= 0
    ways = result["sampled"], result["noiseless"]
    assert all(len(way["returns"]) == 2 for way in ways)
    assert result["returns"] in [way["returns"] for way in ways]
    assert bool(result["behavior"]) == ALGORITHMS[algorithm].shows_behavior
    assert result["data"]["episodes"] > 1
    assert result["flow"]["flow_steps"] == (ALGORITHMS[algorithm].only_flow_steps or 10)
    assert result["updates_per_second"] > 0 and result["wall_seconds"] > 0
    assert {"python", "torch", "mujoco", "flowmdp"} <= set(result["versions"])
    agent = load_agent(folder / "checkpoint.zip")
    assert get_algorithm(algorithm).config_class.of(result["config"]) == agent.config
    assert result["flow"] == {name: getattr(agent.spec, name) for name in FLOW} | {
        "velocity_scale": None
    }
    config = json.loads((folder / "config.json").read_text())
    assert {name: config[name] for name in ("flow", "config")} == {
        name: result[name] for name in ("flow", "config")
    }
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    series = read_progress(folder / "progress.csv")
    assert [step for step, _ in series["evaluation/mean_return"]] == list(range(2, 21, 2))


def test_pretraining_is_cached_and_changes_nothing(
    runs: dict[str, Path], hopper_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("df-div", tmp_path / "again") == 0
    captured = capsys.readouterr()
    assert "behaviour flow from" in captured.err and "critic from" in captured.err
    for name in ("df-div", "behaviour flow", "data", "score"):
        assert name in captured.out
    before, after = (
        json.loads((folder / "result.json").read_text())
        for folder in (runs["df-div"], tmp_path / "again")
    )
    assert after["returns"] == before["returns"]


def test_damaged_cache_is_trained_again(
    hopper_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FLOWMDP_CACHE", str(tmp_path / "cache"))
    assert train("df-div", tmp_path / "one") == 0
    files = sorted((tmp_path / "cache").rglob("*.zip"))
    assert [file.name.split("-")[0] for file in files] == ["behavior", "critic"]
    before = [checkpoint.read(file).manifest for file in files]
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])
    assert train("df-div", tmp_path / "two") == 0
    assert capsys.readouterr().err.count("training it again") == 2
    assert [checkpoint.read(file).manifest for file in files] == before


@pytest.mark.parametrize("words", [[], ["--help"], ["data", "--help"], ["trian"], ["tasks", ""]])
def test_the_script_answers_as_the_command_and_imports_nothing(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys, atexit; atexit.register(lambda: print(*sys.modules))\n"
    code += "from flowmdp_command import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    with contextlib.suppress(SystemExit):
        assert main(words) == 2
    wanted = capsys.readouterr()
    assert (wanted.out or wanted.err) and process.stderr == wanted.err
    assert process.stdout.startswith(wanted.out)
    assert not {"numpy", "gymnasium", "tyro", "flowmdp"} & {*process.stdout.split("\n")[-2].split()}


def test_the_script_runs_the_command() -> None:
    words = [sys.executable, "-c", "from flowmdp_command import main; raise SystemExit(main())"]
    process = subprocess.run([*words, "tasks"], capture_output=True, text=True, check=True)
    assert "hopper-medium" in process.stdout
    process = subprocess.run(
        [*words, "tasks", "--odd"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 2 and "--odd" in process.stderr


@pytest.mark.parametrize(
    "arguments", [["tasks"], ["bench", "table.toml", "--list"], ["train", "--help"]]
)
def test_a_reader_that_leaves_early_is_no_message(arguments: list[str], tmp_path: Path) -> None:
    table = '[run]\nseeds = [1]\n[[tasks]]\ntask = "hopper-medium"\n[algorithms.df-div]\n'
    (tmp_path / "table.toml").write_text(table)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-P", "-m", "flowmdp.cli", *arguments]
    process = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (1, "")


def test_ctrl_c_saves_and_resume_equals_an_uninterrupted_run(
    hopper_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, whole, broken = 120, tmp_path / "whole", tmp_path / "broken"
    options = ["--eval-every", "60", "--save-every", "1000"]
    code = "import sys; from flowmdp.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *tiny_run("df-div", broken, *options, steps=steps)],
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and "train/policy_loss" not in _text(broken / "progress.csv"):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"flowmdp train --resume {broken}" in stderr
    assert (broken / "checkpoint.zip").exists() and not (broken / "result.json").exists()
    assert main(["train", "--resume", str(broken)]) == 0
    assert train("df-div", whole, *options, steps=steps) == 0
    results = [json.loads((folder / "result.json").read_text()) for folder in (broken, whole)]
    assert results[0]["returns"] == results[1]["returns"]
    assert results[0]["best_evaluation"] == results[1]["best_evaluation"]
    capsys.readouterr()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_resume_goes_on_to_a_higher_goal(run: Path) -> None:
    assert main(["train", "--resume", str(run), "--steps", "30"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 30
    assert json.loads((run / "history.json").read_text())["updates"] == 30


def test_eval_and_its_options(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def returns(*options: str) -> Any:
        capsys.readouterr()
        assert main(["eval", str(run), "--episodes", "2", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["returns"]

    assert returns() == returns()
    assert returns() != returns("--seed", "9")
    assert len(returns("--behavior")) == 2
    assert len(returns("--solver", "heun", "--flow-steps", "3")) == 2
    assert returns("--behavior", "--flow-steps", "3") != returns("--behavior")
    assert main(["eval", str(run / "checkpoint.zip"), "--episodes", "1"]) == 0
    assert "hopper-medium" in capsys.readouterr().out


def test_best_of_needs_a_critic(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(capsys, "eval", str(runs["flow-bc"]), "--best-of", "2")
    assert "--best-of" in line and "flow-bc" in line and "leave it out" in line
    assert main(["eval", str(runs["iql"]), "--best-of", "2", "--episodes", "1"]) == 0


def test_one_step_agents_take_no_flow_steps(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    line = failure(capsys, "eval", str(runs["iql"]), "--flow-steps", "5")
    assert "IQL acts in 1 step" in line and "leave out" in line
    assert main(["eval", str(runs["iql"]), "--flow-steps", "1", "--episodes", "1"]) == 0


def test_tasks_data_and_plot_speak(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, word in (
        (["tasks"], "hopper-medium"),
        (["data", "list"], "flowmdp/hopper/medium-v0"),
        (["data", "info", "hopper-medium"], "3,000"),
        (["data", "build", "hopper-medium", "--steps", "3000"], "flowmdp/hopper/medium-v0"),
        (["plot", str(run), "--out", str(run / "figure.svg")], "figure.svg"),
        (["--version"], "flowmdp 0."),
    ):
        assert main(argv) == 0
        assert word in capsys.readouterr().out
    assert "<svg" in (run / "figure.svg").read_text()


DATA = ["data", *(f"data {name}" for name in ("build", "list", "info", "download", "import"))]


@pytest.mark.parametrize(
    "command", ["", "tasks", *DATA, "train", "eval", "record", "plot", "bench", "report"]
)
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert error.value.code == 0
    assert f"\n  flowmdp {command}".rstrip() in text
    if command == "train":
        assert all(name in text for name in ALGORITHMS)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_help_of_an_algorithm_shows_every_hyperparameter(
    algorithm: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit):
        main(["train", algorithm, "--help"])
    shown = capsys.readouterr().out
    config_class = ALGORITHMS[algorithm].config_class
    for name, text in documented(config_class).items():
        option = name.replace("_", "-")
        assert f"--{option} " in shown or f"--no-{option} " in shown
        assert text and " ".join(text.split()[:4]) in shown
        assert f"{name}:" in str(ALGORITHMS[algorithm].__doc__)
    assert set(documented(config_class)) <= set(inspect.signature(ALGORITHMS[algorithm]).parameters)


def test_quick_names_hyperparameters_the_algorithms_have() -> None:
    assert set(QUICK) - {"steps"} <= set(documented(get_algorithm("df-div").config_class))


BAD = {
    "train df-div hoper-medium": "did you mean hopper-medium",
    "train df-dvi hopper-medium": "flow-bc, df-dir, df-div",
    "train df-div --seed 1": "name a task, or --env",
    "train": "name an algorithm and a task",
    "train df-div": "name a task, or --env",
    "trian df-div hopper-medium": "did you mean train",
    "data biuld": "did you mean data build",
    "nothing": "there are tasks, data build",
    "train df-div hopper-medium --steps -1": "--steps is -1",
    "train df-div hopper-medium --flow-steps 0": "flow_steps is 0",
    "train df-div hopper-medium --seed -1": "--seed is -1",
    "train df-div hopper-medium --episodes 0": "--episodes is 0",
    "train df-div hopper-medium --rho": "--rho",
    "train df-div hopper-medium --roh 1": "did you mean --rho",
    "train df-div hopper-medium --rho -1": "rho is -1",
    "train iql hopper-medium --paper": "no other setting",
    "train iql hopper-medium --behavior-steps 5": "--behavior-steps",
    "train df-div hopper-medium --rho much": "'much'",
    "train df-div hopper-medium --learning-rate -1": "learning_rate is -1",
    "train df-div hopper-medium --net-arch -5": "net_arch is -5",
    "train df-div hopper-medium --noise-scale abc": "'abc'",
    "train df-div hopper-medium --noise-scale -1": "noise_scale is -1",
    "train df-div hopper-medium --velocity-scale 0": "velocity_scale is 0",
    "train df-div hopper-medium --batch-size 1.5": "'1.5'",
    "train df-div hopper-medium --seed 4294967296": "seed is 4294967296",
    "train df-div hopper-medium --critic best": "'td', 'iql'",
    "train df-div hopper-medium --stepps 1": "did you mean --steps",
    "train df-div hopper-medium --dataset no/such-v0": "no/such-v0",
    "train df-div hopper-medium --dataset nonsense": "malformed dataset id",
    "train df-div door-human": "flowmdp data download door-human",
    "train df-div hopper-medium --source minari": "mujoco/hopper/medium-v0",
    "train --resume OUT": "no config.json",
    "data info no/such-v0": "record it or copy it there",
    "data build hopper-medium --steps 0": "steps is 0",
    "eval OUT": "does not exist",
    "eval OUT --seed -1": "--seed is -1",
    "eval OUT --best-of 0": "--best-of is 0",
    "record OUT --out OUT.gif": "use a name ending in",
    "record OUT --steps 0": "--steps is 0",
    "record OUT --seed -1": "--seed is -1",
    "record OUT --out OUT/no/video.mp4": "create it",
    "plot OUT": "holds no run",
    "train df-div hopper-medium --out /dev/null": "is a file",
    "train df-div hopper-medium --out /dev/null/run": "/dev/null is a file",
}


@pytest.mark.parametrize("name", ["df-dir", "df-div"])
def test_the_papers_setting_takes_one_word(name: str) -> None:
    def config(*words: str) -> dict[str, Any]:
        _, arguments = parse(["train", name, "hopper-medium", "--paper", *words])
        del arguments["out"], arguments["seeds"], arguments["verbose"]
        return make_config(**arguments)

    paper, given = get_algorithm(name).paper, config("--rho", "3")
    assert {key: given["config"][key] for key in paper} == {**paper, "rho": 3}
    assert given["flow"]["noise_scale"] == 1.0
    assert config("--quick")["config"]["critic_steps"] == 5_000, "the paper's setting too"
    assert config("--quick", "--critic-steps", "7")["config"]["critic_steps"] == 7


def test_options_of_several_words_add_up_when_repeated() -> None:
    command, arguments = parse("report results --only df-div iql --acting both --only fql".split())
    assert command is run_report and arguments["only"] == ("df-div", "iql", "fql")
    assert arguments["results"] == (Path("results"),) and arguments["reference"] == ()


def test_a_run_plays_in_the_environment_of_its_algorithms_defaults() -> None:
    def noise(name: str, **flow: Any) -> Any:
        return make_config(name, "hopper-medium", **flow)["flow"]["noise_scale"]

    assert noise("df-div") == 0.3 and noise("df-div", noise_scale=1.0) == 1.0
    assert noise("flow-bc") == 1.0


@pytest.mark.parametrize("command", BAD)
def test_bad_input_gets_one_line(
    command: str, hopper_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command.replace("OUT", str(tmp_path / "out")).split()
    if argv[:2] == ["train", "df-div"] and "--out" not in argv:
        argv += ["--out", str(tmp_path / "out")]
    assert BAD[command] in failure(capsys, *argv)
    assert not (tmp_path / "out").exists(), "bad input leaves nothing behind"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder nobody can write to")
def test_no_permission(
    datasets_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failure(capsys, "train", "df-div", "hopper-medium", "--out", "/sys/flowmdp-run")
    assert "no permission to read or write /sys/flowmdp-run: choose another folder" in line
    assert not datasets_path.exists(), "no data is built for a run that has no place"
    (tmp_path / "config.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", _forbidden)
        line = failure(capsys, "plot", str(tmp_path))
    assert f"no permission to read or write {tmp_path / 'config.json'}: " in line


def _forbidden(path: Path, **_: str) -> str:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_runs_are_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "checkpoint.zip").read_bytes()
    line = failure(capsys, "train", "df-div", "hopper-medium", "--out", str(run))
    assert "already holds a run" in line and f"--resume {run}" in line
    line = failure(capsys, "train", "--resume", str(run), "--seed", "3")
    assert "--seed cannot change" in line
    line = failure(capsys, "train", "--resume", str(run), "--steps", "5")
    assert "raise it" in line
    assert (run / "checkpoint.zip").read_bytes() == before


def test_checkpoints_of_others_and_damaged_ones(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "belongs to hopper-medium" in failure(
        capsys, "eval", str(run), "--task", "walker2d-medium"
    )
    config = json.loads((run / "config.json").read_text())
    flow = config["flow"] | {"flow_steps": 5}
    (run / "config.json").write_text(json.dumps({**config, "flow": flow}))
    assert "flow_steps" in failure(capsys, "train", "--resume", str(run), "--steps", "40")
    faster = json.dumps({**config, "config": {**config["config"], "learning_rate": 0.5}})
    (run / "config.json").write_text(faster)
    line = failure(capsys, "train", "--resume", str(run), "--steps", "40")
    assert "learning_rate 0.5, the checkpoint 0.0003: hyper-parameters cannot change" in line
    assert (run / "config.json").read_text() == faster, "the goal moves with a run that can go on"
    history = json.loads((run / "history.json").read_text())
    older = {name: value for name, value in config["config"].items() if name != "best_of"}
    (run / "config.json").write_text(json.dumps({**config, "config": older}))
    (run / "history.json").write_text(json.dumps({"evaluations": history["evaluations"]}))
    line = failure(capsys, "train", "--resume", str(run), "--steps", "40")
    assert "(it lacks seconds, update_seconds, updates): restore it" in line
    (run / "history.json").write_text(json.dumps(history))
    whole = (run / "checkpoint.zip").read_bytes()
    (run / "checkpoint.zip").write_bytes(whole[:500])
    assert "damaged" in failure(capsys, "eval", str(run))
    (run / "config.json").write_text("{")
    assert "damaged" in failure(capsys, "train", "--resume", str(run))
    del config["seed"]
    (run / "config.json").write_text(json.dumps(config))
    assert "(it lacks seed)" in failure(capsys, "plot", str(run))


def test_a_picture_for_a_folder_that_is_not_there(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failure(capsys, "plot", str(run), "--out", str(run / "no" / "curves.png"))
    assert line == f"flowmdp: no such folder, create it: {run / 'no'}"


@pytest.fixture
def small_files(run: Path) -> Iterator[Path]:
    """No file may grow to the size of the checkpoint, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (run / "checkpoint.zip").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
    yield run
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_keeps_the_old_checkpoint(
    small_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (small_files / "checkpoint.zip").read_bytes()
    line = failure(capsys, "train", "--resume", str(small_files), "--steps", "40")
    assert "disk is full" in line
    assert (small_files / "checkpoint.zip").read_bytes() == before
    assert [path for path in small_files.iterdir() if path.name.startswith(".")] == []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1], limits[1]))
    assert main(["train", "--resume", str(small_files), "--steps", "40"]) == 0
