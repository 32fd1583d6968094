"""`flowmdp push` and `flowmdp pull`: runs on the Hugging Face Hub, with a model card.

Only files that hold no code travel: the checkpoint (JSON and safetensors), the run's config.json,
result.json and curves.png, and the card, README.md.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowmdp.agents import load_agent
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.errors import CheckpointError, ConfigurationError
from flowmdp.files import read_json
from flowmdp.runs.config import versions
from flowmdp.runs.folder import RunFolder
from flowmdp.runs.summary import percent

FILES = ("checkpoint.zip", "config.json", "result.json", "curves.png", "README.md")
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def push_run(
    run_folder: Path, repo_id: str, *, private: bool = False, license: str = "mit"
) -> None:
    """Publish a finished run on the Hugging Face Hub, with a model card made of its result.

    For example:
      flowmdp push runs/hopper-medium/df-div-seed0 me/df-div-hopper-medium

    Args:
        run_folder: The run.
        repo_id: Name of the repository, OWNER/NAME; it is made when it does not exist.
        private: Make a new repository private.
        license: Licence of the weights, as the Hub spells it.

    Raises:
        ConfigurationError: Without the package, the network or a token, or for a name that cannot
            be.
        CheckpointError: When the run is not finished.
    """
    print(push_to_hub(run_folder, repo_id, private=private, license=license))


def pull(repo_id: str, *, out: Path) -> None:
    """Download a run from the Hugging Face Hub; `flowmdp eval` and the others then read it.

    For example:
      flowmdp pull me/df-div-hopper-medium --out runs/theirs
      flowmdp eval runs/theirs

    Args:
        repo_id: Name of the repository, OWNER/NAME.
        out: Folder to put it in.

    Raises:
        ConfigurationError: Without the package or the network, for a repository that is not there,
            or a folder that holds a run already.
        CheckpointError: When the repository holds no checkpoint.
    """
    RunFolder(out).check_free()
    found = download(repo_id)
    out.mkdir(parents=True, exist_ok=True)
    for path in found.iterdir():
        if path.name in FILES:
            shutil.copyfile(path, out / path.name)
    print(out)


def push_to_hub(
    run: Path | str | FlowAlgorithm,
    repo_id: str,
    *,
    private: bool = False,
    license: str = "mit",
    token: str | None = None,
) -> str:
    """Publish a run, or an agent without a result, on the Hugging Face Hub.

    Args:
        run: Folder of a finished run, or an agent.
        repo_id: As of `push_run`, which says the errors too.
        private: As of `push_run`.
        license: As of `push_run`.
        token: The Hub's; None takes the one that `hf auth login` stored, or HF_TOKEN.

    Returns:
        The address of the commit.
    """
    files: dict[str, Any] = {}
    with _naming(repo_id):
        from huggingface_hub import CommitOperationAdd, HfApi, get_token

        if isinstance(run, FlowAlgorithm):
            run.save(buffer := io.BytesIO())
            files["checkpoint.zip"] = buffer.getvalue()
            result = {"algorithm": run.name, "task": run.spec.task, "versions": versions()}
        else:
            folder, _ = RunFolder.open(Path(run))
            result = read_json(folder.result)
            load_agent(folder.checkpoint, device="cpu")  # nobody gets a damaged one
            files |= {name: path for name in FILES if (path := folder.path / name).is_file()}
        if (token or get_token()) is None:
            raise ConfigurationError(f"publishing on the Hub needs a token: {LOGIN}")
        files["README.md"] = model_card(result, repo_id, license).encode()
        api = HfApi(token=token, library_name="flowmdp", library_version=versions()["flowmdp"])
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(repo_id, added, commit_message="Upload with flowmdp")
        return str(commit.commit_url)


def from_hub(
    repo_id: str, *, revision: str | None = None, token: str | None = None, **options: Any
) -> Any:
    """Load an agent from the Hugging Face Hub; no code from there is run.

    Args:
        repo_id: Name of the repository, "owner/name".
        revision: Branch, tag or commit; None takes the main branch.
        token: The Hub's, for private repositories.
        **options: Of `load_agent`, as device and env.

    Raises:
        ConfigurationError: Without the package or the network, or for a repository that is not
            there.
        CheckpointError: When it holds no checkpoint, or one that cannot be used.
    """
    folder = download(repo_id, revision, token)
    return load_agent(folder / "checkpoint.zip", **options)


def download(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of the Hub's cache with a repository's `FILES`; arguments as in `from_hub`."""
    with _naming(repo_id):
        from huggingface_hub import snapshot_download

        options: dict[str, Any] = {"revision": revision, "token": token}
        found = Path(snapshot_download(repo_id, allow_patterns=list(FILES), **options))
    if not (found / "checkpoint.zip").is_file():
        raise CheckpointError(
            f"{repo_id} holds no checkpoint.zip: name a repository that `flowmdp push` made"
        )
    return found


