"""What `load_dataset` makes of an episode, and of everything that is not a proper dataset."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer

from flowmdp.envs.data import list_datasets, load_dataset
from flowmdp.envs.data.reading import FIELDS, minari_episodes, read_transitions
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.store import dataset_folder, read_metadata, recorded_robot
from flowmdp.errors import DatasetError, FlowMDPError
from flowmdp.transitions import WIDTHS, TransitionDataset
from tests.envs.datasets_by_hand import episode, write

ID = "hand/made-v0"


def load(dataset_id: str = ID) -> TransitionDataset:
    return load_dataset("hopper-medium", dataset_id=dataset_id)


def test_masks_and_boundaries_of_three_episodes() -> None:
    episodes = [episode(3, terminated=True), episode(2, truncated=True, seed=1), episode(1, seed=2)]
    write(ID, episodes)
    data = load()
    assert data.starts.tolist() == [True, False, False, True, False, True]
    assert data.masks.tolist() == [1, 1, 0, 1, 1, 1]
    assert data.truncations.tolist() == [False, False, False, False, True, True]
    second = episodes[1].observations.astype(np.float32)
    np.testing.assert_array_equal(
        data.next_observations[2], episodes[0].observations[3].astype("f4")
    )
    np.testing.assert_array_equal(data.observations[3:5], second[:2])
    np.testing.assert_array_equal(data.next_observations[3:5], second[1:])
    np.testing.assert_array_equal(data.previous_actions[[0, 3, 5]], 0)
    np.testing.assert_array_equal(data.previous_actions[4], episodes[1].actions[0])
    np.testing.assert_allclose(data.returns, [e.rewards.sum() for e in episodes], rtol=1e-6)
    first = [e.rewards[:2].sum() for e in episodes]
    np.testing.assert_allclose(data.returns_within(2), first, rtol=1e-6)


episode_ends = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from(["terminated", "truncated", "neither"])),
    min_size=1,
    max_size=5,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ends=episode_ends)
def test_any_episodes_come_back_in_order(ends: list[tuple[int, str]]) -> None:
    episodes = [
        episode(length, end == "terminated", end == "truncated", seed)
        for seed, (length, end) in enumerate(ends)
    ]
    write(ID, episodes)
    data = load()
    assert data.observations.dtype == data.actions.dtype == data.rewards.dtype == np.float32
    lengths = [length for length, _ in ends]
    assert np.diff(np.append(data.episode_starts, len(data))).tolist() == lengths
    last = np.cumsum(lengths) - 1
    assert data.terminations[last].tolist() == [end == "terminated" for _, end in ends]
    assert (data.terminations | data.truncations).sum() == len(ends)
    assert not (data.terminations & data.truncations).any()
    inside = np.setdiff1d(np.arange(len(data)), last)
    np.testing.assert_array_equal(data.next_observations[inside], data.observations[inside + 1])
    np.testing.assert_array_equal(data.previous_actions[inside + 1], data.actions[inside])
    np.testing.assert_array_equal(data.actions, np.concatenate([e.actions for e in episodes]))


def test_agrees_with_minaris_own_iteration(hopper_data: Path) -> None:
    data = load_dataset("hopper-medium")
    start = 0
    for stored in minari.load_dataset(data.id).iterate_episodes():
        rows = slice(start, start + len(stored))
        np.testing.assert_array_equal(
            data.observations[rows], stored.observations[:-1].astype("f4")
        )
        np.testing.assert_array_equal(
            data.next_observations[rows], stored.observations[1:].astype("f4")
        )
        for name in FIELDS:
            expected = np.asarray(getattr(stored, name)).astype(getattr(data, name).dtype)
            np.testing.assert_array_equal(getattr(data, name)[rows], expected)
        start = rows.stop
    assert start == len(data) == 3_000


def test_memory_stays_near_the_arrays(hopper_data: Path) -> None:
    load_dataset("hopper-medium")  # imports
    tracemalloc.start()
    data = load_dataset("hopper-medium")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    arrays = sum(getattr(data, name).nbytes for name in WIDTHS)
    assert peak < 1.3 * arrays + 500_000  # the constant: environment and Python's own


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari misses an author and a spec
def test_dict_observations_are_flattened_by_sorted_key() -> None:
    space = gym.spaces.Dict(
        {key: gym.spaces.Box(-1, 1, (2,)) for key in ("observation", "achieved", "desired")}
    )
    parts = {key: np.full((4, 2), n, np.float32) for n, key in enumerate(space.spaces)}
    minari.create_dataset_from_buffers(
        ID,
        [
            EpisodeBuffer(
                observations=parts,
                actions=np.zeros((3, 3), np.float32),
                rewards=[0.0] * 3,
                terminations=[False] * 3,
                truncations=[False, False, True],
            )
        ],
        observation_space=space,
        action_space=gym.spaces.Box(-1, 1, (3,)),
        algorithm_name="by hand",
    )
    (values,) = minari_episodes(ID, recorded_robot(read_metadata(ID)))
    assert values["observations"].shape == (4, 6)
    assert values["observations"][0].tolist() == [0, 0, 1, 1, 2, 2]
    assert list(space.spaces) == ["achieved", "desired", "observation"]
    data = read_transitions(read_metadata(ID))
    np.testing.assert_array_equal(data.next_observations, values["observations"][1:])
    assert data.truncations.tolist() == [False, False, True]
    with pytest.raises(DatasetError, match="recorded in the observation space Dict"):
        load()
    (dataset_folder(ID) / "data" / "main_data.hdf5").unlink()
    with pytest.raises(DatasetError, match="data cannot be read"):
        read_transitions(read_metadata(ID))


# Everything below is refused, in one line that names the cause and a cure.


def refuse(match: str) -> str:
    with pytest.raises(FlowMDPError, match=match) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message and ID in message
    return message


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity(name: str, value: float) -> None:
    bad = episode(4, terminated=True)
    getattr(bad, name)[2] = value
    write(ID, [episode(3, truncated=True), bad])
    refuse(f"NaN or infinite .*{name}")


def test_nan_in_the_last_observation_alone() -> None:
    bad = episode(4, terminated=True)
    bad.observations[4] = np.nan
    write(ID, [bad])
    refuse("NaN or infinite next_observations in 1 transitions, first in transition 3")


def test_actions_outside_the_box_are_counted_and_clipped_only_when_asked() -> None:
    bad = episode(4, terminated=True)
    bad.actions[1:3, 0] = 1.5
    write(ID, [bad])
    refuse("outside \\[-1, 1\\] in 2 of 4 transitions")
    data = load_dataset("hopper-medium", dataset_id=ID, clip_actions=True)
    assert data.actions.max() == data.previous_actions.max() == 1


def wrong(**changes: object) -> Episode:
    return dataclasses.replace(episode(4, terminated=True), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        wrong(observations=np.zeros((4, 11))),
        wrong(observations=np.zeros((5, 10))),
        wrong(actions=np.zeros((3, 3), np.float32)),
        wrong(actions=np.zeros((4, 2), np.float32)),
        wrong(rewards=np.zeros((4, 1))),
        wrong(terminations=np.zeros(5, np.bool_)),
    ],
)
def test_wrong_shapes_name_the_episode(bad: Episode) -> None:
    write(ID, [episode(2, truncated=True), bad])
    refuse("episode 1 has .* of shape")


def test_an_episode_that_goes_on_after_its_end() -> None:
    write(ID, [wrong(terminations=np.array([False, True, False, True]))])
    refuse("goes on after an episode's end at transition 1")


def test_the_wrong_robot_and_the_wrong_version() -> None:
    write(ID, [episode(2, terminated=True)], task="walker2d-medium")
    refuse("recorded on Walker2d-v5.*Hopper-v5")
    change_metadata(env_spec=json.dumps({"id": "Hopper-v4"}))
    refuse("recorded on Hopper-v4.*--source d4rl")


def test_foreign_spaces() -> None:
    write(ID, [episode(2, terminated=True)])
    box = {"type": "Box", "dtype": "float32", "shape": [3], "low": [-2.0] * 3, "high": [2.0] * 3}
    change_metadata(action_space=json.dumps(box))
    refuse("the action space Box\\(-2.0.*, not Box\\(-1.0.* as Hopper-v5 has")
    change_metadata(observation_space='{"type": "Riddle"}')
    refuse("no readable spaces")


def change_metadata(**changes: object) -> None:
    path = dataset_folder(ID) / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_half_written_datasets_are_refused_and_listed_as_such() -> None:
    write(ID, [episode(2, terminated=True), episode(3, truncated=True)])
    assert list_datasets()[ID] == read_metadata(ID)
    data = dataset_folder(ID) / "data"
    whole = (data / "main_data.hdf5").read_bytes()

    (data / "main_data.hdf5").write_bytes(whole[: len(whole) // 2])
    refuse("half-written or damaged: main_data.hdf5 cannot be read")
    (data / "main_data.hdf5").unlink()
    refuse("main_data.hdf5 cannot be read")
    (data / "main_data.hdf5").write_bytes(whole)
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
    refuse("main_data.hdf5 cannot be read")
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_1"]
    refuse("1 of the promised 2 episodes")
    for name in ("episode_0", "episode_0/rewards"):  # an array for a group, a group for an array
        (data / "main_data.hdf5").write_bytes(whole)
        with h5py.File(data / "main_data.hdf5", "a") as file:
            array = isinstance(file[name], h5py.Dataset)
            del file[name]
            file.create_group(name) if array else file.create_dataset(name, data=[1.0])
        refuse("main_data.hdf5 cannot be read")
    (data / "main_data.hdf5").write_bytes(whole)
    change_metadata(total_steps=6)
    refuse("5 of the promised 6 steps")
    change_metadata(total_steps=10**15)
    refuse("do not fit into memory")
    change_metadata(total_steps=4)
    refuse("more than the 4 steps it promises")
    change_metadata(total_episodes=0)
    refuse("0 episodes")
    for value in ("5", 5.0, None):
        change_metadata(total_episodes=2, total_steps=value)
        refuse(f"total_steps is {value!r}")
        assert list_datasets() == {ID: None}
    change_metadata(total_steps=5, dataset_id="another/one-v0")
    refuse("belong to 'another/one-v0'")
    for text in ("", "[]", "{}"):
        (data / "metadata.json").write_text(text)
        refuse("metadata.json")
        assert list_datasets() == {ID: None}


def test_absent_datasets_name_what_gets_them() -> None:
    write(ID, [episode(2, terminated=True)])
    for options, match in (
        ({"dataset_id": "hand/mode-v0"}, "did you mean hand/made-v0"),
        ({"dataset_id": "../../etc"}, "malformed dataset id"),
        ({"dataset_id": 3}, "malformed dataset id 3"),
        ({"build": False}, "flowmdp data build hopper-medium"),
        ({"source": "minari"}, "flowmdp data download hopper-medium"),
        ({"source": "d4rl"}, "flowmdp data import"),
        ({"source": "minari", "dataset_id": "private/own-v0"}, "record it or copy it there"),
    ):
        with pytest.raises(DatasetError, match=match):
            load_dataset("hopper-medium", **options)
    with pytest.raises(DatasetError, match=r"no minari dataset: .*another source"):
        load_dataset("walker2d-medium-replay", "minari")


def test_a_flipped_bit_is_noticed() -> None:
    write(ID, [episode(200, truncated=True)])
    path = dataset_folder(ID) / "data" / "main_data.hdf5"
    with h5py.File(path) as file:
        place = file["episode_0/observations"].id.get_chunk_info(0).byte_offset
    whole = bytearray(path.read_bytes())
    whole[place + 5] ^= 16
    path.write_bytes(whole)
    refuse("half-written or damaged: main_data.hdf5 cannot be read")
