"""The process of a `flowmdp bench` job, on this machine or on a node of a cluster."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from flowmdp.errors import ConfigurationError
from flowmdp.files import locked, read_json
from flowmdp.runs.folder import RunFolder
from flowmdp.runs.interrupt import Interrupt, listening
from flowmdp.schemas import Result

ENTRY = (sys.executable, "-P", "-m", "flowmdp.cli.worker")
"""What a job's process is; -P takes the flowmdp that runs here, not one in the current folder."""
PATIENCE = 300
"""Seconds for which a job waits for its predecessor, whose node was lost, to leave the folder."""


class Ended(NamedTuple):
    """How a job's process ended."""

    fault: str
    """What went wrong, with the last line of the log; empty where nothing did."""
    seconds: float
    results: tuple[dict[str, Any], ...] = ()
    """Of a node: what each result.json holds, which a shared file system may show here later."""


class Running(Protocol):
    """A job at work, somewhere."""

    def interrupt(self) -> None:
        """Have it save and end, as Ctrl-C does; the second time, at once."""

    def wait(self) -> Ended:
        """Wait for its end."""
        ...


@dataclass(frozen=True)
class Cell:
    """What a job's process needs, wherever it runs.

    Attributes:
        begin: The `flowmdp train` that begins the job.
        resume: The one that continues it.
        folders: The run folder of the job, or of each job in the process.
        log: What the job's processes say.
        environment: Variables on top of the machine's own.
    """

    begin: list[str]
    resume: list[str]
    folders: tuple[Path, ...]
    log: Path
    environment: dict[str, str]

    @property
    def command(self) -> list[str]:
        """The words that continue the job where it was begun, or begin it."""
        return self.resume if RunFolder(self.folders[0]).config.exists() else self.begin


class Process:
    """A job's process on this machine.

    It has a process group of its own, so that Ctrl-C reaches it through `interrupt` only; its
    input ends when whoever started it does.

    Args:
        cell: What it is.
        log: Takes its output; it holds the file, and the lock on it, as long as it lives.
    """

    def __init__(self, cell: Cell, log: IO[bytes]) -> None:
        command = cell.command
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        self.path, self.since = cell.log, time.perf_counter()
        self.process = subprocess.Popen(
            [*ENTRY, *command[1:]],
            env={**os.environ, **cell.environment, "TQDM_MININTERVAL": "30"},  # bars fill the log
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )

    def interrupt(self) -> None:
        """See `Running`."""
        self.process.send_signal(signal.SIGINT)

    def wait(self) -> Ended:
        """See `Running`."""
        with self.process:  # which closes its input in the end
            code = self.process.wait()
        seconds = time.perf_counter() - self.since
        if code == 0:
            return Ended("", seconds)
        how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        *_, last = self.path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return Ended(f"{how}: {last.strip()} ({self.path})", seconds)


def run_cell(cell: Cell) -> Ended:
    """A job as a task on a cluster's node; an interruption of the task is one of the job.

    Raises:
        ConfigurationError: On a node that does not see the job's log.
    """
    if not cell.log.exists():
        raise ConfigurationError(f"node {socket.gethostname()} does not see {cell.log.parent}")
    interrupt, until = Interrupt(), time.monotonic() + PATIENCE
    with listening(interrupt), cell.log.open("ab") as log:
        while any(map(_is_locked, cell.folders)) and interrupt.go_on() and time.monotonic() < until:
            time.sleep(0.5)
        if not interrupt.go_on():
            return Ended("interrupted", 0.0)
        job, told = Process(cell, log), False
        while job.process.poll() is None:  # not `wait`, which Ray cannot interrupt
            if not (told or interrupt.go_on()):
                job.interrupt()
                told = True
            time.sleep(0.1)
        ended = job.wait()
        if ended.fault:
            return ended
        results = (read_json(RunFolder(folder).result, Result) for folder in cell.folders)
        return ended._replace(results=tuple(results))


def _is_locked(folder: Path) -> bool:
    """Whether a process works in a run folder, which need not exist."""
    if not folder.exists():
        return False
    try:
        with locked(folder):
            return False
    except ConfigurationError:
        return True