def model_card(result: dict[str, Any], repo_id: str, license: str) -> str:
    """README.md with the Hub's metadata: task, data, score, command, licence, how to load.

    Args:
        result: Of result.json, or what is known of it.
        repo_id: Where it will stand.
        license: Of the weights.
    """
    from huggingface_hub import EvalResult, ModelCardData

    task, algorithm = result["task"] or "a robot of its own", result["algorithm"]
    rows = {
        "Task": task,
        "Data": result.get("dataset_id"),
        "Gradient steps": result.get("steps"),
        "Seed": result.get("seed"),
        "Flow": json.dumps(result["flow"]) if "flow" in result else None,
        "Licence": license,
        "Versions": ", ".join(f"{name} {number}" for name, number in result["versions"].items()),
    }
    scores: dict[str, Any] = {}
    if "mean_return" in result:
        mean, std, score = (result[f] for f in ("mean_return", "std_return", "normalized_score"))
        if (rate := result.get("success_rate")) is not None:
            low, high = map(percent, result["success_interval_95"])
            rows["Success rate"] = (
                f"{percent(rate)} of {result['episodes']} episodes (95 % interval: {low} to {high})"
            )
            scores["success_rate"] = round(rate, 4)
        low, high = result["interval_95"]
        rows["Return"] = (
            f"{mean:.1f} ± {std:.1f} over {result['episodes']} episodes (95 % interval of the "
            f"mean: {low:.1f} to {high:.1f})"
        )
        if (recorded := result["data"].get("mean_return")) is not None:
            rows["Return of the data"] = f"{recorded:.1f}"
        scores["mean_reward"] = f"{mean:.2f} +/- {std:.2f}"
        if score is not None and rate is None:
            rows["Normalised score"] = f"{score:.1f}"
            scores["normalized_score"] = round(score, 2)
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items() if text is not None)
    metadata = ModelCardData(
        license=license,
        library_name="flowmdp",
        pipeline_tag="reinforcement-learning",
        tags=["reinforcement-learning", "offline-rl", "flow-matching", "robotics", algorithm],
        model_name=repo_id.rpartition("/")[2],
        eval_results=[
            EvalResult(
                task_type="reinforcement-learning",
                dataset_type=result["dataset_id"] or task,
                dataset_name=task,
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in scores.items()
        ]
        or None,
    )
    trained = f"\n## How it was trained\n\n```sh\n{result.get('command')}\n```\n"
    return f"""---
{metadata.to_yaml()}
---

# {algorithm} on {task}

A flow policy trained offline with flowmdp.

| | |
|---|---|
{table}

## How to use it

```sh
pip install "flowmdp[hub]"
flowmdp pull {repo_id} --out run
flowmdp eval run
```

```python
from flowmdp.runs.hub import from_hub

policy = from_hub("{repo_id}").outer_policy()
action, state = policy.predict(observation)
```
{trained if result.get("command") else ""}"""


@contextmanager
def _naming(repo_id: str) -> Iterator[None]:
    """Say in one line, a ConfigurationError, what the Hub or the way to it does not allow."""
    try:
        from huggingface_hub import errors
    except ImportError:
        message = 'the Hub needs huggingface_hub: pip install "flowmdp[hub]"'
        raise ConfigurationError(message) from None
    unreachable = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.HTTPError)  # type: ignore[attr-defined]
    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigurationError(f"{repo_id!r} is no name for the Hub: write OWNER/NAME") from error
    except errors.RevisionNotFoundError as error:
        raise ConfigurationError(f"{repo_id} has no such revision: leave it out") from error
    except errors.RepositoryNotFoundError as error:
        cure = f"check the name; if it is private, {LOGIN}"
        raise ConfigurationError(f"the Hub shows no repository {repo_id}: {cure}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        cure = LOGIN if status in (401, 403) else "try again later"
        raise ConfigurationError(f"the Hub refuses {repo_id} ({status}): {cure}") from error
    except unreachable as error:
        cure = "check the network and HF_HUB_OFFLINE"
        raise ConfigurationError(f"the Hub cannot be reached for {repo_id}: {cure}") from error
