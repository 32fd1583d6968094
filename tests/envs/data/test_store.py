"""Minari's local store: never half a dataset, one builder at a time."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import minari
import pytest

from flowmdp.envs.data import list_datasets, load_dataset
from flowmdp.envs.data.sources import build as build_module
from flowmdp.envs.data.store import store_root
from flowmdp.errors import DatasetError
from tests.envs.built import ID, TASK, build, digests, leftovers

CHILD = """
import sys
from flowmdp.envs.data.sources.build import build_dataset
print("started", flush=True)
build_dataset("hopper-medium", steps=int(sys.argv[1]), progress=False)
"""


def start_build(steps: int) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(steps)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "started\n"
    return child


@pytest.mark.parametrize("begun", [False, True], ids=["any moment", "while writing"])
def test_killed_at_any_moment_it_leaves_no_dataset(begun: bool, datasets_path: Path) -> None:
    """100,000 steps take seconds, so that the kill comes first."""
    moments = random.Random(0)
    stale: list[str] = []
    for _ in range(2):
        child = start_build(100_000)
        while begun and leftovers(datasets_path) in ([], stale):
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.3))
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        stale = leftovers(datasets_path)
        assert not begun or len(stale) == 1
        assert ID not in minari.list_local_datasets()
        with pytest.raises(DatasetError, match="not in the local store"):
            load_dataset(TASK, build=False)
    build(500)
    assert len(load_dataset(TASK)) == 500
    assert leftovers(datasets_path) == []


@pytest.mark.parametrize("stage", ["before the swap", "between its two renames"])
def test_a_killed_replacement_keeps_the_old_dataset(
    stage: str, datasets_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build()
    before = digests()
    rename, calls = os.rename, 0

    def die(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == (1 if stage == "before the swap" else 2):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("flowmdp.envs.data.store.os.rename", die)
    with pytest.raises(KeyboardInterrupt):
        build(200, force=True)
    monkeypatch.setattr("flowmdp.envs.data.store.os.rename", rename)
    assert build() == ID
    assert digests() == before
    assert leftovers(datasets_path) == []


def test_two_builds_at_once_agree() -> None:
    children = [start_build(600) for _ in range(2)]
    for child in children:
        child.communicate()
        assert child.returncode == 0
    both = digests()
    build(600, force=True)
    assert digests() == both


def test_a_failed_build_leaves_nothing(
    datasets_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowmdp.envs.data.store.os.fsync", full)
    with pytest.raises(DatasetError, match=r"No space left.*MINARI_DATASETS_PATH"):
        build(100)
    assert list_datasets() == {} and leftovers(datasets_path) == []


def test_a_full_disk_is_one_line(datasets_path: Path) -> None:
    """No file may grow to the size of the dataset; HDF5 on a disk would crash the process."""
    command = [sys.executable, "-P", "-m", "flowmdp.cli", "data", "build", TASK, "--steps", "1000"]
    limited = ["sh", "-c", 'ulimit -f 200; exec "$@"', "sh", *command]  # blocks of 512 bytes
    child = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert child.returncode == 2
    line = child.stderr.splitlines()[-1]
    assert line.startswith(f"flowmdp: cannot write dataset {ID}") and "make room" in line
    assert list_datasets() == {} and leftovers(datasets_path) == []


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(blocked))
    with pytest.raises(DatasetError, match=r"cannot write .*MINARI_DATASETS_PATH"):
        build(100)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_without_write_permission(datasets_path: Path) -> None:
    datasets_path.mkdir()
    datasets_path.chmod(0o500)
    with pytest.raises(DatasetError, match=r"Permission denied.*MINARI_DATASETS_PATH"):
        build(100)


def test_a_relative_path_names_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "here/data")
    assert build(100) == ID
    assert ID in list_datasets() and ID in minari.list_local_datasets()
    assert len(load_dataset(TASK)) == 100
    assert store_root() == tmp_path / "here" / "data"


@pytest.mark.parametrize("obstacle", ["file", "permission", "disk"])
def test_what_would_fail_in_the_end_fails_at_once(
    obstacle: str, datasets_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = datasets_path / "flowmdp"
    datasets_path.mkdir()
    if obstacle == "file":
        namespace.write_text("in the way")
    else:
        namespace.mkdir()
    if obstacle == "permission":
        may = os.access
        monkeypatch.setattr(
            os, "access", lambda path, mode: Path(path) != namespace and may(path, mode)
        )
    if obstacle == "disk":
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    match = {"file": "flowmdp is a file", "permission": "denied: .*flowmdp", "disk": "11 MB are"}
    monkeypatch.setattr(build_module, "collect_steps", None)  # nothing may be rolled out
    with pytest.raises(DatasetError, match=match[obstacle]):
        build(100_000)


def test_a_store_that_may_not_be_read(datasets_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets_path.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DatasetError, match="no permission to read the store"):
        list_datasets()


def test_what_killed_builds_leave_disturbs_nobody(datasets_path: Path) -> None:
    build(100)
    for path in (".flowmdp-me--x-v0.new-abc/new", ".flowmdp-me--x-v0.new-abc/new/arriving/me/x-v0"):
        shutil.copytree(datasets_path / ID / "data", datasets_path / path / "data")
    (datasets_path / ".flowmdp-me--x-v0.lock").touch()
    assert list(list_datasets()) == [ID] == list(minari.list_local_datasets())
    assert build(100) == ID
