"""Importing files written in D4RL's layouts: Gym-MuJoCo v2 and Adroit v1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from numpy.typing import NDArray

from flowmdp.envs.data import list_datasets, load_dataset
from flowmdp.envs.data.sources.d4rl import import_d4rl
from flowmdp.envs.robots.outer import make_outer
from flowmdp.errors import DatasetError

TASK, ID = "hopper-medium", "d4rl/hopper/medium-v2"
Arrays = dict[str, NDArray[Any]]


def recording(next_observations: bool = True) -> Arrays:
    """Ten transitions: 4 to a termination, 3 to a timeout, 3 until the file ends."""
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((13, 11)).astype(np.float32)  # each episode with its final one
    rows = [0, 1, 2, 3, 5, 6, 7, 9, 10, 11]
    arrays: Arrays = {
        "observations": whole[rows],
        "actions": rng.uniform(-1, 1, (10, 3)).astype(np.float32),
        "rewards": rng.standard_normal(10).astype(np.float32),
        "terminals": np.arange(10) == 3,
        "timeouts": np.arange(10) == 6,
    }
    if next_observations:
        arrays["next_observations"] = whole[[row + 1 for row in rows]]
    return arrays


def write(path: Path, arrays: Arrays) -> Path:
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip")
        file["infos/qpos"] = np.zeros((10, 6))
        file["infos/action_log_probs"] = np.zeros(10)
        file["metadata/algorithm"] = np.bytes_("SAC")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hopper_medium-v2.hdf5"


def test_gym_mujoco_layout(path: Path) -> None:
    arrays = recording()
    assert import_d4rl(write(path, arrays), TASK) == ID
    data = load_dataset(TASK, "d4rl")
    for name in ("observations", "actions", "rewards", "next_observations"):
        np.testing.assert_array_equal(getattr(data, name), arrays[name])
    np.testing.assert_array_equal(data.terminations, arrays["terminals"])
    assert np.flatnonzero(data.truncations).tolist() == [6, 9]
    assert data.episode_starts.tolist() == [0, 4, 7]
    stored = minari.load_dataset(ID)
    assert stored.env_spec.id == "Hopper-v4" and stored.total_episodes == 3


def test_without_next_observations_a_timed_out_step_is_dropped(path: Path) -> None:
    arrays = recording(next_observations=False)
    import_d4rl(write(path, arrays), TASK)
    data = load_dataset(TASK, "d4rl")
    kept = [0, 1, 2, 3, 4, 5, 7, 8]
    np.testing.assert_array_equal(data.observations, arrays["observations"][kept])
    np.testing.assert_array_equal(data.rewards, arrays["rewards"][kept])
    assert np.flatnonzero(data.terminations).tolist() == [3]
    assert np.flatnonzero(data.truncations).tolist() == [5, 7]
    np.testing.assert_array_equal(data.next_observations[5], arrays["observations"][6])
    np.testing.assert_array_equal(data.next_observations[3], arrays["observations"][3])  # masked


def test_rows_that_do_not_follow_each_other_are_two_episodes(path: Path) -> None:
    arrays = recording()
    arrays["next_observations"][1] += 1
    import_d4rl(write(path, arrays), TASK)
    data = load_dataset(TASK, "d4rl")
    np.testing.assert_array_equal(data.next_observations, arrays["next_observations"])
    assert data.episode_starts.tolist() == [0, 2, 4, 7]


def test_a_real_rollout_comes_back(path: Path) -> None:
    outer = make_outer(TASK, "d4rl")
    rows = []
    for seed in range(3):
        observation, _ = outer.reset(seed=seed)
        ended = False
        while not ended:
            action = outer.action_space.sample()
            following, reward, terminated, truncated, _ = outer.step(action)
            rows.append((observation, action, reward, terminated, truncated, following))
            observation, ended = following, terminated or truncated
    outer.close()
    names = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    arrays = {
        name: np.asarray(column)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    import_d4rl(
        write(path, {k: a.astype("f4") if a.dtype == "f8" else a for k, a in arrays.items()}), TASK
    )
    data = load_dataset(TASK, "d4rl")
    assert len(data.returns) == 3 and data.terminations.sum() == 3
    np.testing.assert_array_equal(data.next_observations, arrays["next_observations"].astype("f4"))


def refuse(match: str, path: Path, **options: bool) -> None:
    with pytest.raises(DatasetError, match=match) as caught:
        import_d4rl(path, TASK, **options)
    assert "\n" not in str(caught.value)
    assert ID not in list_datasets()


def test_files_that_are_refused(path: Path) -> None:
    refuse("does not exist", path)
    whole = write(path, recording()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refuse("cannot read", path)
    path.write_bytes(b"not hdf5")
    refuse("cannot read", path)
    for key in ("timeouts", "actions"):
        arrays = recording()
        del arrays[key]
        refuse(f"lacks {key}", write(path, arrays))
        refuse("different lengths", write(path, recording() | {key: recording()[key][:-1]}))
    refuse("holds no transitions", write(path, {k: a[:0] for k, a in recording().items()}))
    refuse("no whole transition", write(path, {k: a[6:7] for k, a in recording(False).items()}))
    refuse("Hopper-v4 has", write(path, recording() | {"actions": np.zeros((10, 6))}))
    refuse("Hopper-v4 has", write(path, recording() | {"observations": np.zeros((10, 17))}))
    arrays = recording()
    arrays["rewards"][3] = np.nan
    refuse("NaN or infinite rewards", write(path, arrays))


def test_actions_outside_the_box_are_clipped_only_when_asked(path: Path) -> None:
    arrays = recording()
    arrays["actions"][2, 1] = 1.2
    refuse("outside .* in 1 of 10", write(path, arrays))
    import_d4rl(path, TASK, clip_actions=True)
    assert load_dataset(TASK, "d4rl").actions.max() == 1


def test_an_earlier_import_is_kept_unless_forced(path: Path) -> None:
    import_d4rl(write(path, recording()), TASK)
    with pytest.raises(DatasetError, match="--force"):
        import_d4rl(path, TASK)
    import_d4rl(write(path, {k: a[:4] for k, a in recording().items()}), TASK, force=True)
    assert len(load_dataset(TASK, "d4rl")) == 4


def test_the_command_imports(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flowmdp.cli import main

    code = main(["data", "import", str(write(path, recording())), "--task", TASK])
    assert code in (0, None)
    assert f"{ID} is in" in capsys.readouterr().out
    assert len(load_dataset(TASK, "d4rl")) == 10
