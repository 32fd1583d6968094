"""Build a task's builtin dataset: roll the shipped behaviour policies, or the maze planner, out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from gymnasium.envs.registration import EnvSpec
from tqdm import tqdm

from flowmdp.arguments import check_integers
from flowmdp.cluster import Engine, check_engine, check_room, joined
from flowmdp.envs.data.sources import manipulation
from flowmdp.envs.data.sources.behavior import BehaviorPolicy
from flowmdp.envs.data.sources.collect import NUM_ENVS, Episode, collect_steps, roll_out
from flowmdp.envs.data.sources.kept import (
    cores,
    keep,
    kept,
    record,
    record_on_cluster,
)
from flowmdp.envs.data.sources.manipulation import expert_recipe, published_episodes, quiet
from flowmdp.envs.data.sources.planner import plan_episodes, planner_recipe
from flowmdp.envs.data.store import (
    dataset_lock,
    forget_unfinished,
    is_present,
    new_dataset,
    read_metadata,
    unfinished_folder,
)
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.tasks import Task, get_task
from flowmdp.errors import ConfigurationError, DatasetError

BUILD_KEY = "flowmdp_build"
"""Key of a dataset's metadata that tells what it was built from."""

STEPS_PER_SECOND = 250
"""Of a core with OGBench's experts, roughly."""


def build_dataset(
    task: str,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    force: bool = False,
    episodes: int | None = None,
    jobs: int | None = None,
    engine: Engine = "local",
    address: str | None = None,
) -> str:
    """Roll the task's behaviour out into its Minari dataset, or find it already built.

    The dataset appears whole or not at all, whenever the process is killed; two builders at once
    take turns. The same task, size, seed, versions and kind of processor give the same bytes (see
    `OPENBLAS_CORETYPE` in docs/data.md).

    The data of OGBench's scenes consists of episodes of 1,000 steps, recorded in several processes;
    a build that was stopped goes on from its finished episodes. All tasks of a scene share them.

    Args:
        task: Name of the task, `hopper-medium`.
        steps: Environment steps, at least 1; the last episode is cut (truncated) to fit exactly.
            None takes 200,000. Not for OGBench's scenes.
        seed: Non-negative.
        progress: Whether to show a progress bar on stderr.
        force: Whether to replace a dataset that is already there.
        episodes: Of one of OGBench's scenes, at least 1; None takes as many as OGBench published.
        jobs: Processes that record one of OGBench's scenes, at least 1; None takes all cores.
        engine: "local", or "ray" to record one of OGBench's scenes on a Ray cluster.
        address: HOST:PORT of the cluster's head; None as in `flowmdp.cluster.joined`.

    Returns:
        The dataset's Minari id.

    Raises:
        UnknownTaskError: For an unknown task, or when its simulator is not installed.
        ConfigurationError: For steps, episodes or jobs < 1, a negative seed, steps where the task
            counts episodes and the other way around, or a cluster that cannot be used.
        DatasetError: When the task has no builtin data, another build of it is there already, or
            the store cannot be written.
        KeyboardInterrupt: When the user stopped it; how to go on is its text.
    """
    row = get_task(task)
    dataset_id = row.dataset("builtin")
    size = _size(row, steps, episodes)
    check_integers(1, **size, **({} if jobs is None else {"jobs": jobs}))
    check_integers(0, seed=seed)
    check_engine(engine, address=address)
    if engine == "ray" and not row.ogbench:
        raise ConfigurationError(f"{task} is recorded in one process: leave --engine ray out")
    recipe = build_recipe(row, size, seed)
    if not force and _is_built(dataset_id, recipe):
        return dataset_id
    with dataset_lock(dataset_id), contextlib.ExitStack() as stack:
        if not force and _is_built(dataset_id, recipe):
            return dataset_id
        if row.ogbench:
            env = stack.enter_context(make_recorded(row))
            recorder, most = record, cores()
            if engine == "ray":
                ray = stack.enter_context(joined(address))
                check_room(ray, 1)
                recorder = functools.partial(record_on_cluster, ray)
                most = int(ray.cluster_resources()["CPU"])
            found = _experts_episodes(row, recipe, progress, force, jobs or most, recorder)
            total, name = size["episodes"] * manipulation.TRANSITIONS, "OGBench's experts"
        else:
            number, total = 1 if row.planner else NUM_ENVS, size["steps"]
            envs = [stack.enter_context(make_outer(task, "builtin")) for _ in range(number)]
            bar = _bar(dataset_id, total, progress)
            found, env = _episodes(row, envs, total, seed, stack.enter_context(bar)), envs[0]
            algorithms = sorted({policy["algorithm"] for policy in recipe["policies"].values()})
            name = "waypoint planner" if row.planner else "+".join(algorithms)
        write_dataset(dataset_id, env, found, {"algorithm_name": name, BUILD_KEY: recipe}, total)
        forget_unfinished(dataset_id)
    return dataset_id


def _size(row: Task, steps: int | None, episodes: int | None) -> dict[str, int]:
    """How much to build, in the unit that the task is built in."""
    if row.ogbench and steps is None:
        return {"episodes": published_episodes(row.ogbench) if episodes is None else episodes}
    if not row.ogbench and episodes is None:
        return {"steps": 200_000 if steps is None else steps}
    wrong, right = ("steps", "episodes") if row.ogbench else ("episodes", "steps")
    raise ConfigurationError(
        f"{row.name} is built by {right}, not by {wrong}: give {right} (--{right}) instead"
    )


