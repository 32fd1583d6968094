"""`flowmdp bench`: run what is missing of a table, a few processes at a time.

RESULTS          one row per finished job; its presence says that the job is done
RUNS/NAME/       the run folder of `flowmdp train`
RUNS/NAME.log    what the job's process said; locked for as long as the process lives

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
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from tqdm import tqdm

from flowmdp.compare.results import Key, Result, key_of, put_row, read_rows
from flowmdp.compare.table import Job, read_table
from flowmdp.errors import ConfigurationError, FlowMDPError
from flowmdp.files import read_json
from flowmdp.runs.folder import RunFolder

ENTRY = (sys.executable, "-P", "-m", "flowmdp.cli")
"""What a job's process is; -P takes the flowmdp that runs here, not one in the current folder."""
POLL = 0.1
"""Seconds between two looks at the processes."""


def run_bench(
    table: Path,
    *,
    results: Path | None = None,
    runs: Path | None = None,
    jobs: int | None = None,
    threads: int = 1,
    only: tuple[str, ...] = (),
    list: bool = False,
) -> int:
    """Run the missing jobs of a table, or list all.

    Args:
        table: TOML file.
        results: File of the finished jobs' outcomes; results/TABLE.jsonl if not given.
        runs: Folder of run folders and logs; runs/bench/TABLE if not given.
        jobs: Processes at once; cores / threads if not given.
        threads: Of each process.
        only: Texts, one of which a job's name must contain; none for all jobs.
        list: Print every job, how far it is and its command; run nothing.

    Returns:
        0, or 1 when a job failed or is still run by another bench.

    Raises:
        ConfigurationError: For a table or options that cannot be used; before anything runs.
        CheckpointError: When results or a run are damaged; also before.
        KeyboardInterrupt: After Ctrl-C, when all running jobs have saved and ended.
    """
    for name, value in (("jobs", jobs), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigurationError(f"--{name} is {value}: it must be at least 1")
    every = read_table(table)
    chosen = [job for job in every if not only or any(text in job.name for text in only)]
    if not chosen:
        raise ConfigurationError(
            f"--only {' '.join(only)}: no job has such a name, for instance {every[0].name}"
        )
    results = results or Path("results") / f"{table.stem}.jsonl"
    bench = Bench(chosen, results, runs or Path("runs") / "bench" / table.stem)
    bench.check()
    if list:
        bench.print_list()
        return 0
    with bench.interruptible():
        bench.run(jobs or max(1, len(os.sched_getaffinity(0)) // threads), threads)
    if bench.interruptions:
        raise KeyboardInterrupt(f"continue with: {shlex.join(['flowmdp', *sys.argv[1:]])}")
    return bench.report()


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

    def interrupt(self, times: int) -> None:
        """Ask the job to save and end as Ctrl-C does, unless it was asked so many times already."""
        if self.interruptions < times and self.popen.poll() is None:
            self.popen.send_signal(signal.SIGINT)
            self.interruptions += 1

    def failure(self) -> str:
        """How the job failed: its exit code or signal, and the last line it wrote."""
        code = self.popen.returncode
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        text = Path(self.log.name).read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        return f"{how}: {lines[-1]} ({self.log.name})"


class Bench:
    """Runs jobs, and keeps the account of them.

    Args:
        jobs: In the order in which they are begun; those that are done are skipped.
        results: File of the finished jobs' outcomes.
        runs: Folder of run folders and logs.
    """

    def __init__(self, jobs: list[Job], results: Path, runs: Path) -> None:
        self.jobs, self.results, self.runs = jobs, results, runs
        self.running: list[Process] = []
        self.failed: list[Job] = []
        self.elsewhere: list[Job] = []
        self.interruptions = 0

    def done(self) -> dict[Key, Result]:
        """The rows of the finished jobs, as the file has them now."""
        return {key_of(row): row for row in read_rows(self.results)}

    def folder(self, job: Job) -> RunFolder:
        """The job's run folder, which need not exist."""
        return RunFolder(self.runs / job.name)

    def log(self, job: Job) -> Path:
        """What the job's processes said."""
        return self.runs / f"{job.name}.log"

    def command(self, job: Job) -> list[str]:
        """The `flowmdp train` that continues the job where it was begun, or begins it."""
        folder = self.folder(job)
        if folder.config.exists():
            return ["flowmdp", "train", "--resume", str(folder.path)]
        return [*job.command, "--out", str(folder.path)]

    def check(self) -> None:
        """Refuse results and runs that other settings left under a job's name."""
        done = self.done()
        for job in self.jobs:
            if job.key in done:
                job.check(done[job.key], f"{job.name} in {self.results}")
            config = self.folder(job).config
            if config.exists():
                job.check(read_json(config), str(config))

    def print_list(self) -> None:
        """Every job: whether it is done, begun or missing, and its command."""
        done, states = self.done(), []
        for job in self.jobs:
            begun = "partial" if self.folder(job).config.exists() else "missing"
            states.append("done" if job.key in done else begun)
            print(f"{states[-1]:8} {job.name}\n    {shlex.join(self.command(job))}")
        counts = (f"{states.count(state)} {state}" for state in ("done", "partial", "missing"))
        print(f"{len(states)} jobs: {', '.join(counts)}")

    def run(self, at_once: int, threads: int) -> None:
        """Until all jobs have ended, or the running ones after an interruption.

        Args:
            at_once: Most processes at a time.
            threads: Of each process.
        """
        done, told = self.done(), False
        waiting = deque(job for job in self.jobs if job.key not in done)
        start = len(self.jobs) - len(waiting)
        with tqdm(total=len(self.jobs), initial=start, desc="jobs") as bar:
            try:
                while self.running or (waiting and not self.interruptions):
                    while waiting and len(self.running) < at_once and not self.interruptions:
                        bar.update(self._begin(waiting.popleft(), threads))
                    if self.interruptions and not told:
                        told = True
                        _say("the running jobs save and end; Ctrl-C again stops at once")
                    for process in self.running:
                        process.interrupt(self.interruptions)
                    for process in [one for one in self.running if one.popen.poll() is not None]:
                        self.running.remove(process)
                        bar.update(self._end(process))
                    time.sleep(POLL)
            finally:  # whatever went wrong in here, nothing is left running
                for process in self.running:
                    process.interrupt(1)
                    process.popen.wait()

    def report(self) -> int:
        """Say what is not done and why; returns the exit code."""
        for job in self.elsewhere:
            _say(f"flowmdp: {job.name} is being run by another bench")
        if self.failed:
            logs = ", ".join(str(self.log(job)) for job in self.failed)
            counts = f"{len(self.failed)} of {len(self.jobs)} jobs failed"
            _say(f"flowmdp: {counts}, see {logs}; the same command tries them again")
        if self.failed or self.elsewhere:
            return 1
        compare = f"flowmdp report {shlex.quote(str(self.results))}"
        print(f"results in {self.results}; compare them: {compare}")
        return 0

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

    def _begin(self, job: Job, threads: int) -> bool:
        """Start a job, unless another bench has it or has done it; whether it is done."""
        log = lock_log(self.log(job))
        if log is None:
            self.elsewhere.append(job)
            return False
        if job.key in self.done():
            log.close()
            return True
        if self.folder(job).result.exists():  # a bench was killed just before it collected this
            with log:
                return self._collect(job, "found finished")
        self.running.append(self.start(job, log, threads))
        return False

    def start(self, job: Job, log: IO[bytes], threads: int) -> Process:
        """A process that begins or continues a job; `log` is from `lock_log`."""
        command = self.command(job)
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
        return Process(job, popen, log, time.perf_counter())

    def _end(self, process: Process) -> bool:
        """Account for a job whose process has ended; whether it is done."""
        with process.log:
            if process.popen.returncode == 0:
                return self._collect(process.job, f"{time.perf_counter() - process.since:.0f} s")
            if not self.interruptions:
                self._fail(process.job, process.failure())
            return False

    def _collect(self, job: Job, how: str) -> bool:
        """Put a finished run's outcome among the results; whether that could be done."""
        try:
            result = {"label": job.label, **read_json(self.folder(job).result)}
            put_row(self.results, result)
        except FlowMDPError as error:
            self._fail(job, str(error))
            return False
        score = result["normalized_score"]
        scored = "" if score is None else f", score {score:.1f}"
        _say(f"done {job.name}: return {result['mean_return']:.0f}{scored}, {how}")
        return True

    def _fail(self, job: Job, why: str) -> None:
        self.failed.append(job)
        _say(f"failed {job.name}: {why}")


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


def _say(text: str) -> None:
    """A line on stderr, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)
