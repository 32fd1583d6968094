"""In which precision matrices are multiplied, and what is fastest where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from flowmdp.errors import ConfigurationError

PRECISIONS = ("float32", "tfloat32", "bfloat16")
FEW_ROWS = 32
"""Up to which `lean_kernels` is faster, at 256 hidden units."""


def choose_precision(precision: str, device: torch.device) -> str:
    """`precision`, or the device's fastest one for "auto".

    Raises:
        ConfigurationError: If there is none of that name.
    """
    if precision == "auto":
        return fastest_precision(device)
    if precision not in PRECISIONS:
        names = ", ".join(("auto", *PRECISIONS))
        raise ConfigurationError(f"precision is {precision!r}: choose one of {names}")
    return precision


def fastest_precision(device: torch.device) -> str:
    """The fastest of the device's native precisions.

    On a GPU that is TensorFloat-32: bfloat16 pays for its products with as many conversions.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return "tfloat32" if native else "float32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """PyTorch's autocast to bfloat16 where that is the precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def lean_kernels(rows: int) -> contextlib.AbstractContextManager[Any]:
    """Without oneDNN where a network sees few rows.

    On a CPU PyTorch's GELU is oneDNN's, which takes 11 to 25 microseconds to start, whatever the
    rows: more than all else in a layer. PyTorch's own differs by 1e-6 and starts at once.
    """
    if rows > FEW_ROWS:
        return contextlib.nullcontext()
    return torch.backends.mkldnn.flags(enabled=False, allow_tf32=None, fp32_precision=None)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """PyTorch's global setting allows TensorFloat-32 for a while where that is the precision."""
    if precision != "tfloat32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
