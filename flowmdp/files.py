"""Files that are never half: JSON read with a cure, anything written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

from flowmdp.errors import CheckpointError, ConfigurationError, FlowMDPError
from flowmdp.schemas import fault

TEMPORARY = ".flowmdp-"
"""How the names of unfinished files begin."""


def read_json(path: Path, *schemas: type[BaseModel]) -> dict[str, Any]:
    """A JSON object from a file, of some schemas.

    Raises:
        CheckpointError: When the file is absent or holds something else.
    """
    try:
        value = _object(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist: the run has not come that far; finish it with "
            f"`flowmdp train --resume {path.parent}`"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): restore it or train again") from error
    for schema in schemas:
        if wrong := fault(schema, value):
            raise CheckpointError(
                f"{path} is not as `flowmdp train` wrote it ({wrong}): restore it or train again"
            )
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object; the old file stays until the new one is whole.

    Raises:
        FlowMDPError: For NaN or infinity.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise FlowMDPError(
            f"{path} is not written, since a number is not finite ({error}): look for it in the "
            "data, the robot's rewards or the training"
        ) from error
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], Any]) -> Any:
    """Let `write` fill a temporary file of the same suffix, then put it in `path`'s place.

    Whatever goes wrong, `path` is either as it was or whole and new, and no temporary file stays.
    Returns what `write` returns.

    Raises:
        OSError: When it cannot be written, with its name and not the temporary file's.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder, create it", str(path.parent))
    with naming(path):
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        written = write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644 & ~_umask())
        with naming(path):
            os.replace(temporary, path)
        return written
    finally:
        temporary.unlink(missing_ok=True)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file that has one per line; none where there is no file.

    Raises:
        CheckpointError: When a line holds something else.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
        try:
            rows.append(_object(line))
        except ValueError as error:
            raise CheckpointError(
                f"{path}, line {number} is damaged ({error}): remove the line or restore the file"
            ) from error
    return rows


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}, which is no number")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON objects, one per line; the old file stays until the new one is whole."""
    encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = "".join(f"{encoder.encode(row)}\n" for row in rows)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def put_line(path: Path, row: dict[str, Any], key: Callable[[dict[str, Any]], Any]) -> None:
    """Add a JSON object to a file that has one per line, in the order of their keys.

    It replaces the one of the same key. Several processes may do this at once: the file's folder,
    which is made if need be, is locked meanwhile.

    Raises:
        CheckpointError: When a line of the file is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, wait=True):
        rows = {key(one): one for one in [*read_lines(path), row]}
        write_lines(path, (rows[one] for one in sorted(rows)))


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the operating system's lock on a folder, where its file system has locks.

    Raises:
        ConfigurationError: When another process holds it, unless this one is to `wait`.
    """
    with naming(folder):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ConfigurationError(
                f"another process is training in {folder}: wait until it has ended, or choose "
                "another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def check_writable(folder: Path) -> None:
    """Check that files can be put into a folder, which need not exist; leaves nothing behind.

    Raises:
        ConfigurationError: When it, or a folder above it, is a file.
        OSError: When it cannot be written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigurationError(f"{there} is a file: choose another folder")
    with naming(folder), tempfile.TemporaryFile(dir=there):
        pass


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder that nobody else writes to."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError name `path` instead of a hidden file that the user knows nothing of."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
