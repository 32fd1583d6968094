"""A Ray cluster of two nodes on this machine: bench, data build and eval give what they give here.

Where a test has the fixture `stub`, a job's process is a stub that takes milliseconds.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmdp import cluster as joining
from flowmdp.agents.evaluation import evaluate
from flowmdp.cli import main
from flowmdp.compare.results import Fields
from flowmdp.compare.table import read_table
from flowmdp.envs.data.sources import build, manipulation
from flowmdp.envs.robots.outer import make_outer
from flowmdp.errors import ConfigurationError
from flowmdp.files import TEMPORARY, read_lines
from flowmdp.robots import ClusterRobots
from tests.compare.test_runner import log_says, when
from tests.envs.built import digests
from tests.runs.tiny_run import failure, tiny_run

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")

TABLE = """
[run]
seeds = {seeds}
steps = 4
episodes = 1
eval_episodes = 1
eval_every = 4
net_arch = [16, 16]
batch_size = 32
behavior_steps = 4
critic_steps = 4
device = "cpu"
[[tasks]]
task = "hopper-medium"
[algorithms.clone]
algorithm = "flow-bc"
[algorithms.df-div]
"""
PLACE, RESULTS = Path("runs/bench/tiny"), Path("results/tiny.jsonl")
STUB = """
import json, os, pathlib, signal, sys, threading, time
place = pathlib.Path(os.environ.get("FLOWMDP_CACHE", "none"))
if "flowmdp.cli.worker" in sys.orig_argv and (place / "config.json").exists():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(9)), daemon=True).start()
    words = sys.orig_argv[sys.orig_argv.index("flowmdp.cli.worker") + 1:]
    resumed, folder = words[1] == "--resume", pathlib.Path(words[-1])
    if words[1] == "flow-bc" and (place / "fail").exists():
        print("flowmdp: it cannot be", flush=True)
        os._exit(1)
    if not resumed:
        folder.mkdir()
        config = json.loads((place / "config.json").read_text())[words[1]]
        config["seed"] = int(words[words.index("--seed") + 1])
        (folder / "config.json").write_text(json.dumps(config))
    config = json.loads((folder / "config.json").read_text())
    print("training", flush=True)
    try:
        while (place / "hang").exists():
            time.sleep(0.05)
    except KeyboardInterrupt:
        time.sleep(0.5)
        (folder / "saved").touch()
        os._exit(130)
    result = {**config, "mean_return": config["seed"], "normalized_score": None,
              "data": {"mean_return": 1.0}, "resumed": resumed}
    result["threads"] = os.environ["OMP_NUM_THREADS"]
    (folder / "result.json").write_text(json.dumps(result))
    os._exit(0)
"""
"""sitecustomize.py of every node: a job of a test with the fixture `stub` is this."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(STUB)
    here = str(Path(__file__).parents[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), here]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False}
        sooner = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
        head = {**small, "include_dashboard": False, "_system_config": sooner}
        nodes: Any = Cluster(initialize_head=True, head_node_args=head)
        nodes.small = small
        nodes.add_node(**small)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def driver(cluster: Any) -> None:
    """This process as the cluster's driver, which the commands then keep."""
    if not ray.is_initialized():
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWMDP_CACHE", str(tmp_path / "cache"))
    Path("cache").mkdir()
    return tmp_path


@pytest.fixture
def stub(place: Path) -> Path:
    """Has the nodes run the stub; returns the folder that it looks into."""
    table(10)
    configs = {job.config["algorithm"]: job.config for job in read_table(Path("tiny.toml"))}
    (place / "cache" / "config.json").write_text(json.dumps(configs))
    return place / "cache"


def table(seeds: int) -> None:
    """A table of two jobs per seed."""
    Path("tiny.toml").write_text(TABLE.format(seeds=[*range(seeds)]))


def rows(path: Path = RESULTS) -> list[Fields]:
    """The results without clocks and what names the folder."""
    clocks = ("wall_seconds", "updates_per_second", "command")
    return [{k: v for k, v in row.items() if k not in clocks} for row in read_lines(path)]


def names(text: str) -> list[str]:
    """The jobs of the table that have said a text."""
    jobs = read_table(Path("tiny.toml"))
    return [job.name for job in jobs if log_says(job.name, text, PLACE)]


