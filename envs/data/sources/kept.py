"""Record episodes in several processes or on a cluster, and keep them until the dataset is whole.

A finished episode is a file of its own. A build that was stopped, however, goes on from there.
"""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Generator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from flowmdp.cluster import unordered
from flowmdp.envs.data.sources import manipulation
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.sources.manipulation import Experts, reward_free
from flowmdp.errors import DatasetError
from flowmdp.files import replace_file

BESIDE = "from flowmdp.envs.data.sources.manipulation import serve; serve()"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def record(
    name: str, seed: int, indices: Sequence[int], jobs: int
) -> Generator[tuple[int, Episode]]:
    """Yield those episodes of `scene-play`'s experts with their indices, in any order.

    Args:
        name: OGBench's dataset that the experts are those of.
        seed: Of the dataset; an episode depends on it and on its own index alone.
        indices: Which episodes.
        jobs: Processes beside this one; 1 records in this one.

    Raises:
        DatasetError: When a process beside breaks.
    """
    if jobs == 1 or len(indices) < 2:
        experts = Experts(name) if indices else None
        yield from (
            (i, experts.record(seed, i, manipulation.TRANSITIONS)) for i in indices if experts
        )
        return
    # Their own programs, not forks: nothing of this process, such as its threads, its main script
    # or its terminal's Ctrl-C, comes along. One that nobody speaks to any more ends.
    command = [sys.executable, "-c", BESIDE, name, str(seed), str(manipulation.TRANSITIONS)]
    given = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "start_new_session": True}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with tempfile.TemporaryFile() as complaints:
        beside = [
            subprocess.Popen(command, **pipes, stderr=complaints, **given)  # type: ignore[call-overload]
            for _ in range(min(jobs, len(indices)))
        ]
        try:
            todo, busy = iter(indices), dict[object, tuple[int, subprocess.Popen[bytes]]]()

            def occupy(process: subprocess.Popen[bytes]) -> None:
                for index in todo:
                    assert process.stdin is not None
                    process.stdin.write(b"%d\n" % index)
                    process.stdin.flush()
                    busy[process.stdout] = index, process
                    return

            for process in beside:
                occupy(process)
            while busy:
                for pipe in wait(list(busy)):  # type: ignore[arg-type]
                    index, process = busy.pop(pipe)
                    episode = pickle.load(pipe)  # type: ignore[arg-type]
                    occupy(process)
                    yield index, episode
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip().splitlines()
            raise DatasetError(
                f"a process that recorded {name} broke off ({said[-1] if said else 'killed'}): "
                "start the build again, it goes on from the finished episodes"
            ) from error
        finally:
            for process in beside:
                process.kill()
                process.communicate()


def record_on_cluster(
    ray: Any, name: str, seed: int, indices: Sequence[int], jobs: int
) -> Generator[tuple[int, Episode]]:
    """`record` by tasks of a Ray cluster, so many at once; `ray` is from `cluster.joined`."""
    episode = functools.partial(_episode, name, seed, manipulation.TRANSITIONS)
    yield from unordered(ray, episode, indices, jobs)


@functools.cache
def _experts(name: str) -> Experts:
    return Experts(name)


def _episode(name: str, seed: int, transitions: int, index: int) -> Episode:
    """A task; its process keeps the scene for the next one."""
    return _experts(name).record(seed, index, transitions)


def keep(folder: Path, index: int, episode: Episode) -> None:
    """Put an episode into the folder, whole or not at all."""
    arrays: dict[str, Any] = {"seed": np.array(episode.seed), **episode.infos}
    arrays |= {"observations": episode.observations, "actions": episode.actions}
    replace_file(_file(folder, index), lambda path: np.savez(path, **arrays))


def kept(folder: Path, index: int) -> Episode | None:
    """An episode of the folder; None where there is none, or no whole one."""
    try:
        with _file(folder, index).open("rb") as file:  # np.load leaves a torn one open
            arrays = dict(np.load(file, allow_pickle=False))  # compares checksums
        seed, observations = int(arrays.pop("seed")), arrays.pop("observations")
        episode = reward_free(observations, arrays.pop("actions"), arrays, seed)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    whole = len(episode) == manipulation.TRANSITIONS
    lengths = {len(array) for array in (observations, *episode.infos.values())}
    return episode if whole and lengths == {manipulation.TRANSITIONS + 1} else None


def _file(folder: Path, index: int) -> Path:
    return folder / f"episode-{index:05d}.npz"
