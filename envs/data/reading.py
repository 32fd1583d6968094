"""Read a Minari dataset into the flat arrays of a `TransitionDataset`.

HDF5 datasets with array observations, the usual kind, are read through h5py's low-level calls
straight into the float32 arrays: Minari's iteration goes through a Python group and a float64 copy
per field and takes several times as long. Everything else goes through Minari's own iteration.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from numpy.typing import NDArray

from flowmdp.envs.data.store import broken, dataset_folder
from flowmdp.errors import DatasetError
from flowmdp.transitions import TransitionDataset

FIELDS = ("actions", "rewards", "terminations", "truncations")


class Arrays:
    """Arrays of n transitions that episodes are appended to, one after another.

    Observations have one row more than transitions: an episode of n_i steps writes n_i + 1 rows,
    the next episode starts on the last of them, and so nothing is held twice.
    """

    def __init__(self, dataset_id: str, steps: int, obs_dim: int, action_dim: int) -> None:
        self.id = dataset_id
        self.filled = 0
        self.observations = np.empty((steps + 1, obs_dim), np.float32)
        self.next_observations = np.empty((steps, obs_dim), np.float32)
        self.actions = np.empty((steps, action_dim), np.float32)
        self.rewards = np.empty(steps, np.float32)
        self.terminations = np.empty(steps, np.bool_)
        self.truncations = np.empty(steps, np.bool_)
        self.starts = np.zeros(steps, np.bool_)

    def reserve(self, episode: int, shapes: dict[str, tuple[int, ...]]) -> slice:
        """Check an episode's shapes and return the rows of its transitions.

        Raises:
            DatasetError: When shapes disagree with each other, the task, or the promised length.
        """
        length = shapes["rewards"][0] if shapes["rewards"] else 0
        expected = {
            "observations": (length + 1, *self.observations.shape[1:]),
            "actions": (length, *self.actions.shape[1:]),
            "rewards": (length,),
            "terminations": (length,),
            "truncations": (length,),
        }
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise broken(
                    self.id, f"episode {episode} has {name} of shape {shapes[name]}, not {shape}"
                )
        if length == 0:
            raise broken(self.id, f"episode {episode} has no steps")
        start, stop = self.filled, self.filled + length
        if stop > len(self.rewards):
            raise broken(self.id, f"it has more than the {len(self.rewards)} steps it promises")
        self.filled = stop
        self.starts[start] = True
        return slice(start, stop)

    def close(self, rows: slice) -> None:
        """Derive next observations once an episode's n_i + 1 observations are written."""
        self.next_observations[rows] = self.observations[rows.start + 1 : rows.stop + 1]

    def finish(self) -> TransitionDataset:
        """Check the whole and hand it over; the recording's own end counts as truncation."""
        if self.filled != len(self.rewards):
            raise broken(self.id, f"{self.filled} of the promised {len(self.rewards)} steps exist")
        last = np.append(self.starts[1:], True)
        early = np.flatnonzero((self.terminations | self.truncations) & ~last)
        if len(early):
            raise DatasetError(
                f"dataset {self.id} goes on after an episode's end at transition {early[0]} "
                f"({len(early)} such places): split its episodes where they end"
            )
        self.truncations |= last & ~self.terminations
        previous_actions = np.zeros_like(self.actions)
        previous_actions[1:] = self.actions[:-1]
        previous_actions[self.starts] = 0
        return TransitionDataset(
            id=self.id,
            observations=self.observations[:-1],
            actions=self.actions,
            rewards=self.rewards,
            next_observations=self.next_observations,
            terminations=self.terminations,
            truncations=self.truncations,
            previous_actions=previous_actions,
            starts=self.starts,
        )


