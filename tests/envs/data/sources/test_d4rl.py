"""Importing files written in D4RL's layouts: Gym-MuJoCo v2 and Adroit v1."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from numpy.typing import NDArray

from flowmdp.envs.data import dataset_info, list_datasets, load_dataset
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

    code = main(["data", "import", str(write(path, recording()))])  # known by its name
    assert code in (0, None)
    assert f"{ID} is in" in capsys.readouterr().out
    assert len(load_dataset(TASK, "d4rl")) == 10


def rounded(name: str, dtype: Any, store: Any = None) -> Arrays:
    """Observations of full precision, coordinates of many magnitudes; one array is rounded."""
    arrays = recording()
    whole = np.random.default_rng(1).standard_normal((13, 11)) * 10.0 ** np.arange(-6, 5)
    rows = np.array([0, 1, 2, 3, 5, 6, 7, 9, 10, 11])
    arrays |= {"observations": whole[rows], "next_observations": whole[rows + 1]}
    arrays[name] = arrays[name].astype(dtype).astype(store or dtype)
    return arrays


@pytest.mark.parametrize("name", ["observations", "next_observations"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble])
def test_rounding_does_not_split_episodes(path: Path, name: str, dtype: Any) -> None:
    import_d4rl(write(path, rounded(name, dtype)), TASK)
    assert load_dataset(TASK, "d4rl").episode_starts.tolist() == [0, 4, 7]


def test_rounding_before_storing_does_not_either(path: Path) -> None:
    import_d4rl(write(path, rounded("next_observations", np.float32, np.float64)), TASK)
    assert load_dataset(TASK, "d4rl").episode_starts.tolist() == [0, 4, 7]


@pytest.mark.parametrize(("dtype", "step"), [(np.float32, 1e-5), (np.float64, 1e-15)])
def test_more_than_rounding_splits(path: Path, dtype: Any, step: float) -> None:
    """Of one precision rows are equal or not; of two, the coarser one decides."""
    arrays = rounded("next_observations", dtype)
    arrays["next_observations"][1, 3] *= dtype(1 + step)
    import_d4rl(write(path, arrays), TASK)
    assert load_dataset(TASK, "d4rl").episode_starts.tolist() == [0, 2, 4, 7]


def huge(file: h5py.File, key: str) -> None:
    """All arrays declare 10^11 rows; none are there."""
    for name, array in recording().items():
        del file[name]
        shape = 10**11, *array.shape[1:]
        file.create_dataset(name, shape, array.dtype, chunks=(1000, *array.shape[1:]))


def typed(dtype: Any) -> Any:
    return lambda file, key: file.create_dataset(key, (10,), dtype)


def linked(link: Any) -> Any:
    return lambda file, key: file.__setitem__(key, link)


ODD: dict[str, tuple[Any, str]] = {
    "scalar": (np.float32(1), "without rows"),
    "null": (h5py.Empty("f4"), "without rows"),
    "group": (lambda file, key: file.create_group(key), "lacks"),
    "type": (np.dtype("f4"), "lacks"),
    "external link": (linked(h5py.ExternalLink("/nowhere.h5", "/x")), "lacks"),
    "circular link": (linked(h5py.SoftLink("/rewards")), "cannot read|lacks"),
    "bytes": (np.array([b"a"] * 10), "no numbers"),
    "text": (typed(h5py.string_dtype()), "no numbers"),
    "references": (typed(h5py.ref_dtype), "no numbers"),
    "ragged": (typed(h5py.vlen_dtype("f4")), "no numbers"),
    "arrays in a type": (typed(np.dtype(("f4", (3,)))), "no numbers"),
    "complex": (np.zeros(10, complex), "no numbers"),
    "compound": (np.zeros(10, [("a", "f4"), ("b", "i4")]), "no numbers"),
    "opaque": (np.zeros(10, "V4"), "no numbers"),
    "more dimensions": (np.zeros((10, 1, 1)), "of shape"),
    "huge": (huge, r"declares 100,000,000,000 transitions, .* MiB, but holds"),
    "too large": (np.full(10, 1e300), "too large rewards in 10"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_arrays_are_one_line(path: Path, kind: str) -> None:
    value, match = ODD[kind]
    write(path, recording())
    with h5py.File(path, "a") as file:
        if kind != "huge":
            del file["rewards"]
        value(file, "rewards") if callable(value) and kind != "type" else file.__setitem__(
            "rewards", value
        )
    refuse(match, path)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("next_observations", [True, False])
def test_few_transitions(path: Path, n: int, next_observations: bool) -> None:
    arrays = {name: array[3 : 3 + n] for name, array in recording(next_observations).items()}
    import_d4rl(write(path, arrays), TASK)
    assert len(load_dataset(TASK, "d4rl")) == (n if next_observations else 1)
    assert dataset_info(TASK, "d4rl")["episodes"] == (n if next_observations else 1)


def test_flipped_bits_and_torn_ends(path: Path) -> None:
    """Read, or refused in one line; where a bit is only data nobody can tell."""
    whole = write(path, recording()).read_bytes()
    moments = random.Random(0)
    for number in range(40):
        torn = bytearray(whole)
        for _ in range(moments.choice([1, 3, 20])):
            torn[moments.randrange(2_000)] ^= 1 << moments.randrange(8)
        path.write_bytes(torn if number % 4 else whole[: moments.randrange(len(whole))])
        try:
            import_d4rl(path, TASK, force=True, clip_actions=True)
        except DatasetError as error:
            assert "\n" not in str(error)
