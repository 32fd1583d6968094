"""The table of tasks, the outer environments it names, and the scores."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import flowmdp
from flowmdp.checks import check_flow_env
from flowmdp.cli import main
from flowmdp.envs.data import load_dataset
from flowmdp.envs.data.sources.behavior import BehaviorPolicy
from flowmdp.envs.data.store import DATASET_ID
from flowmdp.envs.robots.outer import EXTRAS, make_outer
from flowmdp.envs.scores import normalized_score
from flowmdp.envs.tasks import SOURCES, TASKS, Task, families, get_task
from flowmdp.errors import UnknownTaskError
from tests.runs.tiny_run import tiny_run

ROWS = pytest.mark.parametrize("row", TASKS.values(), ids=TASKS)
OTHERS = {name: row for name, row in TASKS.items() if not row.ogbench}  # see test_ogbench.py
MADE = pytest.mark.parametrize("row", OTHERS.values(), ids=OTHERS)


@ROWS
def test_row_is_complete(row: Task) -> None:
    assert set(row.datasets) <= set(row.outer_env) <= set(SOURCES)
    assert row.robot and row.source() in row.datasets
    assert all(DATASET_ID.fullmatch(dataset_id) for dataset_id in row.datasets.values())
    assert ("builtin" in row.datasets) == (
        bool(row.behaviors) or row.planner or "-singletask" in row.outer_env.get("builtin", "")
    )
    assert bool(row.reference_origin) == (row.references is not None)
    assert row.references is None or row.references[0] < row.references[1]
    assert ("d4rl" in row.datasets) == bool(row.d4rl_file)
    assert json.loads(json.dumps(dict(row.options))) == row.options
    assert row.extra in ("", *EXTRAS)


def test_every_setting_of_the_paper_is_there() -> None:
    robots = ("hopper", "halfcheetah", "walker2d")
    kinds = ("medium", "medium-replay", "medium-expert", "expert")
    mazes = ("open", "umaze", "medium", "large")
    hands, recorded = ("pen", "hammer", "door", "relocate"), ("human", "cloned", "expert")
    assert set(TASKS) >= {f"{robot}-{kind}" for robot in robots for kind in kinds}
    assert set(TASKS) >= {f"pointmaze-{maze}{r}" for maze in mazes for r in ("", "-dense")}
    assert set(TASKS) >= {f"{hand}-{kind}" for hand in hands for kind in recorded}
    horizons = {hand: get_task(f"{hand}-human").horizon for hand in hands}
    assert horizons == {"pen": 100, "hammer": 200, "door": 200, "relocate": 200}


@MADE
def test_outer_env_has_flat_spaces_and_the_tasks_horizon(row: Task) -> None:
    outer = make_outer(row.name)
    assert isinstance(outer.observation_space, gym.spaces.Box)
    assert len(outer.observation_space.shape) == 1
    assert isinstance(outer.action_space, gym.spaces.Box)
    assert (outer.action_space.low == -1).all() and (outer.action_space.high == 1).all()
    assert outer.spec is not None and outer.spec.max_episode_steps == row.horizon
    outer.close()


@MADE
def test_shipped_policies_fit_the_outer_env(row: Task) -> None:
    outer = make_outer(row.name)
    for name in row.behaviors:
        policy = BehaviorPolicy.shipped(name)
        assert (policy.obs_dim,) == outer.observation_space.shape
        assert (policy.action_dim,) == outer.action_space.shape
        assert policy.provenance["env_id"] == row.outer_env["builtin"]
        assert {"command", "seed", "versions", "returns"} <= set(policy.provenance)
    outer.close()


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownTaskError, match=r"did you mean hopper-medium"):
        get_task("hoper-medium")
    with pytest.raises(UnknownTaskError, match=r"choose one of .*hopper-medium"):
        get_task("xyzzy")
    for name, cure in {
        "scene-play-taskone": "has tasks 1 to 5",
        "scene-play-task6": "has tasks 1 to 5",
        "scene-play-task1-sparse": "did you mean scene-play-sparse-task1",
        "scene-play-task1-spare": "has tasks 1 to 5",
        "scene-play-singletask-task1-v0": "here its name is scene-play-task1$",
        "antmaze-large-navigate-singletask-v0": "here its name is antmaze-large-navigate$",
        "scene-play-v0": "here its name is scene-play$",
        "hopper-medium-v2": "here its name is hopper-medium$",
    }.items():
        with pytest.raises(UnknownTaskError, match=cure):
            get_task(name)
    with pytest.raises(UnknownTaskError, match=r"no source 'd5rl': choose one of builtin"):
        make_outer("hopper-medium", "d5rl")


def test_sources_decide_the_environments_version() -> None:
    versions = dict(get_task("hopper-medium").outer_env)
    assert versions == {"builtin": "Hopper-v5", "minari": "Hopper-v5", "d4rl": "Hopper-v4"}


def test_scores() -> None:
    scores = normalized_score("hopper-medium", [[-20.272305, 3234.3]])
    assert scores is not None
    np.testing.assert_allclose(scores, [[0.0, 100.0]], atol=1e-9)
    half = normalized_score("walker2d-medium", 2296.964504)
    assert half is not None and float(half) == pytest.approx(50.0)


def test_tasks_without_references_have_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Task("bare", {"builtin": "Hopper-v5"}, {}, horizon=1000)
    monkeypatch.setitem(TASKS, "bare", bare)
    assert normalized_score("bare", 1.0) is None


def test_adding_a_task_is_one_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row alone gives the environment, the data, training, evaluation, and a line of the list."""
    row = Task(
        "hopper-slow",
        {"builtin": "Hopper-v5"},
        {"builtin": "flowmdp/hopper/slow-v0"},
        horizon=50,
        behaviors=("hopper-medium",),
        options={"frame_skip": 8},
    )
    monkeypatch.setitem(TASKS, row.name, row)
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)
    flowmdp.register_envs()
    env = gym.make("FlowMDP-hopper-slow-v0")
    check_flow_env(env)
    env.close()
    assert main(["data", "build", "hopper-slow", "--steps", "200"]) == 0
    assert len(load_dataset("hopper-slow")) == 200
    run = str(tmp_path / "run")
    assert main(tiny_run("flow-bc", Path(run), task="hopper-slow")) == 0
    assert main(["eval", run, "--episodes", "1"]) == 0
    assert main(["tasks"]) == 0
    assert "hopper-slow" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "module", "tasks"),
    [
        ("robotics", "gymnasium_robotics", ("pointmaze-umaze", "door-human")),
        ("ogbench", "ogbench", ("scene-play-task1", "antmaze-medium-navigate")),
    ],
)
def test_without_the_extra_a_line_names_it(
    extra: str,
    module: str,
    tasks: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for task in tasks:
        with pytest.raises(UnknownTaskError, match=rf'pip install "flowmdp\[{extra}\]"'):
            gym.make(f"FlowMDP-{task}-v0")
    assert main(["data", "build", tasks[0]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'pip install "flowmdp[{extra}]"' in line
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "flowmdp.envs.data.listing.importlib.util.find_spec",
        lambda name: None if name == module else find(name),
    )
    assert main(["tasks"]) == 0
    out = capsys.readouterr().out
    assert f'not installed: pip install "flowmdp[{extra}]"' in out
    assert tasks[0].removesuffix("-task1") in out.splitlines()[-1]


BAD = {
    "data build pen-human": "no source 'builtin': choose one of minari, d4rl",
    "data build pointmaze-umaz": "did you mean pointmaze-umaze",
    "data build pointmaze-umaze --steps 0": "steps is 0",
    "data import none.hdf5 --task door-human": "none.hdf5 does not exist",
    "data import pen-human-v1.hdf5 --task pen-expert": "file of pen-human, not of pen-expert",
    "data import door-human-v0.hdf5 --task door-human": "another version",
    "data import maze2d-umaze-v1.hdf5 --task pointmaze-umaze": "no source 'd4rl'",
    "train flow-bc pen-human": "flowmdp data download pen-human",
    "train flow-bc pen-human --source d4rl": "flowmdp data import FILE.hdf5 --task pen-human",
    "train flow-bc pointmaze-umaze --source d4rl": "no source 'd4rl': choose one of builtin",
    "train flow-bc pointmaze-umaze --source minari": "flowmdp data download pointmaze-umaze",
    "train flow-bc scene-play-task6": "scene-play has tasks 1 to 5",
    "train flow-bc scene-play --source ogbench": "flowmdp data download scene-play",
    "train flow-bc antmaze-large-navigate": "flowmdp data download antmaze-large-navigate",
    "data build antmaze-large-navigate": "no source 'builtin': choose one of ogbench",
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_gets_one_line(
    command: str, datasets_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flowmdp: ") and BAD[command] in line
    assert not datasets_path.exists(), "nothing half-written is left"


def test_the_list_tells_what_is_here_and_what_is_not_available(
    hopper_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks"]) == 0
    lines: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        if line.split()[:1] and line.split()[0] in TASKS:
            lines[line.split()[0]] = line.split()[1:]
    assert set(lines) == set(families())
    assert lines["hopper-medium"] == ["Hopper-v5", "here*", "download", "import"]
    assert lines["hopper-medium-replay"] == ["Hopper-v5", "build*", "-", "import"]
    assert lines["pointmaze-large"] == ["PointMaze_Large-v3", "build*", "download", "-"]
    assert lines["pen-human"] == ["AdroitHandPen-v1", "-", "download*", "import"]
    assert lines["scene-play"] == ["scene-singletask-v0", "build*", "download"]
    assert lines["antmaze-giant-navigate"] == ["antmaze-giant-singletask-v0", "-", "download"]


def test_the_table_needs_no_library() -> None:
    code = (
        "import sys, flowmdp.envs.tasks; "
        "print(sorted({'torch', 'mujoco', 'minari', 'h5py', 'safetensors'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
