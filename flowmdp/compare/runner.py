"""`flowmdp bench`: run what is missing of a table, a few processes at a time."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from flowmdp.cli.options import flat
from flowmdp.cli.options_many import Bench
from flowmdp.compare.jobs import Process, Workspace, lock_log, why
from flowmdp.compare.table import Job, read_table
from flowmdp.errors import ConfigurationError, FlowMDPError

POLL = 0.1
"""Seconds between two looks at the processes."""


def run_bench(options: Bench) -> int:
    """Run the missing jobs of a table, or list all.

    Returns:
        0, or 1 when a job failed.

    Raises:
        ConfigurationError: For a table or options that cannot be used; before anything runs.
        KeyboardInterrupt: After Ctrl-C, when all running jobs have saved and ended.
    """
    for name in ("jobs", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigurationError(f"--{name} is {value}: it must be at least 1")
    jobs = _chosen(read_table(options.table), flat(options.only))
    stem = options.table.stem
    place = Workspace(
        options.results or Path("results") / stem, options.runs or Path("runs") / "bench" / stem
    )
    for job in jobs:
        place.check(job)
    if options.list:
        _print_list(jobs, place)
        return 0
    at_once = options.jobs or max(1, _cores() // options.threads)
    bench = Runner(jobs, place, at_once, options.threads)
    with bench.interruptible():
        bench.run()
    if bench.interruptions:
        raise KeyboardInterrupt(f"continue with: {shlex.join(['flowmdp', *sys.argv[1:]])}")
    return bench.report()


def _chosen(jobs: list[Job], only: tuple[str, ...]) -> list[Job]:
    """The jobs whose name contains one of the texts; all without texts."""
    chosen = [job for job in jobs if not only or any(text in job.name for text in only)]
    if not chosen:
        raise ConfigurationError(
            f"--only {' '.join(only)}: no job has such a name, for instance {jobs[0].name}"
        )
    return chosen


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _print_list(jobs: list[Job], place: Workspace) -> None:
    states = [place.state(job) for job in jobs]
    for job, state in zip(jobs, states, strict=True):
        print(f"{state:8} {job.name}\n    {shlex.join(place.command(job))}")
    counts = (f"{states.count(state)} {state}" for state in ("done", "partial", "missing"))
    print(f"{len(jobs)} jobs: {', '.join(counts)}")


class Runner:
    """Runs jobs, and keeps the account of them.

    Args:
        jobs: In the order in which they are begun; those that are done are skipped.
        place: Where their files lie.
        at_once: Most processes at a time.
        threads: Of each process.
    """

    def __init__(self, jobs: list[Job], place: Workspace, at_once: int, threads: int) -> None:
        self.place, self.at_once, self.threads = place, at_once, threads
        self.total = len(jobs)
        self.waiting = deque(job for job in jobs if place.state(job) != "done")
        self.running: list[Process] = []
        self.failed: list[Job] = []
        self.elsewhere: list[Job] = []
        self.interruptions, self.told = 0, False

    def run(self) -> None:
        """Until all jobs have ended, or the running ones after an interruption."""
        with tqdm(total=self.total, initial=self.total - len(self.waiting), desc="jobs") as bar:
            try:
                while self.running or (self.waiting and not self.interruptions):
                    self._look(bar)
                    time.sleep(POLL)
            finally:  # whatever went wrong in here, nothing is left running
                for process in self.running:
                    process.interrupt(1)
                    process.popen.wait()

    def _look(self, bar: Any) -> None:
        """Begin, interrupt and account for jobs as things stand."""
        while self.waiting and len(self.running) < self.at_once and not self.interruptions:
            self._begin(self.waiting.popleft(), bar)
        if self.interruptions and not self.told:
            self.told = True
            bar.write("the running jobs save and end; Ctrl-C again stops at once", file=sys.stderr)
        for process in self.running:
            process.interrupt(self.interruptions)
        for process in [one for one in self.running if one.popen.poll() is not None]:
            self.running.remove(process)
            self._end(process, bar)

    def report(self) -> int:
        """Say on stderr what is not done and why; returns the exit code."""
        compare = f"flowmdp report {shlex.quote(str(self.place.results))}"
        for job in self.elsewhere:
            print(f"flowmdp: {job.name} is being run by another bench", file=sys.stderr)
        if not self.failed:
            print(f"results in {self.place.results}; compare them: {compare}")
            return 0
        logs = ", ".join(str(self.place.log(job)) for job in self.failed)
        print(
            f"flowmdp: {len(self.failed)} of {self.total} jobs failed, see {logs}; the same "
            "command tries them again",
            file=sys.stderr,
        )
        return 1

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Pass SIGINT and SIGTERM on to the jobs as Ctrl-C, once for every time it comes."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._interrupted) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self.interruptions += 1  # passed on by the loop: no process can slip through in between

    def _begin(self, job: Job, bar: Any) -> None:
        """Start a job, unless another bench has it or has done it."""
        log = lock_log(self.place.log(job))
        if log is None:
            self.elsewhere.append(job)
            return
        if self.place.state(job) == "done":
            log.close()
            bar.update()
            return
        if self.place.folder(job).result.exists():  # a bench was killed just before this
            self._done(job, "found finished", bar)
            log.close()
            return
        self.running.append(Process.start(job, self.place, log, self.threads))

    def _end(self, process: Process, bar: Any) -> None:
        """Account for a job whose process has ended."""
        job = process.job
        try:
            if process.popen.returncode == 0:
                self._done(job, f"{process.seconds:.0f} s", bar)
            elif not self.interruptions:
                self.failed.append(job)
                log = self.place.log(job)
                bar.write(f"failed {job.name}: {why(process, log)} ({log})", file=sys.stderr)
        finally:
            process.log.close()

    def _done(self, job: Job, how: str, bar: Any) -> None:
        try:
            result = self.place.collect(job)
        except FlowMDPError as error:
            self.failed.append(job)
            bar.write(f"failed {job.name}: {error}", file=sys.stderr)
            return
        score = result["normalized_score"]
        scored = "" if score is None else f", score {score:.1f}"
        bar.write(
            f"done {job.name}: return {result['mean_return']:.0f}{scored}, {how}", file=sys.stderr
        )
        bar.update()
