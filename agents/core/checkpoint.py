"""Checkpoints: one zip of JSON and safetensors. Loading one runs no code from it.

Layout: `agent.json` (format, class, hyper-parameters, counters, the flow environment's
specification) and `tensors.safetensors` (weights, optimiser states, random generators, spaces).
Both are stored uncompressed. A file is written beside its destination and then moved there, so a
full disk or a kill leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from flowmdp.agents.core.randomness import restore_generator
from flowmdp.arguments import check_integers
from flowmdp.errors import CheckpointError, ConfigurationError, TrainingDivergedError
from flowmdp.files import replace_file

FORMAT = 2
MANIFEST, TENSORS = "agent.json", "tensors.safetensors"
MANIFEST_LIMIT = 1 << 20  # bytes; a manifest is a few kilobytes
CURE = "take another copy of it, or train again"

Target = str | os.PathLike[str] | io.BufferedIOBase


def write(target: Target, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint to a path (".zip" is added where there is no suffix) or an open file.

    Raises:
        OSError: If the file cannot be written; what was there before stays.
        TrainingDivergedError: If a tensor is not finite; what was there before stays.
    """
    if name := first_not_finite(tensors):
        raise TrainingDivergedError(
            f"training diverged: {name} holds NaN or infinity, and is not saved; what was saved "
            "before stays. Train again, with a smaller learning rate"
        )
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
    replace_file(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


class Checkpoint(NamedTuple):
    """What a file holds."""

    name: Any  # its path
    manifest: dict[str, Any]
    tensors: dict[str, Tensor]


def read(source: Target) -> Checkpoint:
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
        if wrong := first_not_finite(tensors):
            raise CheckpointError(
                f"{wrong} holds NaN or infinity, as after a training that diverged: train again, "
                "with a smaller learning rate"
            )
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{name} has a checkpoint format this version does not read: load it with the flowmdp "
            "that wrote it, or train again"
        )
    return Checkpoint(name, manifest, tensors)


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


def check_size(widths: Iterable[int], tensors: dict[str, Tensor]) -> None:
    """Refuse, before any memory is taken, widths for which a file cannot hold the weights.

    Raises:
        CheckpointError: If they need more than 10^8 weights, and more than there are.
    """
    needed = sum(fan_in * fan_out for fan_in, fan_out in itertools.pairwise(widths))
    if needed > max(10**8, sum(tensor.numel() for tensor in tensors.values())):
        raise CheckpointError(f"its networks need {needed:,} weights, which are not there: {CURE}")


def first_not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with NaN or infinity, None where there is none."""
    return next((name for name, one in tensors.items() if not one.isfinite().all()), None)


def with_suffix(path: str | os.PathLike[str]) -> Path:
    """The path, with ".zip" where it has no suffix (SB3's habit)."""
    if not isinstance(path, str | os.PathLike):
        raise ConfigurationError(f"path is {path!r}: pass a file's name, or an open binary file")
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")


class Registry:
    """What a checkpoint holds, each registered once: modules, optimisers, generators, counters."""

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.generators: dict[str, torch.Generator] = {}
        self.counters: dict[str, tuple[object, str]] = {}

    def count(self, name: str, owner: object, attribute: str) -> None:
        """Register an attribute that holds an integer of at least 0."""
        self.counters[name] = owner, attribute

    def counts(self) -> dict[str, int]:
        """The counters' values."""
        return {name: getattr(*place) for name, place in self.counters.items()}

    def weights(self) -> dict[str, Tensor]:
        """The modules' tensors by name."""
        return {
            name: tensor
            for prefix, module in self.modules.items()
            for name, tensor in module_tensors(prefix, module).items()
        }

    def tensors(self, *names: str) -> dict[str, Tensor]:
        """Everything but the counters as named tensors; names choose modules and optimisers."""
        found: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            if not names or name in names:
                found |= module_tensors(name, module)
        for name, optimizer in self.optimizers.items():
            if not names or name in names:
                for index, entries in optimizer.state_dict()["state"].items():
                    for key, value in entries.items():
                        found[f"optimizer.{name}/{index}/{key}"] = torch.as_tensor(value)
        if not names:
            for name, generator in self.generators.items():
                found[f"generator/{name}"] = generator.get_state()
        return found

    def restore(
        self, tensors: dict[str, Tensor], counts: dict[str, Any], names: Iterable[str] = ()
    ) -> None:
        """Take what `tensors` and `counts` gave; learning rates stay the constructor's.

        Raises:
            CheckpointError: If names or shapes differ.
            ConfigurationError: If a counter is no integer of at least 0.
        """
        names = set(names)
        for name, module in self.modules.items():
            if not names or name in names:
                restore_module(name, module, tensors)
        for name, optimizer in self.optimizers.items():
            if not names or name in names:
                restore_optimizer(name, optimizer, tensors)
        if not names:
            for name, generator in self.generators.items():
                restore_generator(name, generator, tensors[f"generator/{name}"])
        for name, value in counts.items():
            if name not in self.counters:
                raise ValueError(f"{name!r} is no counter")
            check_integers(0, **{name: value})
            setattr(*self.counters[name], value)


def without(tensors: dict[str, Tensor], unread: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors but those whose names begin as the keys of `unread`."""
    return {name: one for name, one in tensors.items() if not name.startswith(tuple(unread))}


def filled(tensors: dict[str, Tensor], unread: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors, and where those of `unread` are missing what stands in for them, if anything."""
    found = dict(tensors)
    for start, instead in unread.items():
        for name, tensor in tensors.items() if instead else ():
            if name.startswith(instead):
                found.setdefault(start + name.removeprefix(instead), tensor)
    return found


def module_tensors(name: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's weights under its name."""
    return {f"{name}/{key}": value for key, value in module.state_dict().items()}


def restore_module(name: str, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load the weights stored under a module's name.

    Raises:
        CheckpointError: If they are not the module's in name, shape or type.
    """
    prefix = f"{name}/"
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    for key, own in module.state_dict().items():
        if key in state and state[key].dtype != own.dtype:
            raise CheckpointError(
                f"{prefix}{key} is of type {state[key].dtype}, not {own.dtype}: {CURE}"
            )
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"the checkpoint does not fit this agent ({reason}): load it with the "
            "hyper-parameters it was saved with, or train again"
        ) from None


def restore_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Load Adam's state, after checking that it is of the parameters' shapes."""
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
        numbers = all(tensor.dtype == torch.float32 for tensor in entries.values())
        if not numbers or entries["step"] < 0 or (entries["exp_avg_sq"] < 0).any():
            raise CheckpointError(f"{prefix}{number} is no state of Adam: {CURE}")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