def build_recipe(row: Task, size: dict[str, int], seed: int) -> dict[str, Any]:
    """All that decides the content of a built dataset, for its metadata."""
    if row.ogbench:
        return {**size, "seed": seed, "experts": expert_recipe(row.ogbench)}
    policies = {name: BehaviorPolicy.shipped(name).provenance for name in row.behaviors}
    recipe: dict[str, Any] = {**size, "seed": seed, "policies": policies}
    return recipe | {"planner": planner_recipe()} if row.planner else recipe


def is_current(row: Task, metadata: dict[str, Any]) -> bool:
    """Whether a built dataset came from the behaviour that this version ships."""
    built = metadata.get(BUILD_KEY, {})
    return bool(built == build_recipe(row, _built_size(built), built.get("seed")))


def _built_size(built: dict[str, Any]) -> dict[str, int]:
    return {unit: built[unit] for unit in ("steps", "episodes") if unit in built}


def _is_built(dataset_id: str, recipe: dict[str, Any]) -> bool:
    """Whether it is there and came from this recipe; what came from another is an error."""
    if not is_present(dataset_id):
        return False
    built = read_metadata(dataset_id).get(BUILD_KEY)
    if built == recipe:
        return True
    size = _built_size(built or {})
    if not built:
        what = "another recipe"
    elif (size, built.get("seed")) == (_built_size(recipe), recipe["seed"]):
        what = "another version of the behaviour policy"
    else:
        what = ", ".join(f"{n} {unit}" for unit, n in size.items()) + f", seed {built.get('seed')}"
    raise DatasetError(
        f"dataset {dataset_id} is there already, built from {what}: keep it, or replace it with "
        "force=True (--force)"
    )


def _bar(dataset_id: str, steps: int, progress: bool, done: int = 0) -> tqdm[Any]:
    return tqdm(
        total=steps,
        initial=done,
        desc=dataset_id,
        unit="step",
        unit_scale=True,
        disable=not progress,
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


def _experts_episodes(
    row: Task,
    recipe: dict[str, Any],
    progress: bool,
    force: bool,
    jobs: int,
    record: Callable[[str, int, list[int], int], Generator[tuple[int, Episode]]],
) -> Iterator[Episode]:
    """Record what is missing of the experts' episodes, then give all of them in order."""
    dataset_id, episodes = row.dataset("builtin"), recipe["episodes"]
    versions = {name: importlib.metadata.version(name) for name in ("mujoco", "numpy", "ogbench")}
    same = {name: value for name, value in recipe.items() if name != "episodes"} | versions
    key = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]
    folder = unfinished_folder(dataset_id, key)
    missing = [index for index in range(episodes) if kept(folder, index) is None]
    steps = len(missing) * manipulation.TRANSITIONS
    bar = _bar(
        dataset_id,
        episodes * manipulation.TRANSITIONS,
        progress,
        episodes * manipulation.TRANSITIONS - steps,
    )
    minutes = steps / (jobs * STEPS_PER_SECOND) / 60
    if progress and minutes > 1:
        bar.write(
            f"{dataset_id}: {len(missing):,} episodes take about {minutes:.0f} minutes on {jobs} "
            f"cores; `flowmdp data build {row.name} --episodes 100` makes a smaller dataset",
            sys.stderr,
        )
    with bar:
        try:
            recorded = record(row.ogbench, recipe["seed"], missing, jobs)
            with contextlib.closing(recorded):
                for index, episode in recorded:
                    keep(folder, index, episode)
                    bar.update(len(episode))
        except KeyboardInterrupt as stop:
            words = f"flowmdp data build {row.name} --episodes {episodes} --seed {recipe['seed']}"
            words += " --force" * force
            done = bar.n // manipulation.TRANSITIONS if progress else "the finished"
            stop.args = (f"{done} of {episodes} episodes are kept; continue with: {words}",)
            raise
    for index in range(episodes):
        if (whole := kept(folder, index)) is None:
            raise DatasetError(
                f"episode {index} of {dataset_id} was changed while it was kept in {folder}: start "
                "the build again"
            )
        yield whole


@contextlib.contextmanager
def make_recorded(row: Task) -> Iterator[gym.Env[Any, Any]]:
    """The environment that OGBench's data of a task was recorded in, for `write_dataset`.

    It has no goal, and float32 observations; attribute `state_widths` as the task's robot.
    """
    scene = row.ogbench.rpartition("-")[0]
    options: dict[str, Any] = {}
    if "builtin" in row.datasets:
        options = {"terminate_at_goal": False, "mode": "data_collection"}
    with make_outer(row.name) as outer, quiet():
        env = gym.make(f"{scene}-v0", disable_env_checker=True, max_episode_steps=1001, **options)
        env.observation_space, env.action_space = outer.observation_space, outer.action_space
        env.state_widths = outer.get_wrapper_attr("state_widths")  # type: ignore[attr-defined]
        yield env


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
                names = ("observations", "actions", "rewards", "terminations", "truncations")
                arrays = {name: getattr(episode, name) for name in names}
                arrays |= {f"infos/{name}": array for name, array in episode.infos.items()}
                for name, array in arrays.items():
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
