"""Read a Minari dataset into the flat arrays of a `TransitionDataset`, and check its numbers.

HDF5 datasets with array observations, the usual kind, are read through h5py's low-level calls
straight into the float32 arrays, several times as fast as Minari's own iteration with its Python
group and float64 copy per field. Everything else goes through Minari's iteration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from numpy.typing import NDArray

from flowmdp.envs.data.store import broken, dataset_folder, recorded_robot, unreadable
from flowmdp.errors import DatasetError
from flowmdp.robot import RobotInterface
from flowmdp.transitions import TransitionDataset

FIELDS = ("actions", "rewards", "terminations", "truncations")

FORMATS = ("hdf5", "arrow", "parquet")


def read_transitions(
    metadata: dict[str, Any], played: gym.Space[Any] | None = None
) -> TransitionDataset:
    """All episodes of the dataset with that metadata (`store.read_metadata`), values unchecked.

    Parts of a Dict observation are in the order of the `played` space, where it is given. The end
    of a recording counts as a truncation.

    Raises:
        DatasetError: When episodes are missing, torn, or not of the dataset's own spaces.
    """
    dataset_id = metadata["dataset_id"]
    episodes, steps = metadata["total_episodes"], metadata["total_steps"]
    if steps < 1 or episodes < 1:
        raise broken(dataset_id, f"it holds {episodes} episodes and {steps} steps")
    if metadata["data_format"] not in FORMATS:
        raise DatasetError(
            f"dataset {dataset_id} has the format {metadata['data_format']!r}: write it again in "
            f"one of {', '.join(FORMATS)}"
        )
    robot = recorded_robot(metadata, played)
    obs_dim, action_dim = robot.observation_dim, robot.action_dim
    try:
        observations = np.empty((steps + 1, obs_dim), np.float32)
        data = TransitionDataset(
            check=False,
            robot=robot,
            id=dataset_id,
            observations=observations[:-1],
            actions=np.empty((steps, action_dim), np.float32),
            rewards=np.empty(steps, np.float32),
            next_observations=np.empty((steps, obs_dim), np.float32),
            terminations=np.empty(steps, np.bool_),
            truncations=np.empty(steps, np.bool_),
            previous_actions=np.zeros((steps, action_dim), np.float32),
            starts=np.zeros(steps, np.bool_),
        )
    except (MemoryError, ValueError) as error:
        raise broken(dataset_id, f"its {steps} promised steps do not fit into memory") from error
    spaces = robot.observation_space, robot.action_space
    flat = all(isinstance(space, gym.spaces.Box) and len(space.shape) == 1 for space in spaces)
    if metadata["data_format"] == "hdf5" and flat:
        source, file = _hdf5_episodes(dataset_id, episodes), "main_data.hdf5"
    else:
        source, file = minari_episodes(dataset_id, robot), "data"
    try:
        _fill(data, observations, source)
    except DatasetError:
        raise
    except Exception as error:  # torn files make h5py, Minari and pyarrow raise whatever comes
        raise unreadable(dataset_id, file, error) from error
    last = np.append(data.starts[1:], True)
    if len(early := np.flatnonzero((data.terminations | data.truncations) & ~last)):
        raise DatasetError(
            f"dataset {dataset_id} goes on after an episode's end at transition {early[0]} "
            f"({len(early)} such places): split its episodes where they end"
        )
    data.truncations[:] |= last & ~data.terminations
    if robot.scales_actions:
        data.actions[:] = robot.to_unit(data.actions.reshape(steps, *robot.action_space.shape))
    data.previous_actions[1:] = data.actions[:-1]
    data.previous_actions[data.starts] = 0
    return data


def _fill(
    data: TransitionDataset, observations: NDArray[np.float32], episodes: Iterable[dict[str, Any]]
) -> None:
    """Read episodes, arrays or HDF5 datasets by name, one after another into `data`.

    `data.observations` is a view of `observations`, which has one row more: an episode of n steps
    writes n + 1 rows, and the next one starts on the last of them.
    """
    stop = 0
    for number, stored in enumerate(episodes):
        start, length = stop, (*stored["rewards"].shape, 0)[0]
        if length == 0:
            raise broken(data.id, f"episode {number} has no steps")
        stop = start + length
        if stop > len(data):
            raise broken(data.id, f"it has more than the {len(data)} steps it promises")
        parts = {name: getattr(data, name)[start:stop] for name in FIELDS}
        for name, part in {"observations": observations[start : stop + 1], **parts}.items():
            if stored[name].shape != part.shape:
                cause = f"{name} of shape {stored[name].shape}, not {part.shape}"
                raise broken(data.id, f"episode {number} has {cause}")
            if isinstance(stored[name], np.ndarray):
                part[...] = stored[name]
            else:
                stored[name].read(h5py.h5s.ALL, h5py.h5s.ALL, part)
        data.next_observations[start:stop] = observations[start + 1 : stop + 1]
        data.starts[start] = True
    if stop != len(data):
        raise broken(data.id, f"{stop} of the promised {len(data)} steps exist")


def _hdf5_episodes(dataset_id: str, episodes: int) -> Iterator[dict[str, Any]]:
    """The HDF5 datasets of every episode, open."""
    with h5py.File(dataset_folder(dataset_id) / "data" / "main_data.hdf5", "r") as file:
        if len(file) != episodes:
            raise broken(dataset_id, f"{len(file)} of the promised {episodes} episodes exist")
        metadata = file.id.get_mdc_config()  # HDF5 keeps what it knows of episodes; none is reread
        metadata.set_initial_size = True
        metadata.initial_size = metadata.min_size = metadata.max_size = 1 << 18
        file.id.set_mdc_config(metadata)
        for episode in range(episodes):
            group = h5py.h5g.open(file.id, f"episode_{episode}".encode())
            names = ("observations", *FIELDS)
            yield {name: h5py.h5d.open(group, name.encode()) for name in names}


def minari_episodes(dataset_id: str, robot: RobotInterface) -> Iterator[dict[str, NDArray[Any]]]:
    """Episodes through Minari's own iteration, flattened; slower, for any format and space."""
    from minari import MinariDataset

    for episode in MinariDataset(dataset_folder(dataset_id) / "data").iterate_episodes():
        fields = {name: np.asarray(getattr(episode, name)) for name in FIELDS}
        flat = fields["actions"].reshape(len(fields["actions"]), -1)
        yield {**fields, "actions": flat, "observations": robot.flatten(episode.observations)}


