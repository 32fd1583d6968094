"""The jobs of `flowmdp bench` as tasks of a Ray cluster.

Runs, data and clones lie on a path that all nodes share, under the same names everywhere. So a job
whose node is lost goes on from its checkpoint on another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from flowmdp.cluster import RETRIES, SECONDS, check_room, first_line, joined
from flowmdp.compare.process import Cell, Ended, Running, run_cell
from flowmdp.compare.table import Job
from flowmdp.envs.data.store import store_root
from flowmdp.errors import ConfigurationError
from flowmdp.runs.cache import cache_root


class ClusterJob:
    """A job at work on a cluster, or waiting for room there; see `Running`."""

    def __init__(self, ray: Any, cell: Cell, cpus: int, gpus: float) -> None:
        self.ray, self.room, self.interrupted = ray, (cpus, gpus), False
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES}
        self.reference = ray.remote(run_cell).options(**options).remote(cell)

    def interrupt(self) -> None:
        """See `Running`."""
        self.ray.cancel(self.reference, force=self.interrupted)
        self.interrupted = True

    def wait(self) -> Ended:
        """See `Running`; a job that has no room any more is given up."""
        ray, how = self.ray, ""
        try:
            while not ray.wait([self.reference], timeout=SECONDS)[0]:
                check_room(ray, *self.room)
            ended: Ended = ray.get(self.reference)
            return ended
        except ConfigurationError as error:
            ray.cancel(self.reference)
            how = str(error)
        except ray.exceptions.RayTaskError as error:
            how = first_line(error.cause)
        except ray.exceptions.RayError as error:
            how = first_line(error)
        return Ended(how, 0.0)


@contextmanager
def on_cluster(
    address: str | None, runs: Path, devices: set[str], threads: int, gpus: float | None
) -> Iterator[Callable[[Job, Cell, IO[bytes]], Running]]:
    """What starts jobs on a cluster.

    Args:
        address: As in `joined`.
        runs: Folder of run folders and logs.
        devices: That jobs ask for.
        threads: CPUs of each job.
        gpus: GPUs of each job that may use one; None takes 1 where the cluster has some.

    Raises:
        ConfigurationError: As `joined`, and where no node is large enough for a job.
    """
    folders = {"MINARI_DATASETS_PATH": store_root(), "FLOWMDP_CACHE": cache_root()}
    environment = {name: str(folder) for name, folder in folders.items()}
    with joined(address, (runs, *folders.values())) as ray:
        if gpus is None:
            gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0))
        wanted = {device: 0.0 if device == "cpu" else gpus for device in devices}
        for share in wanted.values():
            check_room(ray, threads, share)

        def start(job: Job, cell: Cell, log: IO[bytes]) -> Running:
            share = wanted[job.config["device"]]
            hidden = {} if share else {"CUDA_VISIBLE_DEVICES": ""}  # by Ray itself in part only
            own = {**cell.environment, **environment, **hidden}
            return ClusterJob(ray, dataclasses.replace(cell, environment=own), threads, share)

        yield start
