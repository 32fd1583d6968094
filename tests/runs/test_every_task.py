"""For every task that can be had here: data, training, evaluation and a video, as small as it gets.

The default run takes one task of each kind, `make slow` takes them all.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flowmdp.cli import main
from flowmdp.envs.robots.outer import EXTRAS
from flowmdp.envs.tasks import TASKS, families, get_task
from tests.envs.d4rl_by_hand import rollout, write_d4rl
from tests.runs.tiny_run import tiny_run

QUICK = ("pointmaze-umaze", "pen-human", "walker2d-expert")
HERE = [row.name for row, *_ in families().values() if list(row.datasets) != ["ogbench"]]
"""Of OGBench's only those that have builtin data, with their default goal."""


def obtain(task: str, folder: Path) -> str:
    """Get the task's data as a user would, and say of which source it is."""
    if "builtin" in get_task(task).datasets:
        size = ["--episodes", "1"] if get_task(task).ogbench else ["--steps", "300"]
        assert main(["data", "build", task, *size]) == 0
        return "builtin"
    path = write_d4rl(folder, task, rollout(task, episodes=3, length=30))
    assert main(["data", "import", str(path), "--task", task]) == 0
    return "d4rl"


@pytest.mark.parametrize(
    "task", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in HERE]
)
def test_from_data_to_video(
    task: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if TASKS[task].extra:
        pytest.importorskip(EXTRAS[TASKS[task].extra])
    monkeypatch.setitem(TASKS, task, replace(TASKS[task], horizon=30))
    source = obtain(task, tmp_path)
    run = tmp_path / "run"
    assert main(tiny_run("flow-bc", run, "--source", source, task=task)) == 0
    assert main(["eval", str(run), "--episodes", "1"]) == 0
    assert task in capsys.readouterr().out
    video = tmp_path / "video.mp4"
    code = main(["record", str(run), "--out", str(video), "--steps", "2"])
    assert code == 0 or "no OpenGL" in capsys.readouterr().err
    assert code or video.stat().st_size > 1_000