def read_states(
    metadata: dict[str, Any], widths: Mapping[str, int]
) -> Iterator[dict[str, NDArray[Any]]]:
    """The simulator's states that were recorded with the observations, one episode at a time.

    Args:
        metadata: The dataset's.
        widths: Names of what to read from Minari's `infos`, and their widths.

    Yields:
        For an episode of n steps an array (n + 1, width) for every name.

    Raises:
        DatasetError: When they were not recorded, or are not of these widths.
    """
    dataset_id = metadata["dataset_id"]
    for number, infos in enumerate(_infos(dataset_id, metadata)):
        states = {name: np.asarray(infos[name]) for name in widths if name in infos}
        for name, width in widths.items():
            if name not in states or states[name].shape[1:] != (width,):
                found = f"{name} of shape {states[name].shape}" if name in states else f"no {name}"
                raise DatasetError(
                    f"episode {number} of dataset {dataset_id} has {found} in its infos, not the "
                    f"{width} numbers of each state that its rewards are computed from: choose "
                    "another dataset, or record it again with them"
                )
        yield states


def _infos(dataset_id: str, metadata: dict[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Minari's `infos` of every episode: what they hold by name."""
    folder = dataset_folder(dataset_id) / "data"
    try:
        if metadata["data_format"] == "hdf5":
            with h5py.File(folder / "main_data.hdf5", "r") as file:
                for episode in range(metadata["total_episodes"]):
                    yield file[f"episode_{episode}"].get("infos", {})
        else:
            from minari import MinariDataset

            for stored in MinariDataset(folder).iterate_episodes():
                yield stored.infos or {}
    except DatasetError:
        raise
    except Exception as error:  # torn files make h5py, Minari and pyarrow raise whatever comes
        raise unreadable(dataset_id, "data", error) from error
