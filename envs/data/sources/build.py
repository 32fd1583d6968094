"""Build a task's builtin dataset: roll the shipped behaviour policies, or the maze planner, out."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from gymnasium.envs.registration import EnvSpec
from tqdm import tqdm

from flowmdp.arguments import check_integers
from flowmdp.envs.data.sources.behavior import BehaviorPolicy
from flowmdp.envs.data.sources.collect import NUM_ENVS, Episode, collect_steps, roll_out
from flowmdp.envs.data.sources.planner import plan_episodes, planner_recipe
from flowmdp.envs.data.store import dataset_lock, is_present, new_dataset, read_metadata
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.tasks import Task, get_task
from flowmdp.errors import DatasetError

BUILD_KEY = "flowmdp_build"
"""Key of a dataset's metadata that tells what it was built from."""


def build_dataset(
    task: str, steps: int = 200_000, seed: int = 0, progress: bool = True, force: bool = False
) -> str:
    """Roll the task's behaviour out into its Minari dataset, or find it already built.

    The dataset appears whole or not at all, whenever the process is killed; two builders at once
    take turns. The same task, steps, seed, versions and kind of processor give the same bytes (see
    `OPENBLAS_CORETYPE` in docs/data.md).

    Args:
        task: Name of the task, `hopper-medium`.
        steps: Environment steps, at least 1; the last episode is cut (truncated) to fit exactly.
        seed: Non-negative.
        progress: Whether to show a progress bar on stderr.
        force: Whether to replace a dataset that is already there.

    Returns:
        The dataset's Minari id.

    Raises:
        UnknownTaskError: For an unknown task.
        ConfigurationError: For steps < 1 or a negative seed.
        DatasetError: When the task has no builtin data, another build of it is there already, or
            the store cannot be written.
    """
    row = get_task(task)
    dataset_id = row.dataset("builtin")
    check_integers(1, steps=steps)
    check_integers(0, seed=seed)
    recipe = build_recipe(row, steps, seed)
    if not force and _is_built(dataset_id, recipe):
        return dataset_id
    with dataset_lock(dataset_id), contextlib.ExitStack() as stack:
        if not force and _is_built(dataset_id, recipe):
            return dataset_id
        number = 1 if row.planner else NUM_ENVS
        envs = [stack.enter_context(make_outer(task, "builtin")) for _ in range(number)]
        bar = tqdm(total=steps, desc=dataset_id, unit="step", unit_scale=True, disable=not progress)
        episodes = _episodes(row, envs, steps, seed, stack.enter_context(bar))
        algorithms = sorted({policy["algorithm"] for policy in recipe["policies"].values()})
        name = "waypoint planner" if row.planner else "+".join(algorithms)
        notes = {"algorithm_name": name, BUILD_KEY: recipe}
        write_dataset(dataset_id, envs[0], episodes, notes, steps)
    return dataset_id


def build_recipe(row: Task, steps: int, seed: int) -> dict[str, Any]:
    """All that decides the content of a built dataset, for its metadata."""
    policies = {name: BehaviorPolicy.shipped(name).provenance for name in row.behaviors}
    recipe: dict[str, Any] = {"steps": steps, "seed": seed, "policies": policies}
    return recipe | {"planner": planner_recipe()} if row.planner else recipe


def is_current(row: Task, metadata: dict[str, Any]) -> bool:
    """Whether a built dataset came from the behaviour that this version ships."""
    built = metadata.get(BUILD_KEY, {})
    return bool(built == build_recipe(row, built.get("steps"), built.get("seed")))


def _is_built(dataset_id: str, recipe: dict[str, Any]) -> bool:
    """Whether it is there and came from this recipe; what came from another is an error."""
    if not is_present(dataset_id):
        return False
    built = read_metadata(dataset_id).get(BUILD_KEY)
    if built == recipe:
        return True
    if not built:
        what = "another recipe"
    elif (built.get("steps"), built.get("seed")) == (recipe["steps"], recipe["seed"]):
        what = "another version of the behaviour policy"
    else:
        what = f"{built.get('steps')} steps, seed {built.get('seed')}"
    raise DatasetError(
        f"dataset {dataset_id} is there already, built from {what}: keep it, or replace it with "
        "force=True (--force)"
    )


