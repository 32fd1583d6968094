"""Where the jobs of `flowmdp bench` keep their files, how far they are, and their processes.

RESULTS/NAME.json  the outcome of a finished job with its label; its presence says that it is done
RUNS/NAME/         the run folder of `flowmdp train`
RUNS/NAME.log      what the job's process said; locked for as long as the process lives

The lock is the operating system's (flock) and belongs to the open log, which the process inherits:
it holds even where the bench that started the job was killed and the job goes on alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flowmdp.compare.table import Job
from flowmdp.errors import ConfigurationError
from flowmdp.files import read_json, write_json
from flowmdp.runs.folder import RunFolder

ENTRY = (sys.executable, "-P", "-m", "flowmdp.cli")
"""What a job's process is; -P takes the flowmdp that runs here, not one in the current folder."""


@dataclass(frozen=True)
class Workspace:
    """The two folders of a bench.

    Attributes:
        results: Of the finished jobs' outcomes.
        runs: Of run folders and logs.
    """

    results: Path
    runs: Path

    def result(self, job: Job) -> Path:
        """The file whose presence says that the job is done."""
        return self.results / f"{job.name}.json"

    def folder(self, job: Job) -> RunFolder:
        """The job's run folder, which need not exist."""
        return RunFolder(self.runs / job.name)

    def log(self, job: Job) -> Path:
        """What the job's processes said."""
        return self.runs / f"{job.name}.log"

    def state(self, job: Job) -> str:
        """How far the job is: "done", "partial" (begun, to be continued) or "missing"."""
        if self.result(job).exists():
            return "done"
        return "partial" if self.folder(job).config.exists() else "missing"

    def command(self, job: Job) -> list[str]:
        """The `flowmdp train` that continues the job where it was begun, or begins it."""
        path = str(self.folder(job).path)
        if self.state(job) == "partial":
            return ["flowmdp", "train", "--resume", path]
        return [*job.command, "--out", path]

    def check(self, job: Job) -> None:
        """Refuse what an earlier, different table left under the job's name.

        Raises:
            ConfigurationError: When result or run were made with other settings.
            CheckpointError: When the file cannot be read.
        """
        for path in (self.result(job), self.folder(job).config):
            if path.exists():
                found = read_json(path)
                recorded = found.get("hyperparameters", {})
                unnamed = {name: job.defaults[name] for name in job.defaults if name in recorded}
                found |= {name: recorded[name] for name in unnamed}
                for name, value in {**job.expected, **unnamed}.items():
                    if found.get(name) != value:
                        raise ConfigurationError(
                            f"{path} has {name} {found.get(name)!r}, the table {value!r}: give "
                            "the algorithm another name in the table, or remove what is there"
                        )

    def collect(self, job: Job) -> dict[str, Any]:
        """Put a finished run's outcome among the results; returns it."""
        result = {"label": job.label, **read_json(self.folder(job).result)}
        self.results.mkdir(parents=True, exist_ok=True)
        write_json(self.result(job), result)
        return result


@dataclass
class Process:
    """A job at work.

    Attributes:
        job: The job.
        popen: Its process, in a process group of its own: Ctrl-C reaches it through the bench only.
        log: The log, open and locked.
        since: When it began, in seconds of `time.perf_counter`.
        interruptions: How often it was asked to end.
    """

    job: Job
    popen: subprocess.Popen[bytes]
    log: IO[bytes]
    since: float
    interruptions: int = 0

    @classmethod
    def start(cls, job: Job, place: Workspace, log: IO[bytes], threads: int) -> Process:
        """Begin or continue a job.

        Args:
            job: The job, which must not be done.
            place: Where its files lie.
            log: From `lock_log`.
            threads: Of the process.
        """
        command = place.command(job)
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        numbers = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        popen = subprocess.Popen(
            [*ENTRY, *command[1:]],
            env={**os.environ, **numbers, "TQDM_MININTERVAL": "30"},  # bars would fill the log
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        return cls(job, popen, log, time.perf_counter())

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.since

    def interrupt(self, times: int) -> None:
        """Ask the job to save and end as Ctrl-C does, unless it was asked so many times already."""
        if self.interruptions < times and self.popen.poll() is None:
            self.popen.send_signal(signal.SIGINT)
            self.interruptions += 1


def lock_log(path: Path) -> IO[bytes] | None:
    """Open a job's log for appending, and lock it; None where another process has it.

    Whoever holds the lock may write the job's run folder and result.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        return None
    return log


def why(process: Process, log: Path) -> str:
    """How a failed job ended: its exit code or signal, and the last line it wrote."""
    code = process.popen.returncode
    how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return f"{how}: {lines[-1]}"
