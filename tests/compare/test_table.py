"""The table of `flowmdp bench`: what a job is, and bad tables."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from flowmdp.cli import main, parse
from flowmdp.compare.table import read_table
from flowmdp.envs.tasks import TASKS, Task
from flowmdp.runs.config import make_config
from flowmdp.runs.train import train

DATA = "flowmdp-hopper-medium-v0"
TABLE = """
[run]
seeds = [1, 2]
steps = 5
[[tasks]]
task = "hopper-medium"
[algorithms.df-div]
[algorithms.clone]
algorithm = "flow-bc"
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TABLE as the only file in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = Path("table.toml")
    path.write_text(TABLE)
    return path


def test_tasks_that_share_a_dataset_are_jobs_of_their_own(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("scene-task1", "scene-task2"):
        ids = {"builtin": "Pendulum-v1"}, {"builtin": "flowmdp/scene-v0"}
        monkeypatch.setitem(TASKS, name, Task(name, *ids, success=True))
    lines = [f'[[tasks]]\ntask = "{name}"' for name in ("scene-task1", "scene-task2")]
    table.write_text("\n".join([*lines, "[algorithms.flow-bc]"]))
    names = [job.name for job in read_table(table)]
    assert names == [f"scene-task{n}_flowmdp-scene-v0_flow-bc_seed0" for n in (1, 2)]


def test_the_listed_command_is_the_job(table: Path) -> None:
    table.write_text(
        TABLE.replace("[run]", '[run]\nepisodes = 20\ndevice = "cpu"')
        + 'flow_steps = 5\n[algorithms."df/div, T"]\nalgorithm = "df-dir"\n'
        'net_arch = [16, 16]\ncritic = "iql"\nrho = 0.5\nbudget = "None"\n'
        "include_previous_action = true\ninclude_time = false\ncuda_graphs = false\n"
        "[algorithms.usual]\nalgorithm = 'df-dir'\nquick = true\n"
        "include_previous_action = false\ninclude_time = true\ncuda_graphs = true\npaper = true\n"
    )
    jobs = read_table(table)
    assert jobs[2].name == f"{DATA}_df-div-T_seed1"
    for job in jobs:
        command, arguments = parse(shlex.split(shlex.join(job.command))[1:])
        assert command is train
        for name in ("out", "seeds", "verbose"):
            arguments.pop(name)
        config = make_config(**arguments)
        assert {**config, "command": ""} == {**job.config, "command": ""}
        assert config["episodes"] == 20 and "--episodes 20" in shlex.join(job.command)
    changed = jobs[2].config
    assert changed["flow"]["include_previous_action"] and not changed["flow"]["include_time"]
    own = {"net_arch": [16, 16], "critic": "iql", "rho": 0.5, "budget": None, "cuda_graphs": False}
    assert changed["config"] == {**changed["config"], **own}
    assert jobs[1].config["flow"]["flow_steps"] == 5


def test_what_all_algorithms_share_is_said_once(table: Path) -> None:
    shared = "[run]\nnet_arch = [16]\ncritic_steps = 7\nnoise_scale = 0.5\nsteps = 6"
    table.write_text(TABLE.replace("[run]\n", f"{shared}\n").replace("steps = 5\n", ""))
    with table.open("a") as file:
        file.write("steps = 8\n")
    df_div, clone = read_table(table)[:2]
    assert df_div.config["config"]["critic_steps"] == 7 and df_div.config["steps"] == 6
    assert "critic_steps" not in clone.config["config"], "it has none"
    assert clone.config["steps"] == 8, "an algorithm's own goes before"
    for job in (df_div, clone):
        assert job.config["config"]["net_arch"] == [16]
        assert job.config["flow"]["noise_scale"] == 0.5


TASK, AGENT = '[[tasks]]\ntask = "hopper-medium"\n', "[algorithms.df-div]\n"
BAD = {
    "": "there is no [[tasks]]",
    TASK: "there is no [algorithms.NAME]",
    AGENT: "there is no [[tasks]]",
    "[run\n": "is no TOML file",
    "[runs]\n" + TASK + AGENT: "unknown key 'runs'",
    "[run]\nseed = 1\n" + TASK + AGENT: "[run] has the unknown key 'seed'",
    "[run]\nseeds = []\n" + TASK + AGENT: "[run] seeds is []",
    "[run]\nseeds = [1, true]\n" + TASK + AGENT: "[run] seeds is [1, True]",
    "[run]\nseeds = [1, 2, 1]\n" + TASK + AGENT: "two jobs are called flowmdp-hopper-medium-v0_df-",
    "[run]\nseeds = [-1]\n" + TASK + AGENT: "--seed is -1",
    "[run]\nepisodes = 0\n" + TASK + AGENT: "--episodes is 0",
    '[run]\nepisodes = "5"\n' + TASK + AGENT: "--episodes is '5'",
    '[run]\ndevice = "tpu"\n' + TASK + AGENT: "device is 'tpu'",
    "run = 5\n" + TASK + AGENT: "write [run]",
    "[run]\nset = 5\n" + TASK + AGENT: "[run] has the unknown key 'set'",
    "[run]\nalpha = 1.0\n" + TASK + AGENT: "[run] has the unknown key 'alpha'",
    '[run]\nalgorithm = "iql"\n' + TASK + AGENT: "[run] has the unknown key 'algorithm'",
    "[run]\nquick = 1\n" + TASK + AGENT: "[run] quick is 1: write true or false",
    '[run]\nnoise_scale = "x"\n' + TASK + AGENT: "noise_scale is 'x'",
    '[tasks]\ntask = "hopper-medium"\n' + AGENT: "write [[tasks]]",
    'tasks = ["hopper-medium"]\n' + AGENT: "[[tasks]] is 'hopper-medium'",
    '[[tasks]]\nsource = "minari"\n' + AGENT: "names no task",
    '[[tasks]]\ntask = "hoper-medium"\n' + AGENT: "did you mean hopper-medium",
    '[[tasks]]\ntask = "hopper-medium"\nsource = "web"\n' + AGENT: "no source 'web'",
    '[[tasks]]\ntask = "hopper-medium"\ndataset = "mine"\n' + AGENT: "malformed dataset id",
    '[[tasks]]\ntask = "hopper-medium"\nsteps = 5\n' + AGENT: "[[tasks]] has the unknown key",
    TASK + TASK + AGENT: "two jobs are called flowmdp-hopper-medium-v0_df-div_seed0: name",
    TASK + "[algorithms.df-dvi]\n": "unknown algorithm 'df-dvi'",
    TASK + "[algorithms]\ndf-div = 5\n": "[algorithms.df-div] is 5",
    TASK
    + AGENT
    + "roh = 0.3\n": "[algorithms.df-div] has the unknown key 'roh': did you mean rho?",
    TASK + AGENT + "seed = 3\n": "unknown key 'seed'",
    TASK + AGENT + "steps = 1.5\n": "steps is 1.5",
    TASK + AGENT + "set = { rho = 1 }\n": "unknown key 'set'",
    TASK + AGENT + "rho = { a = 1 }\n": "rho is {'a': 1}",
    TASK + AGENT + "rho = -1.0\n": "[algorithms.df-div] on hopper-medium: rho is -1.0",
    TASK + AGENT + "algorithm = 5\n": "algorithm is 5: write a word",
    TASK + AGENT + '[algorithms."a/b"]\nalgorithm="df-div"\n[algorithms."a-b"]\nalgorithm="df-div"'
    "": "two jobs are called flowmdp-hopper-medium-v0_a-b_seed0",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_tables_get_one_line(
    text: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.write_text(text)
    assert main(["bench", "table.toml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flowmdp: table.toml") and BAD[text] in line
    assert list(Path().iterdir()) == [table], "a bad table starts nothing"
