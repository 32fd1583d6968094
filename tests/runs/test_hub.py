"""Runs on the Hub, which here is a server on the loopback that knows its few endpoints."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants, hf_api

from flowmdp.agents import load_agent
from flowmdp.cli import main
from flowmdp.runs.hub import FILES, from_hub, push_to_hub
from tests.runs.tiny_run import failure

SHA = "a" * 40


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a dict of files."""

    repos: dict[str, dict[str, bytes]]
    asked: list[str]
    tokens: set[str | None]


class Handler(BaseHTTPRequestHandler):
    """Making repositories, commits of small files, listings and downloads."""

    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, value: Any = None, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if "hf_good" not in (self.headers["Authorization"] or ""):
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.repos.setdefault(f"{asked['organization']}/{asked['name']}", {})
            host = self.headers["Host"]
            self.answer({"url": f"http://{host}/{asked['organization']}/{asked['name']}"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            kept = [{"path": one["path"], "uploadMode": "regular"} for one in files]
            self.answer({"files": [{**one, "shouldIgnore": False} for one in kept]})
        elif "/commit/" in self.path:
            repo = self.server.repos[self.path.split("/api/models/")[1].split("/commit")[0]]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repo[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"commitUrl": f"http://{self.headers['Host']}/me/it/commit/{SHA}", "commitOid": SHA}
            )
        else:
            self.answer({"warnings": [], "errors": []})  # of the card's metadata

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repo = self.server.repos.get("/".join(parts[:2]))
        if repo is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif parts[2:3] == ["tree"]:
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": name}
                for name, content in repo.items()
            ]
            self.answer(rows)
        elif parts[2:3] == ["resolve"]:
            content = repo[parts[-1]]
            tag = hashlib.sha1(content).hexdigest()
            self.answer(content, X_Repo_Commit=SHA, ETag=f'"{tag}"')
        else:
            self.answer({"id": "/".join(parts[:2]), "sha": SHA, "siblings": []})

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that lets "hf_good" in; huggingface_hub reads its settings when it is imported."""
    server = Hub(("127.0.0.1", 0), Handler)
    server.repos, server.asked, server.tokens = {}, [], set()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["flow-bc"], tmp_path / "run"))


def test_a_run_goes_there_and_back(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "notes.pkl").write_bytes(b"mine")
    assert main(["push", str(run), "me/clone", "--license", "apache-2.0"]) == 0
    assert capsys.readouterr().out.endswith(f"/commit/{SHA}\n")
    repo = hub.repos["me/clone"]
    assert set(repo) == set(FILES)
    read = ModelCard(repo["README.md"].decode())
    card, text, result = read.data.to_dict(), read.text, json.loads(repo["result.json"])
    assert card["license"] == "apache-2.0" and card["library_name"] == "flowmdp"
    assert {"offline-rl", "flow-bc"} <= set(card["tags"])
    (index,) = card["model-index"]
    values = {
        metric["type"]: metric["value"] for entry in index["results"] for metric in entry["metrics"]
    }
    mean, std = result["mean_return"], result["std_return"]
    assert values["mean_reward"] == f"{mean:.2f} +/- {std:.2f}"
    assert values["normalized_score"] == pytest.approx(result["normalized_score"], abs=0.01)
    low, high = result["interval_95"]
    for words in (
        *("hopper-medium", "flowmdp/hopper/medium-v0", result["command"], "apache-2.0"),
        *(f"{low:.1f} to {high:.1f}", f"torch {result['versions']['torch']}"),
        'from_hub("me/clone")',
    ):
        assert words in text

    repo["evil.py"] = repo["evil.pkl"] = b"print('no')"
    assert main(["pull", "me/clone", "--out", str(tmp_path / "theirs")]) == 0
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == set(FILES)
    assert not any("evil" in path for path in hub.asked)
    for name in FILES:
        assert (tmp_path / "theirs" / name).read_bytes() == repo[name]
    assert "already holds a run" in failure(
        capsys, "pull", "me/clone", "--out", str(tmp_path / "theirs")
    )
    ours, theirs = load_agent(run / "checkpoint.zip"), from_hub("me/clone", device="cpu")
    observations = np.ones((3, 11), np.float32)
    noise = np.ones((3, 3), np.float32)
    assert (ours.act(observations, noise=noise) == theirs.act(observations, noise=noise)).all()


def test_an_agent_without_a_run(hub: Hub, run: Path) -> None:
    agent = load_agent(run / "checkpoint.zip")
    assert push_to_hub(agent, "me/agent").endswith(f"/commit/{SHA}")
    assert set(hub.repos["me/agent"]) == {"checkpoint.zip", "README.md"}
    assert "mean_reward" not in hub.repos["me/agent"]["README.md"].decode()
    assert from_hub("me/agent").config == agent.config


def test_what_cannot_be_is_one_line(
    hub: Hub,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.repos["me/other"] = {"README.md": b"# another thing"}
    out = str(tmp_path / "theirs")
    for repo, said in {
        "me/nothing": "shows no repository me/nothing",
        "me/other": "holds no checkpoint.zip",
        "me//other": "write OWNER/NAME",
    }.items():
        assert said in failure(capsys, "pull", repo, "--out", out)
    push = ("push", str(run), "me/mine")
    assert "holds no run" in failure(capsys, "push", str(tmp_path), "me/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    assert "refuses me/mine (401): log in" in failure(capsys, *push)
    monkeypatch.delenv("HF_TOKEN")
    assert "needs a token: log in" in failure(capsys, *push)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.shutdown()
    hub.server_close()
    assert "cannot be reached for me/mine" in failure(capsys, *push)
    assert "cannot be reached for me/mine" in failure(capsys, "pull", "me/mine", "--out", out)
    (run / "checkpoint.zip").write_bytes(b"half")
    assert "damaged" in failure(capsys, *push)
    (run / "result.json").unlink()
    assert "result.json does not exist" in failure(capsys, *push)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert 'pip install "flowmdp[hub]"' in failure(capsys, *push)
    assert hub.repos == {"me/other": {"README.md": b"# another thing"}} and not Path(out).exists()
