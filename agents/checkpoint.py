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
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from flowmdp.errors import CheckpointError

FORMAT = 1
MANIFEST, TENSORS = "agent.json", "tensors.safetensors"
MANIFEST_LIMIT = 1 << 20  # bytes; a manifest is a few kilobytes

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
        CheckpointError: If there is no such file, or it is damaged or no checkpoint of flowmdp.
    """
    file: Any = source
    if not isinstance(source, io.BufferedIOBase):
        file = with_suffix(source)
        if not file.is_file():
            raise CheckpointError(f"no checkpoint at {file}: train one with `flowmdp train`")
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.getinfo(MANIFEST).file_size > MANIFEST_LIMIT:
                raise CheckpointError(f"{file} is no flowmdp checkpoint: its manifest is too large")
            if archive.getinfo(TENSORS).compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(
                    f"{file} is no flowmdp checkpoint: its tensors are compressed"
                )
            manifest = json.loads(archive.read(MANIFEST))
            tensors = load_tensors(archive.read(TENSORS))
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file} is damaged or no flowmdp checkpoint ({reason})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{file} has a checkpoint format this version does not read")
    return manifest, tensors


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
            raise CheckpointError(f"the checkpoint does not fit this agent: {reason}") from None


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
    """Put back what `flatten_optimizer` took; learning rates stay those of the constructor."""
    state: dict[int, dict[str, Tensor]] = {}
    prefix = f"optimizer.{name}/"
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            index, entry = key.removeprefix(prefix).split("/")
            state.setdefault(int(index), {})[entry] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
