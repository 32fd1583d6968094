"""Importing files in the layout of D4RL's Adroit v1 data, and refusing those of other tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from flowmdp.cli import main
from flowmdp.envs.data import load_dataset
from flowmdp.envs.data.sources.d4rl import import_d4rl
from flowmdp.envs.data.store import list_datasets, read_metadata
from flowmdp.envs.tasks import get_task
from flowmdp.errors import DatasetError, UnknownTaskError
from tests.envs.d4rl_by_hand import rollout, write_d4rl

pytest.importorskip("gymnasium_robotics")


@pytest.mark.parametrize("task", ["pen-expert", "hammer-cloned", "door-human", "relocate-human"])
def test_a_rollout_comes_back(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the steps that timed out: what followed them is not in the file."""
    arrays = rollout(task, episodes=4, length=60)
    dataset_id = import_d4rl(write_d4rl(tmp_path, task, arrays), task)
    data = load_dataset(task, "d4rl")
    assert capsys.readouterr().err == "", "D4RL's own definition: nothing to put right"
    kept = ~arrays["timeouts"]
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(data, name), arrays[name][kept])
    np.testing.assert_array_equal(data.terminations, arrays["terminals"][kept])
    assert data.terminations.any() == (task == "pen-expert")
    bootstrapped = ~data.terminations
    np.testing.assert_array_equal(
        data.next_observations[bootstrapped], arrays["next_observations"][kept][bootstrapped]
    )
    assert len(data.returns) == 4
    metadata = read_metadata(dataset_id)
    spec = json.loads(metadata["env_spec"])
    assert spec["id"] == get_task(task).outer_env["d4rl"]
    assert spec["max_episode_steps"] == get_task(task).horizon
    assert spec["additional_wrappers"][0]["entry_point"].startswith("flowmdp.envs.robots.adroit:")
    assert metadata["flowmdp_import"]["has_next_observations"] is False


def test_the_command_imports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_d4rl(tmp_path, "door-human", rollout("door-human", 2, 10))
    assert main(["data", "import", str(path), "--task", "door-human"]) == 0
    assert "d4rl/door/human-v1 is in" in capsys.readouterr().out
    assert main(["data", "info", "door-human", "--source", "d4rl"]) == 0
    assert "D4RL infos.py" in capsys.readouterr().out


def refuse(match: str, path: Path, task: str) -> None:
    with pytest.raises(DatasetError, match=match) as caught:
        import_d4rl(path, task)
    assert "\n" not in str(caught.value)
    assert list_datasets() == {}


def test_files_of_other_tasks_and_versions_are_refused(tmp_path: Path) -> None:
    path = write_d4rl(tmp_path, "door-human", rollout("door-human", 2, 10))
    refuse("of door-human, not of door-cloned: .*--task door-human", path, "door-cloned")
    renamed = shutil.copy(path, tmp_path / "mine.hdf5")
    refuse(r"actions of shape \(28,\), but AdroitHandRelocate", Path(renamed), "relocate-human")
    older = shutil.copy(path, tmp_path / "door-human-v0.hdf5")
    refuse(r"another version of D4RL's data than door-human-v1.hdf5", Path(older), "door-human")
    with h5py.File(renamed, "a") as file:
        del file["timeouts"]  # as in the v0 files
    refuse("lacks timeouts", Path(renamed), "door-human")


def test_tasks_without_d4rl_data_say_so(tmp_path: Path) -> None:
    with pytest.raises(UnknownTaskError, match="no source 'd4rl': choose one of builtin, minari"):
        import_d4rl(tmp_path / "maze2d-umaze-sparse-v1.hdf5", "pointmaze-umaze")