def _episodes(
    row: Task, envs: list[gym.Env[Any, Any]], steps: int, seed: int, bar: tqdm[Any]
) -> Iterator[Episode]:
    """The planner's episodes, or an equal share of steps from one policy after the other."""
    number = len(row.behaviors)
    parts = [(plan_episodes(envs[0], seed, row.horizon), steps)] if row.planner else []
    for index, name in enumerate(row.behaviors):
        share = steps * (index + 1) // number - steps * index // number
        policy = BehaviorPolicy.shipped(name)
        parts.append((roll_out(policy, envs, seed * number + index, row.horizon), share))
    for endless, share in parts:
        for episode in collect_steps(endless, share):
            bar.update(len(episode))
            yield episode


def write_dataset(
    dataset_id: str,
    env: gym.Env[Any, Any],
    episodes: Iterable[Episode],
    metadata: dict[str, Any],
    steps: int = 0,
) -> None:
    """Write episodes as a Minari dataset (HDF5) into the store. Use it under `dataset_lock`.

    The outer environment gives spaces and spec; `metadata` goes into metadata.json. The file grows
    in memory, some 50 MB for 200,000 steps: HDF5 that meets a full disk, as it would in Minari's
    own writer, crashes the process. A disk without room for `steps` is refused at once.
    """
    import minari
    from minari.dataset.minari_storage import MinariStorage

    brought_by = type(env.unwrapped).__module__.partition(".")[0].replace("_", "-")
    packages = sorted({"gymnasium", "mujoco", brought_by})
    requirements = [f"{name}=={importlib.metadata.version(name)}" for name in packages]
    spaces = env.observation_space, env.action_space
    room = 8 * steps * sum(map(gym.spaces.flatdim, spaces))  # bytes
    with new_dataset(dataset_id, room) as folder:
        storage = MinariStorage.new(
            folder / "data",
            observation_space=env.observation_space,
            action_space=env.action_space,
            env_spec=None if env.spec is None else _plain_spec(env.spec),
            data_format="hdf5",
        )
        named = {"dataset_id": dataset_id, "minari_version": minari.__version__}
        storage.update_metadata({**named, "requirements": requirements, **metadata})
        lengths: list[int] = []
        with h5py.File("main_data.hdf5", "w", driver="core", backing_store=False) as file:
            for episode in episodes:
                group = file.create_group(f"episode_{len(lengths)}")
                group.attrs["id"] = len(lengths)
                if episode.seed is not None:
                    group.attrs["seed"] = episode.seed
                group.attrs["total_steps"] = len(episode)
                for name in ("observations", "actions", "rewards", "terminations", "truncations"):
                    array = getattr(episode, name)
                    kept = {"maxshape": (None, *array.shape[1:]), "fletcher32": True}  # checksums
                    group.create_dataset(name, data=array, chunks=True, **kept)
                lengths.append(len(episode))
            file.flush()
            (folder / "data" / "main_data.hdf5").write_bytes(file.id.get_file_image())
        totals = {"total_steps": sum(lengths), "total_episodes": len(lengths)}
        storage.update_metadata({**totals, "dataset_size": storage.get_size()})


def _plain_spec(spec: EnvSpec) -> EnvSpec:
    """The description with Python's own numbers, which JSON can hold.

    Arguments that JSON cannot hold, such as functions, become their names: the environment cannot
    be made from them again, but the wrappers it was recorded through are known.
    """

    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)

    told = dataclasses.asdict(spec)
    for derived in ("namespace", "name", "version"):
        del told[derived]
    return EnvSpec.from_json(json.dumps(told, default=plain))