def lose(cluster: Any, node: Any) -> None:
    """A node dies with all its processes, as with its machine."""
    raylet = node.all_processes["raylet"][0].process.pid
    workers = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    for worker in workers:
        os.kill(int(worker), signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


def real_table(seeds: int, cluster: Any, only: str) -> None:
    """The real jobs on the cluster, then here: equal."""
    table(seeds)
    address = ("--engine", "ray", "--address", cluster.address)
    bench = ("bench", "tiny.toml", "--only", only)
    subprocess.run([sys.executable, "-P", "-m", "flowmdp.cli", *bench, *address], check=True)
    words = ("--results", "results/here.jsonl", "--runs", "runs/here", "--jobs", "1")
    assert main([*bench, *words]) == 0
    assert rows() == rows(Path("results/here.jsonl")) != []


def test_two_nodes_train_what_this_machine_trains(
    hopper_data: Path, place: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    real_table(1, cluster, "df-div")
    assert not list(place.rglob(f"{TEMPORARY}*")), "no mark is left"


def test_twenty_cells_and_a_node_that_dies(stub: Path, cluster: Any, driver: None) -> None:
    """A third node dies in the middle: its job is continued elsewhere, every row is there once."""
    third = cluster.add_node(**cluster.small)
    (stub / "hang").touch()

    def kill() -> None:
        lose(cluster, third)
        (stub / "hang").unlink()

    when(lambda: len(names("training")) == 3, kill)
    assert main(["bench", "tiny.toml", "--engine", "ray"]) == 0
    found = read_lines(RESULTS)
    assert [(row["label"], row["seed"]) for row in found] == [
        (label, seed) for label in ("clone", "df-div") for seed in range(10)
    ]
    assert [row["resumed"] for row in found].count(True) == 1
    assert {row["threads"] for row in found} == {"1"}


def test_ctrl_c_saves_and_the_next_bench_goes_on(
    stub: Path, driver: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (stub / "hang").touch()
    when(lambda: len(names("training")) == 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert main(["bench", "tiny.toml", "--engine", "ray"]) == 130
    assert "failed" not in capsys.readouterr().err and rows() == []
    assert len(list(PLACE.glob("*/saved"))) == 2, "the bench waits until they have saved"
    (stub / "hang").unlink()
    assert main(["bench", "tiny.toml", "--engine", "ray"]) == 0
    assert [row["resumed"] for row in read_lines(RESULTS)].count(True) == 2


def test_a_failing_job_stops_no_other(
    stub: Path, driver: None, capsys: pytest.CaptureFixture[str]
) -> None:
    table(1)
    (stub / "fail").touch()
    assert main(["bench", "tiny.toml", "--engine", "ray"]) == 1
    assert "clone_seed0: exit code 1: flowmdp: it cannot be" in capsys.readouterr().err
    assert [row["label"] for row in rows()] == ["df-div"]


def test_what_the_cluster_cannot_do_is_one_line(
    place: Path,
    driver: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table(1)
    bench = ("bench", "tiny.toml", "--engine", "ray")
    assert "no node of the cluster has 3 CPUs" in failure(capsys, *bench, "--threads", "3")
    assert "--gpus is for a cluster: add --engine ray" in failure(capsys, *bench[:2], "--gpus", "1")
    said = failure(capsys, "data", "build", "hopper-medium", "--engine", "ray")
    assert "hopper-medium is recorded in one process" in said
    table(1)
    Path("tiny.toml").write_text(Path("tiny.toml").read_text().replace('"cpu"', '"auto"'))
    assert "1 CPUs and 0.5 GPUs" in failure(capsys, *bench, "--gpus", "0.5")
    with joining.joined() as joined:
        with pytest.raises(ConfigurationError, match="does not see /nowhere"):
            joining._check_nodes(joined, [Path("/nowhere/mark")])
        version = importlib.metadata.version
        other = {"numpy": "0.1"}
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name: other.get(name, version(name))
        )
        with pytest.raises(ConfigurationError, match=rf"numpy {np.__version__} instead of 0\.1"):
            joining._check_nodes(joined, [])


def test_no_ray_and_no_cluster_are_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.shutdown()
    table(1)
    bench = ("bench", "tiny.toml", "--engine", "ray")
    assert "write HOST:PORT" in failure(capsys, *bench, "--address", "ray://head:10001")
    since = time.perf_counter()
    assert "no Ray cluster answers" in failure(capsys, *bench, "--address", "127.0.0.1:1")
    monkeypatch.setattr(joining, "SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert "no Ray cluster answers" in failure(capsys, *bench, "--address", address)
    assert time.perf_counter() - since < 20
    monkeypatch.setitem(sys.modules, "ray", None)
    assert 'pip install "flowmdp[ray]"' in failure(capsys, *bench)


@pytest.mark.slow
def test_the_same_bytes_from_a_cluster(driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ogbench")
    monkeypatch.setattr(manipulation, "TRANSITIONS", 8)
    made = functools.partial(build.build_dataset, "cube-single-play", episodes=3, progress=False)
    name = made(jobs=1)
    first = digests(name)
    made(engine="ray", force=True)
    assert digests(name) == first


def test_the_same_evaluation_from_a_cluster(
    hopper_data: Path, place: Path, driver: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny_run("flow-bc", place / "run")) == 0
    capsys.readouterr()
    told = []
    for more in ((), ("--engine", "ray"), ("--engine", "ray", "--jobs", "1")):
        words = ("--episodes", "5", "--noise-scale", "0.5", "--json")
        assert main(["eval", str(place / "run"), *words, *more]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1] == told[2] and len(set(told[0]["returns"])) == 5


class Random:
    """Acts on Hopper by chance; once, kills some robots before."""

    def __init__(self) -> None:
        self.rng, self.steps = np.random.default_rng(0), 0
        self.robots: ClusterRobots | None = None

    def predict(self, observation: Any, *others: Any) -> tuple[Any, Any]:
        self.steps += 1
        if self.robots and self.steps == 15:
            ray.kill(self.robots.shares[0].actor)
        return self.rng.uniform(-1, 1, (len(observation), 3)).astype(np.float32), None


def test_robots_that_are_lost_do_all_again(driver: None) -> None:
    make = functools.partial(make_outer, "hopper-medium")
    expected = evaluate(Random(), make, 6)
    policy = Random()

    def robots(make_env: Any) -> ClusterRobots:
        policy.robots = ClusterRobots(make_env, ray, 2)
        return policy.robots

    assert evaluate(policy, make, 6, robots=robots) == expected
    assert policy.steps > 15


@pytest.mark.slow
def test_twenty_real_cells_and_a_node_that_dies(
    hopper_data: Path, place: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    third = cluster.add_node(**cluster.small)
    killing = when(lambda: len(rows()) >= 4, lambda: lose(cluster, third))
    real_table(10, cluster, "seed")
    assert not killing.is_alive() and len(rows()) == 20
