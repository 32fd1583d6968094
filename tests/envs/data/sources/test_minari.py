"""Downloading through Minari, from a fake remote behind Minari's own storage interface."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import minari.storage.remotes
import pytest
from minari.storage.remotes.cloud_storage import CloudStorage

from flowmdp.envs.data import list_datasets, load_dataset
from flowmdp.envs.data.sources.minari import download_dataset
from flowmdp.envs.data.store import read_metadata
from flowmdp.errors import DatasetError
from tests.envs.datasets_by_hand import episode, write

TASK, ID = "hopper-medium", "mujoco/hopper/medium-v0"


class FolderRemote(CloudStorage):
    """Serves another local store; fails as often as it is told."""

    root: ClassVar[Path]
    failures: ClassVar[int]
    calls: ClassVar[int]
    torn: ClassVar[bool]

    def __init__(self, name: str, token: str | None) -> None:
        """Nothing to log into."""

    def list_datasets(self, prefix: str | None = None) -> Iterable[str]:
        ids = [p.parent.parent.relative_to(self.root) for p in self.root.rglob("metadata.json")]
        return [i.as_posix() for i in ids if i.as_posix().startswith(prefix or "")]

    def get_dataset_metadata(self, dataset_id: str) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MINARI_DATASETS_PATH", str(self.root))
            return read_metadata(dataset_id)

    def download_dataset(self, dataset_id: str, path: Path) -> None:
        type(self).calls += 1
        if self.calls <= self.failures:
            (path / dataset_id / "data").mkdir(parents=True, exist_ok=True)
            raise ConnectionError("the line\nis dead")
        shutil.copytree(self.root / dataset_id, path / dataset_id, dirs_exist_ok=True)
        if self.torn:
            file = path / dataset_id / "data" / "main_data.hdf5"
            file.write_bytes(file.read_bytes()[:-2_000])

    def list_namespaces(self) -> Iterable[str]:
        return ["mujoco", "mujoco/hopper"]

    def download_namespace_metadata(self, namespace: str, path: Path) -> None:
        (path / namespace / "namespace_metadata.json").write_text("{}")

    def upload_dataset(self, dataset_id: str) -> None:
        raise NotImplementedError

    def upload_namespace(self, namespace: str) -> None:
        raise NotImplementedError


@pytest.fixture
def remote(
    tmp_path: Path, datasets_path: Path, monkeypatch: pytest.MonkeyPatch
) -> type[FolderRemote]:
    FolderRemote.root = tmp_path / "remote"
    FolderRemote.failures = FolderRemote.calls = 0
    FolderRemote.torn = False
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(FolderRemote.root))
    write(ID, [episode(5, terminated=True), episode(4, truncated=True, seed=1)])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(datasets_path))
    monkeypatch.setenv("MINARI_REMOTE", "folder://here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setitem(minari.storage.remotes._registry, "folder", lambda: FolderRemote)
    return FolderRemote


def hidden_folders(store: Path) -> list[Path]:
    return [path for path in store.glob(".*") if path.is_dir()]


def test_download_and_load(remote: type[FolderRemote], datasets_path: Path) -> None:
    assert download_dataset(TASK) == ID
    assert len(load_dataset(TASK, "minari")) == 9
    assert hidden_folders(datasets_path) == []
    download_dataset(TASK)
    assert remote.calls == 1  # what is there is not fetched again
    download_dataset(TASK, force=True)
    assert remote.calls == 2


def test_a_failing_line_is_tried_again(
    remote: type[FolderRemote], capsys: pytest.CaptureFixture[str]
) -> None:
    remote.failures = 2
    download_dataset(TASK, pause=0)
    assert "attempt 2 of 3 failed (the line is dead)" in capsys.readouterr().err
    assert len(load_dataset(TASK, "minari")) == 9


def test_a_dead_line_leaves_nothing(
    remote: type[FolderRemote], datasets_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.failures = 100
    with pytest.raises(DatasetError, match=r"after 3 attempts \(the line is dead\): check the"):
        download_dataset(TASK, pause=0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DatasetError, match="HF_HUB_OFFLINE is set"):
        download_dataset(TASK, pause=0)
    assert list_datasets() == {} and hidden_folders(datasets_path) == []
    with pytest.raises(DatasetError, match="flowmdp data download hopper-medium"):
        load_dataset(TASK, "minari")


def test_what_arrives_torn_does_not_appear(remote: type[FolderRemote], datasets_path: Path) -> None:
    remote.torn = True
    with pytest.raises(DatasetError, match=r"is not whole .*again"):
        download_dataset(TASK)
    assert list_datasets() == {} and hidden_folders(datasets_path) == []


def test_a_dataset_that_nobody_published(remote: type[FolderRemote]) -> None:
    with pytest.raises(DatasetError, match="Minari has no usable mujoco/hopper/expert-v0"):
        download_dataset("hopper-expert")
    with pytest.raises(DatasetError, match="no minari dataset"):
        download_dataset("hopper-medium-replay")


def test_without_the_extra(remote: type[FolderRemote], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> type[CloudStorage]:
        raise ImportError("huggingface_hub is not installed")

    monkeypatch.setitem(minari.storage.remotes._registry, "folder", absent)
    with pytest.raises(DatasetError, match=r"pip install .flowmdp\[hf\]"):
        download_dataset(TASK)
