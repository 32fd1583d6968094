"""Other people's datasets: nonsense in metadata, odd spaces, wrappers, no permission."""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import (
    ClipReward,
    FrameStackObservation,
    RescaleAction,
    TransformObservation,
)
from minari.data_collector import EpisodeBuffer

from flowmdp.cli import main
from flowmdp.envs.data import dataset_info, list_datasets, load_dataset
from flowmdp.envs.data.load import load_minari
from flowmdp.envs.data.sources.build import write_dataset
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.store import dataset_folder, dataset_lock, read_metadata, recorded_spec
from flowmdp.errors import DatasetError, FlowMDPError
from tests.envs.datasets_by_hand import episode, write

ID, GOOD = "odd/one-v0", "good/one-v0"


def change(**changes: Any) -> None:
    path = dataset_folder(ID) / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def overwrite(text: str) -> Callable[[], None]:
    def write_it() -> None:
        (dataset_folder(ID) / "data" / "metadata.json").write_text(text)

    return write_it


def box(**changes: Any) -> str:
    ends = {"low": [-1.0] * 3, "high": [1.0] * 3}
    return json.dumps({"type": "Box", "dtype": "float32", "shape": [3], **ends, **changes})


ODD: dict[str, tuple[dict[str, Any] | Callable[[], None], str]] = {
    "deep list": (overwrite("[" * 100_000), "recursion"),
    "deep object": (overwrite('{"a":' * 100_000), "recursion"),
    "number": (overwrite("5"), "damaged"),
    "long number": (overwrite('{"total_steps":' + "9" * 5_000 + "}"), "damaged"),
    "not text": (overwrite("\x00"), "damaged"),
    "steps 10^15": ({"total_steps": 10**15}, "do not fit into memory"),
    "episodes 10^15": ({"total_episodes": 10**15}, "promised 1000000000000000 episodes"),
    "negative steps": ({"total_steps": -3}, "total_steps is -3"),
    "steps true": ({"total_steps": True}, "total_steps is True"),
    "version": ({"minari_version": None}, "minari_version is None"),
    "recorder": ({"algorithm_name": ["x"]}, r"algorithm_name is \['x'\]"),
    "recipe": ({"flowmdp_build": [1]}, r"flowmdp_build is \[1\]"),
    "format": ({"data_format": "zarr"}, "has the format 'zarr': write it again"),
    "spec no text": ({"env_spec": {"id": 1}}, "env_spec is {'id': 1}"),
    "spec no JSON": ({"env_spec": "Hopper"}, "describes no environment"),
    "spec deep": ({"env_spec": "[" * 50_000}, "describes no environment"),
    "spec id": ({"env_spec": '{"id": 5}'}, "id is 5"),
    "spec arguments": ({"env_spec": '{"kwargs": [1]}'}, r"kwargs is \[1\]"),
    "spec wrappers": ({"env_spec": '{"additional_wrappers": [1]}'}, "additional_wrappers.0 is 1"),
    "space missing": ({"action_space": None}, "no readable spaces"),
    "space no text": ({"action_space": 5}, "action_space is 5"),
    "space empty": ({"action_space": "{}"}, "no readable spaces"),
    "space deep": (
        {"action_space": '{"type": "Tuple", "subspaces": [' * 3_000},
        "no readable spaces",
    ),
    "space bounds": ({"action_space": box(low=[2.0] * 3)}, "no readable spaces"),
    "space NaN": ({"action_space": box(low=[float("nan")] * 3)}, "no readable spaces"),
    "space objects": ({"observation_space": box(dtype="object")}, "no readable spaces"),
    "space dtype": ({"observation_space": box(dtype="nonsense")}, "no readable spaces"),
    "space huge": (
        {"observation_space": '{"type": "Discrete", "n": 1000000000000000, "start": 0}'},
        "as Hopper-v5 has",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_metadata_are_one_line_and_break_no_list(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for dataset_id in (ID, GOOD):
        write(dataset_id, [episode(3, terminated=True)])
    changes, match = ODD[kind]
    changes() if callable(changes) else change(**changes)
    with pytest.raises(FlowMDPError, match=match) as caught:
        load_dataset("hopper-medium", dataset_id=ID)
    assert "\n" not in str(caught.value) and ID in str(caught.value)
    found = list_datasets()
    assert set(found) == {ID, GOOD} and found[GOOD] is not None
    assert main(["data", "list"]) == 0
    assert main(["data", "info", ID]) in (0, 2)
    assert "Traceback" not in "".join(capsys.readouterr())


def test_arrow_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    write(ID, [episode(3, terminated=True)])
    change(data_format="arrow")

    def absent(name: str) -> None:
        raise ImportError("pyarrow is not installed")

    monkeypatch.setattr("minari.dataset._storages.get_minari_storage", absent)
    with pytest.raises(DatasetError, match=r'needs pyarrow: pip install "minari\[arrow\]"'):
        load_dataset("hopper-medium", dataset_id=ID)


# Good data that cannot be read now is never advised to be removed.


@pytest.mark.parametrize("where", ["metadata.json", "main_data.hdf5", "above"])
def test_no_permission(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(ID, [episode(3, terminated=True)])

    def refused(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    owner: Any = {"main_data.hdf5": h5py, "metadata.json": Path, "above": Path}[where]
    name = {"main_data.hdf5": "File", "metadata.json": "read_text", "above": "exists"}[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refused)
        if where == "above":
            patch.setattr(Path, "read_text", refused)
        with pytest.raises(DatasetError, match=r"no permission to read its .*chmod") as caught:
            load_dataset("hopper-medium", dataset_id=ID)
    assert "remove" not in str(caught.value) and "damaged" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EIO, errno.EMFILE])
def test_a_machine_in_trouble(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write(ID, [episode(3, terminated=True)])

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, "the machine's fault")

    monkeypatch.setattr(h5py, "File", fail)
    with pytest.raises(DatasetError, match=r"cannot be read now .*try again") as caught:
        load_dataset("hopper-medium", dataset_id=ID)
    assert "remove" not in str(caught.value)


# What is told of odd data.

FLAT = spaces.Box(-9.0, 9.0, (3,))
ZEROS = np.zeros((4, 3), np.float32)
NAN = np.full((4, 3), np.nan, np.float32)
PARTS = {"b": np.zeros((4, 2), np.float32), "a": np.array([0, 1, 2, 0])}
SPACES: dict[str, tuple[spaces.Space[Any], Any]] = {
    "box": (FLAT, ZEROS),
    "NaN": (FLAT, NAN),
    "one NaN": (FLAT, np.where(np.arange(12).reshape(4, 3) == 4, NAN, ZEROS)),
    "one step": (FLAT, ZEROS[:2]),
    "integers": (spaces.Box(0, 9, (3,), np.int64), ZEROS.astype(np.int64)),
    "discrete": (spaces.Discrete(5), np.array([0, 1, 4, 2])),
    "one discrete step": (spaces.Discrete(5), np.array([0, 1])),
    "several discrete": (spaces.MultiDiscrete([2, 3]), np.zeros((4, 2), np.int64)),
    "binary": (spaces.MultiBinary(3), np.zeros((4, 3), np.int8)),
    "matrix": (spaces.Box(-1.0, 1.0, (2, 2)), np.zeros((4, 2, 2), np.float32)),
    "dict": (spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,))}), PARTS),
    "tuple": (
        spaces.Tuple((spaces.Box(-1, 1, (2,)), spaces.Discrete(3))),
        (PARTS["b"], PARTS["a"]),
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari misses an author and a spec
@pytest.mark.parametrize("kind", SPACES)
def test_any_data_are_described(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space, observations = SPACES[kind]
    leaf = observations
    if not isinstance(leaf, np.ndarray):
        leaf = leaf["b"] if isinstance(leaf, dict) else leaf[0]
    n = len(leaf) - 1
    buffer = EpisodeBuffer(
        observations=observations,
        actions=np.zeros((n, 2), np.float32),
        rewards=[0.0] * n,
        terminations=[False] * n,
        truncations=[i == n - 1 for i in range(n)],
    )
    minari.create_dataset_from_buffers(
        ID,
        [buffer],
        observation_space=space,
        action_space=spaces.Box(-1.0, 1.0, (2,)),
        algorithm_name="[/bold] by hand",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = dataset_info(ID)
    assert json.loads(json.dumps(info, allow_nan=False)) == info and info["steps"] == n
    assert ("not_finite" in info) == ("NaN" in kind)
    drawn = "NaN" in kind or kind == "one step"
    assert main(["data", "info", ID, *["--plot", str(tmp_path / "x.png")] * drawn]) == 0
    assert "[/bold] by hand" in capsys.readouterr().out
    if "NaN" not in kind:
        flat, first = load_minari(ID).observations, observations
        if isinstance(first, dict):
            first = {name: part[0] for name, part in first.items()}
        else:
            first = tuple(p[0] for p in first) if isinstance(first, tuple) else first[0]
        assert flat.shape == (n, spaces.flatdim(space))
        np.testing.assert_array_equal(flat[0], spaces.flatten(space, first))


# Wrappers that the data were recorded through and the robot is played without.


def recorded_through(*wrappers: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]) -> None:
    """Two episodes of Pendulum, whose actions lie in [-2, 2], through the wrappers."""
    env: gym.Env[Any, Any] = gym.make("Pendulum-v1", max_episode_steps=5)
    for wrapper in wrappers:
        env = wrapper(env)
    env.action_space.seed(0)
    episodes = []
    for seed in range(2):
        observations, actions, rewards = [env.reset(seed=seed)[0]], list[Any](), list[float]()
        for _ in range(5):
            actions.append(env.action_space.sample())
            observation, reward, *_ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
        last = np.arange(5) == 4
        arrays = np.array(observations), np.array(actions), np.array(rewards)
        episodes.append(Episode(seed, *arrays, last & False, last))
    with dataset_lock(ID):
        write_dataset(ID, env, episodes, {})


def load() -> Any:
    return load_dataset("Pendulum-v1", dataset_id=ID)


def test_a_rescaled_action_is_the_robots() -> None:
    """The map of RescaleAction and that of the loader are the same one."""
    recorded_through()
    plain = load()
    for low, high in np.array([(-1, 1), (-0.5, 0.5), (0, 3)], np.float32):
        recorded_through(partial(RescaleAction, min_action=low, max_action=high))
        data = load()
        assert not data.robot.difference(plain.robot)
        stored = next(iter(minari.load_dataset(ID).iterate_episodes()))
        middle, half = (low + high) / 2, (high - low) / 2
        np.testing.assert_allclose(data.actions[:5], (stored.actions - middle) / half, atol=1e-6)
        replay = gym.make("Pendulum-v1")
        state, _ = replay.reset(seed=0)
        for n in range(5):
            np.testing.assert_allclose(data.observations[n], state, atol=1e-5)
            state, *_ = replay.step(data.robot.to_robot(data.actions[n]))


def flipped(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return TransformObservation(env, lambda observation: -observation, env.observation_space)


@pytest.mark.parametrize(
    ("wrapper", "name"),
    [
        (flipped, "TransformObservation"),
        (lambda env: FrameStackObservation(env, 2), "FrameStackObservation"),
        (gym.wrappers.NormalizeObservation, "NormalizeObservation"),
        (gym.wrappers.TimeAwareObservation, "TimeAwareObservation"),
        (lambda env: gym.wrappers.StickyAction(env, 0.5), "StickyAction"),
    ],
)
def test_changing_wrappers_are_refused(wrapper: Any, name: str) -> None:
    recorded_through(wrapper)
    with pytest.raises(DatasetError, match=f"recorded through {name}, .*record it again"):
        load()


def test_harmless_wrappers_and_changed_rewards(capsys: pytest.CaptureFixture[str]) -> None:
    recorded_through(
        gym.wrappers.RecordEpisodeStatistics,
        gym.wrappers.FlattenObservation,
        lambda env: ClipReward(env, -1.0, 1.0),
    )
    assert len(load()) == 10
    assert "its rewards went through ClipReward" in capsys.readouterr().err


def test_the_played_robots_own_wrappers_count_as_the_robots() -> None:
    recorded_through(gym.wrappers.NormalizeObservation)
    spec = gym.spec("Pendulum-v1")
    wrapped = gym.wrappers.NormalizeObservation(gym.make("Pendulum-v1")).spec
    assert wrapped is not None
    gym.register("Wrapped-v1", spec.entry_point, additional_wrappers=wrapped.additional_wrappers)
    try:
        change(env_spec=json.dumps({**recorded_spec(read_metadata(ID)), "id": "Wrapped-v1"}))
        assert len(load_dataset("Wrapped-v1", dataset_id=ID)) == 10
    finally:
        del gym.registry["Wrapped-v1"]


class Halves(gym.ObservationWrapper[Any, Any, Any]):
    """Pendulum in two parts whose names are not in the order of the alphabet."""

    def __init__(self) -> None:
        super().__init__(gym.make("Pendulum-v1", max_episode_steps=5))
        self.observation_space: gym.Space[Any] = spaces.Dict(
            speed=spaces.Box(-8.0, 8.0, (1,)), angle=spaces.Box(-1.0, 1.0, (2,))
        )

    def observation(self, observation: Any) -> dict[str, Any]:
        return {"speed": observation[2:], "angle": observation[:2]}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari misses an author
def test_parts_are_in_the_order_of_the_played_robot() -> None:
    gym.register("Halves-v1", f"{__name__}:Halves")
    try:
        env = gym.make("Halves-v1")
        rows = [env.reset(seed=0)[0]] + [env.step(np.zeros(1, np.float32))[0] for _ in range(5)]
        buffer = EpisodeBuffer(
            observations={name: np.array([row[name] for row in rows]) for name in rows[0]},
            actions=np.zeros((5, 1), np.float32),
            rewards=[0.0] * 5,
            terminations=[False] * 5,
            truncations=[False] * 4 + [True],
        )
        minari.create_dataset_from_buffers(ID, [buffer], env=env, algorithm_name="by hand")
        state, _ = gym.make("Pendulum-v1").reset(seed=0)
        data = load_dataset("Halves-v1", dataset_id=ID)
        np.testing.assert_allclose(data.observations[0], state[[2, 0, 1]])
        np.testing.assert_allclose(load_minari(ID).observations[0], state)
    finally:
        del gym.registry["Halves-v1"]