def read_transitions(metadata: dict[str, Any], obs_dim: int, action_dim: int) -> TransitionDataset:
    """Read all episodes of a dataset of the local store.

    Args:
        metadata: The dataset's metadata, from `store.read_metadata`.
        obs_dim: Size of a flat observation.
        action_dim: Size of an action.

    Returns:
        The transitions, float32, shapes as in `TransitionDataset`; values are not checked.

    Raises:
        DatasetError: When episodes are missing, torn, or of another shape.
    """
    dataset_id, episodes = metadata["dataset_id"], metadata["total_episodes"]
    steps = metadata["total_steps"]
    if steps < 1 or episodes < 1:
        raise broken(dataset_id, f"it holds {episodes} episodes and {steps} steps")
    try:
        arrays = Arrays(dataset_id, steps, obs_dim, action_dim)
    except (MemoryError, ValueError) as error:
        raise broken(dataset_id, f"its {steps} promised steps do not fit into memory") from error
    if metadata["data_format"] == "hdf5" and '"Dict"' not in metadata["observation_space"]:
        _read_hdf5(arrays, episodes)
    else:
        for episode, values in enumerate(minari_episodes(dataset_id)):
            rows = arrays.reserve(episode, {name: array.shape for name, array in values.items()})
            arrays.observations[rows.start : rows.stop + 1] = values["observations"]
            for name in FIELDS:
                getattr(arrays, name)[rows] = values[name]
            arrays.close(rows)
    return arrays.finish()


def flat_dimensions(metadata: dict[str, Any]) -> tuple[int, int]:
    """(obs_dim, action_dim) of a dataset's own spaces, flattened.

    Raises:
        DatasetError: When the metadata hold no spaces that Minari can read.
    """
    from minari.serialization import deserialize_space

    try:
        spaces = (
            deserialize_space(metadata[f"{name}_space"]) for name in ("observation", "action")
        )
        obs_dim, action_dim = (gym.spaces.flatdim(space) for space in spaces)
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise broken(metadata["dataset_id"], f"its spaces cannot be read ({error})") from error
    return obs_dim, action_dim


def _read_hdf5(arrays: Arrays, episodes: int) -> None:
    path = dataset_folder(arrays.id) / "data" / "main_data.hdf5"
    everything = h5py.h5s.ALL
    try:
        with h5py.File(path, "r") as file:
            if len(file) != episodes:
                raise broken(arrays.id, f"{len(file)} of the promised {episodes} episodes exist")
            for episode in range(episodes):
                group = h5py.h5g.open(file.id, f"episode_{episode}".encode())
                stored = {
                    name: h5py.h5d.open(group, name.encode()) for name in ("observations", *FIELDS)
                }
                rows = arrays.reserve(episode, {name: d.shape for name, d in stored.items()})
                observations = arrays.observations[rows.start : rows.stop + 1]
                stored["observations"].read(everything, everything, observations)
                for name in FIELDS:
                    stored[name].read(everything, everything, getattr(arrays, name)[rows])
                arrays.close(rows)
    except DatasetError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise broken(arrays.id, f"main_data.hdf5 cannot be read ({error})") from error


def minari_episodes(dataset_id: str) -> Iterator[dict[str, NDArray[Any]]]:
    """Episodes through Minari's own iteration, observations flattened; slower, for any format."""
    from minari import MinariDataset

    try:
        dataset = MinariDataset(dataset_folder(dataset_id) / "data")
        space = dataset.observation_space
        for episode in dataset.iterate_episodes():
            yield {
                "observations": _flatten(space, episode.observations),
                **{name: np.asarray(getattr(episode, name)) for name in FIELDS},
            }
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise broken(dataset_id, f"Minari cannot read it ({error})") from error


def _flatten(space: gym.Space[Any], observations: Any) -> NDArray[Any]:
    """Flat observations, shape (n_i + 1, obs_dim): a Dict's parts follow its sorted keys."""
    if isinstance(space, gym.spaces.Dict):
        parts = [_flatten(part, observations[name]) for name, part in space.spaces.items()]
        return np.concatenate(parts, axis=1)
    array = np.asarray(observations)
    return array.reshape(len(array), -1)
