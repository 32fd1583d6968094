"""`flowmdp bench`: run what is missing of a table, a few processes at a time.

The processes run on this machine, or on the nodes of a Ray cluster; all else is the same.

RESULTS          one row per finished job; its presence says that the job is done
RUNS/NAME/       the run folder of `flowmdp train`
RUNS/NAME.log    what the job's process said; locked for as long as the process lives

The lock is the operating system's (flock) and belongs to the open log, which the process inherits:
where the bench that started the job was killed, it holds until the job has saved and ended too.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from flowmdp.arguments import check_integers, check_numbers
from flowmdp.cluster import Engine, check_engine
from flowmdp.compare.process import Cell, Ended, Process, Running
from flowmdp.compare.remote import on_cluster
from flowmdp.compare.results import Fields, key_of, read_results
from flowmdp.compare.table import Job, read_table
from flowmdp.errors import CheckpointError, ConfigurationError, FlowMDPError
from flowmdp.files import check_writable, put_line, read_json
from flowmdp.runs.config import imports
from flowmdp.runs.folder import RunFolder
from flowmdp.runs.interrupt import Stopped, listening
from flowmdp.runs.summary import percent
from flowmdp.schemas import Result, RunConfig

HANDED_OVER = 256
"""Jobs that a cluster has at once, to run and to wait for room."""
Start = Callable[[Job, Cell, IO[bytes]], Running]
"""What sets a job to work; its output goes to the log, which is from `lock_log`."""


def run_bench(
    table: Path,
    *,
    results: Path | None = None,
    runs: Path | None = None,
    jobs: int | None = None,
    threads: int = 1,
    only: tuple[str, ...] = (),
    together: bool = False,
    list: bool = False,
    engine: Engine = "local",
    address: str | None = None,
    gpus: float | None = None,
) -> int:
    """Run a table of jobs, tasks x algorithms x seeds: those that are not done yet.

    Every job is one `flowmdp train` in a process of its own. A finished one leaves a line in the
    file of results, which says that it is done; `flowmdp report` reads that file. Ctrl-C saves
    every running job, and the same command goes on where it stopped. A job that fails stops no
    other. The table is a TOML file:

      [run]                       # for every job; any of these may be left out
      seeds = [1, 2, 3]
      episodes = 50               # any option of `flowmdp train ALGORITHM`, by its name there;
      net_arch = [512, 512]       # an algorithm that has no such option goes without it
      [[tasks]]
      task = "hopper-medium"
      [[tasks]]
      task = "hopper-medium"
      dataset = "zoo/hopper/medium-v0"    # or: source = "minari"

      [algorithms.df-dir]                 # the name is the label in the report
      [algorithms.df-div]
      steps = 5000                        # goes before what [run] says
      rho = 0.3
      budget = "None"                     # no value
      [algorithms."df-div T=5"]           # a variant under its own label
      algorithm = "df-div"
      flow_steps = 5

    For example:
      flowmdp bench table.toml --list
      flowmdp bench table.toml --jobs 2
      flowmdp bench table.toml --only seed1 --results results/first.jsonl
      flowmdp bench table.toml --together --jobs 1
      flowmdp bench table.toml --engine ray --address 10.0.0.1:6379

    Args:
        table: The table.
        results: File of the finished jobs, one line each; results/TABLE.jsonl when not given.
        runs: Where the run folders and logs go; runs/bench/TABLE when not given.
        jobs: Processes at once; cores / threads when not given, with ray as many as have room.
        threads: Threads of each process.
        only: Only jobs whose name (dataset, label, seed; see --list) contains one of these texts.
        together: One process for all seeds of a cell, as `flowmdp train --seeds`: for a GPU, which
            then has all of them at the same time.
        list: Print every job, whether it is done, and its exact command; run nothing.
        engine: local runs the processes here, ray on the nodes of a Ray cluster.
        address: HOST:PORT of the cluster's head; RAY_ADDRESS, or the cluster that this machine is a
            node of, when not given.
        gpus: With ray, GPUs of each job that may use one, also a part of one; 1 when not given and
            the cluster has some.

    Returns:
        0, or 1 when a job failed or is still run by another bench.

    Raises:
        ConfigurationError: For a table or options that cannot be used; before anything runs.
        CheckpointError: When results or a run are damaged; also before.
        KeyboardInterrupt: After Ctrl-C, when all running jobs have saved and ended.
    """
    check_integers(1, **{"--jobs": 1 if jobs is None else jobs, "--threads": threads})
    check_engine(engine, address=address, gpus=gpus)
    check_numbers("[0, 1024]", **{"--gpus": gpus or 0})
    every = read_table(table)
    chosen = [job for job in every if not only or any(text in job.name for text in only)]
    if not chosen:
        raise ConfigurationError(
            f"--only {' '.join(only)}: no job has such a name, for instance {every[0].name}"
        )
    results = results or Path("results") / f"{table.stem}.jsonl"
    if results.is_dir():
        raise ConfigurationError(f"--results is {results}, a folder: name a file *.jsonl")
    if results.suffix == ".json":
        raise ConfigurationError(f"--results is {results}, as of one run: name a file *.jsonl")
    runs = runs or Path("runs") / "bench" / table.stem
    bench = Bench(chosen, results, runs if engine == "local" else runs.absolute(), threads)
    if list:
        bench.print_list()
        return 0
    if engine == "local":
        bench.run(jobs or max(1, len(os.sched_getaffinity(0)) // threads), together)
    else:
        devices = {job.config["device"] for job in chosen}
        with on_cluster(address, bench.runs, devices, threads, gpus) as start:
            bench.run(jobs or HANDED_OVER, together, start)
    if bench.interruptions:
        command = shlex.join(["flowmdp", *sys.argv[1:]])
        raise Stopped(bench.interrupted_by, f"continue with: {command}")
    return bench.report()


class Bench:
    """Runs jobs, each in a process of its own that a thread waits for, and keeps the account.

    Whatever engine starts the processes, here is decided what runs, and what is done.

    Args:
        jobs: In the order in which they are begun; those that are done are skipped.
        results: File of the finished jobs' outcomes.
        runs: Folder of run folders and logs.
        threads: Of each process.
    """

    def __init__(self, jobs: list[Job], results: Path, runs: Path, threads: int = 1) -> None:
        self.jobs, self.results, self.runs, self.threads = jobs, results, runs, threads
        self.failed: list[Job] = []
        self.elsewhere: list[Job] = []
        self.running: list[Running] = []
        self.interruptions, self.interrupted_by = 0, 0
        self.starting = threading.RLock()
        """Held while a process starts, so that no interruption misses it or comes twice."""
        self.done = read_results(results)
        for job in jobs:
            if job.key in self.done:
                job.check(self.done[job.key], f"{job.name} in {results}")
            config = self.folder(job).config
            if config.exists():
                job.check(read_json(config, RunConfig), str(config))
        for folder in (results.parent, runs):
            check_writable(folder)

    def folder(self, job: Job) -> RunFolder:
        """The job's run folder, which need not exist."""
        return RunFolder(self.runs / job.name)

    def log(self, job: Job) -> Path:
        """What the job's processes said."""
        return self.runs / f"{job.name}.log"

    def cell(self, jobs: list[Job]) -> Cell:
        """What the process of these jobs needs: one, or those of a cell that are alike begun."""
        folders = [self.folder(job).path for job in jobs]
        trust = ["--trust"] * bool(imports(jobs[0].config))
        numbers = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        begin = [*jobs[0].command, "--out", str(folders[0])]
        if len(jobs) > 1:
            seeds = [str(job.config["seed"]) for job in jobs]
            at = begin.index("--seed")
            begin[at:] = ["--seeds", *seeds, *begin[at + 2 : -1]]
            begin.append(str(folders[0]).removesuffix(seeds[0]) + "{seed}")
        resume = ["flowmdp", "train", "--resume", *map(str, folders), *trust]
        return Cell(begin, resume, tuple(folders), self.log(jobs[0]), numbers)

    def print_list(self) -> None:
        """Every job: whether it is done, begun or missing, and its command."""
        states = []
        for job in self.jobs:
            begun = "partial" if self.folder(job).config.exists() else "missing"
            states.append("done" if job.key in self.done else begun)
            print(f"{states[-1]:8} {job.name}\n    {shlex.join(self.cell([job]).command)}")
        counts = (f"{states.count(state)} {state}" for state in ("done", "partial", "missing"))
        print(f"{len(states)} jobs: {', '.join(counts)}")

    def run(
        self,
        at_once: int,
        together: bool = False,
        start: Start = lambda _, cell, log: Process(cell, log),
    ) -> None:
        """Run that many processes at once until all jobs have ended.

        After a stopping signal none begins. `together`: all jobs of a cell in one process.
        """
        groups: dict[Any, list[Job]] = {}
        for job in self.jobs:
            if job.key not in self.done:
                cell = job.key[:2], self.folder(job).config.exists()
                groups.setdefault(cell if together else job.key, []).append(job)
        done = len(self.jobs) - sum(map(len, groups.values()))
        pool = ThreadPoolExecutor(at_once)
        with listening(self.interrupt):
            try:
                with tqdm(total=len(self.jobs), initial=done, desc="jobs") as bar:
                    working = [pool.submit(self._do, jobs, start) for jobs in groups.values()]
                    for ended in as_completed(working):
                        bar.update(ended.result())
            except BaseException:  # whatever went wrong in here, nothing is left running
                self.interrupt()
                raise
            finally:
                pool.shutdown(cancel_futures=True)

    def interrupt(self, number: int = signal.SIGINT, _: object = None) -> None:
        """Have the running jobs save and end, as Ctrl-C does; begin no other."""
        with self.starting:
            self.interruptions += 1
            self.interrupted_by = self.interrupted_by or number
            for job in self.running:
                job.interrupt()
        if self.interruptions == 1:
            _say("the running jobs save and end; Ctrl-C again stops at once")

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

    def _do(self, jobs: list[Job], start: Start) -> int:
        """Run jobs in one process, but for those that another bench has; how many are done."""
        with ExitStack() as stack:
            logs = [None if self.interruptions else lock_log(self.log(job)) for job in jobs]
            mine = [job for job, log in zip(jobs, logs, strict=True) if log is not None]
            if not self.interruptions:
                self.elsewhere += [job for job in jobs if job not in mine]
            files = [stack.enter_context(log) for log in logs if log is not None]
            waiting = [job for job in mine if job.key not in read_results(self.results)]
            missing = [job for job in waiting if not self._finished(job)]
            # without one: a bench was killed just before it collected this
            ended = Ended("", 0.0)
            if missing:
                with self.starting:
                    if self.interruptions:
                        return len(mine) - len(waiting)
                    log = files[mine.index(missing[0])]
                    running = start(missing[0], self.cell(missing), log)
                    self.running.append(running)
                ended = running.wait()
            kept = dict(zip((job.key for job in missing), ended.results, strict=False))
            found = [self._collect(job, ended, kept.get(job.key)) for job in waiting]
            return len(mine) - len(waiting) + sum(found)

    def _collect(self, job: Job, ended: Ended, found: Fields | None) -> bool:
        """Put the result of a job into the table, and say so; whether there is one."""
        try:
            if ended.fault and found is None and not self._finished(job):
                if self.interruptions:
                    return False
                raise FlowMDPError(ended.fault)
            result = {"label": job.label, **(found or read_json(self.folder(job).result, Result))}
            put_line(self.results, result, key_of)
        except FlowMDPError as error:
            self.failed.append(job)
            _say(f"failed {job.name}: {error}")
            return False
        score, rate = result.get("normalized_score"), result.get("success_rate")
        scored = "" if score is None else f", score {score:.1f}"
        scored = scored if rate is None else f", success {percent(rate)}"
        how = f"{ended.seconds:.0f} s" if ended.seconds else "found finished"
        _say(f"done {job.name}: return {result['mean_return']:.0f}{scored}, {how}")
        return True

    def _finished(self, job: Job) -> bool:
        """Whether the job's run has left its result; a damaged one is made again."""
        with suppress(CheckpointError):
            return bool(read_json(self.folder(job).result, Result))
        return False


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
