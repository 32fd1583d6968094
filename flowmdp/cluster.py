"""Work on many machines: joining a Ray cluster, and many tasks on it (extra `ray`).

Every node needs the same flowmdp as the machine that gives out the work.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from flowmdp.arguments import check_choice
from flowmdp.errors import ConfigurationError, FlowMDPError
from flowmdp.files import TEMPORARY, check_writable

Engine = Literal["local", "ray"]
"""Where work is done: on this machine, or on a Ray cluster."""
RETRIES = 5
"""How often a task begins again that was lost with its worker or node."""
SECONDS = 60
"""For a cluster, or a node, to answer."""
PACKAGES = ("flowmdp", "gymnasium", "mujoco", "numpy", "ogbench", "torch")
"""What nodes must have in the version that is installed here."""

Item = TypeVar("Item")
Value = TypeVar("Value")


def check_engine(engine: Engine, **options: Any) -> None:
    """Raise ConfigurationError for an unknown engine, or options of Ray's without it."""
    check_choice(("local", "ray"), engine=engine)
    for name, value in options.items():
        if engine == "local" and value is not None:
            raise ConfigurationError(
                f"--{name} is for a cluster: add --engine ray, or leave it out"
            )


@contextmanager
def joined(address: str | None = None, shared: Iterable[Path] = ()) -> Iterator[Any]:
    """Ray, joined to a cluster until the block ends; one that was joined before is kept.

    Args:
        address: HOST:PORT of the cluster's head, of which this machine must be a node; None takes
            RAY_ADDRESS, or a cluster that runs on this machine, or starts Ray on it alone.
        shared: Folders that every node must see under these names.

    Raises:
        ConfigurationError: Without ray, for an address at which no cluster answers, and for nodes
            that have other versions or do not see a folder.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigurationError('--engine ray needs ray: pip install "flowmdp[ray]"') from None
    with ExitStack() as stack:
        if not ray.is_initialized():
            _join(ray, address or os.environ.get("RAY_ADDRESS"))
            stack.callback(ray.shutdown)
        marks = []
        for folder in shared:
            check_writable(folder)
            folder.mkdir(parents=True, exist_ok=True)
            mark = tempfile.NamedTemporaryFile(prefix=TEMPORARY, dir=folder)
            marks.append(Path(stack.enter_context(mark).name))
        _check_nodes(ray, marks)
        yield ray


def check_room(ray: Any, cpus: float, gpus: float = 0) -> None:
    """Raise ConfigurationError where no node is large enough for a task, which would wait."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        has = "; ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes)
        raise ConfigurationError(
            f"no node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for a job (they have "
            f"{has}): ask for less, or add a larger node"
        )


def unordered(
    ray: Any, function: Callable[[Item], Value], items: Iterable[Item], at_once: int
) -> Iterator[tuple[Item, Value]]:
    """Every item with the function's value for it, computed by tasks of one CPU, as they end.

    Args:
        ray: From `joined`.
        function: Of a module that nodes can import.
        items: What it is called with.
        at_once: Tasks that exist at once.

    Raises:
        FlowMDPError: When the cluster loses a task again and again.
        Exception: Whatever the function raises.
    """
    task = ray.remote(_call).options(num_cpus=1, max_retries=RETRIES)
    waiting, tasks = iter(items), dict[Any, Item]()
    try:
        while True:
            given = islice(waiting, at_once - len(tasks))
            tasks.update((task.remote(function, item), item) for item in given)
            if not tasks:
                return
            ready, _ = ray.wait(list(tasks), timeout=SECONDS)
            if not ready:
                check_room(ray, 1)
            for done in ready:
                yield tasks.pop(done), result(ray, done)
    finally:
        for left in tasks:
            ray.cancel(left)


def _call(function: Callable[[Item], Value], item: Item) -> Value:
    return function(item)


def result(ray: Any, reference: Any) -> Any:
    """What a task returned or raised, without Ray's traceback of its node.

    Raises:
        FlowMDPError: When it was lost.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise FlowMDPError(f"the cluster lost a task for good: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error of Ray's says first."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _join(ray: Any, address: str | None) -> None:
    """`ray.init`, which waits for minutes and then ends the process where nothing answers."""
    if address not in (None, "auto", "local"):
        assert address is not None
        _check_address(address)
    main = threading.current_thread() is threading.main_thread()
    held = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"cannot join the Ray cluster at {address}: {first_line(error)}"
        ) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, held)


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16) or "/" in address:
        raise ConfigurationError(
            f"--address is {address!r}: write HOST:PORT of the head, as `ray start --head` says it"
        )
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
        words = ["ray.scripts.scripts", "health-check", "--address", address]
        asked = [sys.executable, "-m", *words]
        subprocess.run(asked, check=True, capture_output=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        raise ConfigurationError(
            f"no Ray cluster answers at {address}: check the address, or start one with `ray start "
            "--head`"
        ) from None


def _look(marks: list[Path]) -> tuple[dict[str, str], list[str]]:
    """What a node has: versions, and those of the marked folders that it does not see."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name).partition("+")[0]  # without +cpu
    return found, [str(mark.parent) for mark in marks if not mark.exists()]


def _check_nodes(ray: Any, marks: list[Path]) -> None:
    """Ask every node of the cluster."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ours, _ = _look([])
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(_look).options(num_cpus=0, scheduling_strategy=there)
            asked[task.remote(marks)] = node["NodeManagerHostname"]
    for reference, name in asked.items():
        try:
            versions, missing = ray.get(reference, timeout=SECONDS)
        except ray.exceptions.RayTaskError as error:
            raise ConfigurationError(
                f"node {name} of the cluster cannot work ({first_line(error.cause)}): install the "
                "same flowmdp there"
            ) from error
        except ray.exceptions.RayError:  # it has left the cluster, which Ray sees to
            continue
        if other := [package for package in ours if versions.get(package) != ours[package]]:
            told = ", ".join(f"{n} {versions.get(n)} instead of {ours[n]}" for n in other)
            raise ConfigurationError(f"node {name} of the cluster has {told}: install the same")
        if missing:
            raise ConfigurationError(
                f"node {name} of the cluster does not see {', '.join(missing)}: keep runs, data "
                "and clones on a path that all nodes share (--runs, MINARI_DATASETS_PATH, "
                "FLOWMDP_CACHE)"
            )
