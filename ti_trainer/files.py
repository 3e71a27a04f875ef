"""Files written whole or not at all, names that are safe on every file system, and the hash that names a checkpoint."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ti_trainer.errors import ConfigError

_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³")}
_NO_ROOM, _FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "The disk is full"
# File systems have room for 255; -try64, -neg, -ema, a step, an ending and what a temporary file has besides come after it.
LONGEST_NAME_BYTES = 200


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` that takes its place when the block ends without an error.

    OSError, which names `path`, if that cannot be done; what was there stays as it was.
    """
    try:
        with _temporary(path) as new:
            yield new
    except OSError as error:
        raise described(error, path) from error


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    new = Path(name)
    try:
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.chmod(0o644)
        _replace(path, new)
    finally:
        new.unlink(missing_ok=True)


def _replace(path: Path, new: Path) -> None:
    """Windows refuses while somebody reads the old file, which is soon over."""
    for wait_s in (0.05, 0.1, 0.2, 0.4, 0.8):
        with suppress(PermissionError):
            new.replace(path)
            return
        time.sleep(wait_s)
    new.replace(path)


def described(error: OSError, path: Path) -> OSError:
    """The same error with the file that was to be written, and of a full disk that it is full; as it was if it tells."""
    full = error.errno in _NO_ROOM
    if error.errno is None or (error.filename is not None and (not full or str(error.strerror).startswith(_FULL))):
        return error
    return OSError(error.errno, f"{_FULL} ({error.strerror}); free some space" if full else error.strerror, str(path))


def write_bytes(path: Path, content: bytes) -> None:
    """Write the whole file or leave what was there."""
    with atomic(path) as new:
        new.write_bytes(content)


def entered_path(text: str | None) -> Path:
    """The path that somebody typed or pasted, quotes and ~ understood; '.' for nothing, ConfigError if it can be none."""
    entered = (text or "").strip().strip('"')
    if "\0" in entered:
        message = f"Found {entered!r}, expected the path of a folder or file."
        raise ConfigError(message)
    try:
        return Path(entered).expanduser()
    except RuntimeError:  # nobody of that name
        return Path(entered)


def checked_name(name: str) -> str:
    """The name of an embedding, if it can be a word in a prompt and a file's name everywhere; else ConfigError."""
    if not name.strip() or name != name.strip() or name.startswith(".") or name.endswith("."):
        message = f"The name {name!r} cannot be used: it must not be empty, nor begin or end with a space or a dot."
        raise ConfigError(message)
    illegal = sorted(set(re.findall(r"[^\w\-. ]", name)))
    if illegal:
        message = f"The name {name!r} contains {' '.join(illegal)}: use letters, digits, spaces and . _ - only."
        raise ConfigError(message)
    if name.split(".")[0].rstrip().upper() in _RESERVED:
        message = f"The name {name!r} is reserved by Windows: choose another."
        raise ConfigError(message)
    return checked_length(name)


def checked_length(name: str) -> str:
    """The name, if all files that a run makes of it can have theirs; else ConfigError."""
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > LONGEST_NAME_BYTES:
        message = (
            f"The name {name[:20]!r}... has {size} bytes, expected at most {LONGEST_NAME_BYTES}, since files of a run have "
            "longer names than it: choose a shorter one."
        )
        raise ConfigError(message)
    return name


def short_hash(path: Path) -> str:
    """The WebUI's short hash of a checkpoint: the first 10 digits of its SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:10]
