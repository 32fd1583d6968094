"""Checkpoints: one zip of JSON and safetensors. Loading one runs no code from it.

Layout: `agent.json` (format, class, hyper-parameters, counters, the flow environment's
specification) and `tensors.safetensors` (weights, optimiser states, random generators, spaces).
Both are stored uncompressed. A file is written beside its destination and then moved there, so a
full disk or a kill leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from flowmdp.errors import CheckpointError

FORMAT = 1
MANIFEST, TENSORS = "agent.json", "tensors.safetensors"
MANIFEST_LIMIT = 1 << 20  # bytes; a manifest is a few kilobytes
CURE = "take another copy of it, or train again"

Target = str | os.PathLike[str] | io.BufferedIOBase


def write(target: Target, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint to a path (".zip" is added where there is no suffix) or an open file.

    Raises:
        OSError: If the file cannot be written; what was there before stays.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(MANIFEST, json.dumps({"format": FORMAT, **manifest}, indent=1))
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        archive.writestr(TENSORS, save_tensors(stored))
    if isinstance(target, io.BufferedIOBase):
        target.write(buffer.getvalue())
        return
    path = with_suffix(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read(source: Target) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read manifest and tensors of a checkpoint.

    Raises:
        OSError: If the file cannot be read.
        CheckpointError: If there is no such file, or it is damaged or no checkpoint of flowmdp.
    """
    name: Any = source
    file: Any = source
    if not isinstance(source, io.BufferedIOBase):
        name = with_suffix(source)
        if not name.is_file():
            raise CheckpointError(f"no checkpoint at {name}: train one with `flowmdp train`")
        file = io.BytesIO(name.read_bytes())  # in which a wrong offset is no OSError
    with refusing_damage(name), zipfile.ZipFile(file) as archive:
        for entry in (archive.getinfo(MANIFEST), archive.getinfo(TENSORS)):
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed")
        if archive.getinfo(MANIFEST).file_size > MANIFEST_LIMIT:
            raise ValueError(f"{MANIFEST} is too large")
        manifest = json.loads(archive.read(MANIFEST))
        tensors = load_tensors(archive.read(TENSORS))
        check_finite(tensors)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{name} has a checkpoint format this version does not read: load it with the flowmdp "
            "that wrote it, or train again"
        )
    return manifest, tensors


@contextlib.contextmanager
def refusing_damage(name: Target) -> Iterator[None]:
    """Turn whatever the content of a damaged or hostile file raises into a CheckpointError.

    Of zipfile, zlib, json, safetensors and torch that can be nearly anything, RecursionError and
    MemoryError included. A CheckpointError gets the file's name.
    """
    try:
        yield
    except OSError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    except Exception as error:
        lines = str(error).splitlines() or ["no reason given"]
        reason = f"{type(error).__name__}: {lines[0]}"
        raise CheckpointError(
            f"{name} is damaged or no flowmdp checkpoint ({reason}): {CURE}"
        ) from error


def check_finite(tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError for NaN or infinity; only the bounds of a space may be infinite."""
    for name, tensor in tensors.items():
        if not name.startswith("space/") and not tensor.isfinite().all():
            raise CheckpointError(
                f"{name} holds NaN or infinity, as after a training that diverged: train again, "
                "with a smaller learning rate"
            )


def with_suffix(path: str | os.PathLike[str]) -> Path:
    """The path, with ".zip" where it has no suffix (SB3's habit)."""
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")


def flatten_modules(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The weights of several modules as named tensors."""
    return {
        f"{name}/{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def restore_modules(modules: dict[str, nn.Module], tensors: dict[str, Tensor]) -> None:
    """Load the weights stored under each module's name.

    Raises:
        CheckpointError: If names or shapes differ.
    """
    for name, module in modules.items():
        prefix = f"{name}/"
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise CheckpointError(
                f"the checkpoint does not fit this agent ({reason}): load it with the "
                "hyper-parameters it was saved with, or train again"
            ) from None


def flatten_optimizer(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's per-parameter state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{name}/{index}/{key}": torch.as_tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def restore_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put back what `flatten_optimizer` took; learning rates stay those of the constructor.

    Raises:
        CheckpointError: If names or shapes are not those of Adam and the parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    prefix = f"optimizer.{name}/"
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            index, entry = key.removeprefix(prefix).split("/")
            state.setdefault(int(index), {})[entry] = tensor
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entries in state.items():  # Adam itself would look at its next step, if at all
        shape = parameters[number].shape
        expected = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
        if {entry: tensor.shape for entry, tensor in entries.items()} != expected:
            raise CheckpointError(
                f"the checkpoint does not fit this agent ({prefix}{number} is not of its weights' "
                f"shape): {CURE}"
            )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
