"""Atomic writes, file names that are valid everywhere, paths that users enter, and hashes of checkpoints."""

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
from urllib.parse import unquote

from ti_trainer.errors import ConfigError

_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³")}
_NO_ROOM, _FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "The disk is full"
# File systems allow 255 bytes: -trial64, -neg, -ema, a step, an extension and a temporary suffix are appended.
LONGEST_NAME_BYTES = 200
_HERE = ("", "localhost")  # hosts of a file: URL
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}
_INVISIBLE = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"  # mostly direction marks


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the same folder that replaces `path` when the block ends without an error.

    OSError, which names `path`, if it cannot be written; an existing file is not changed then.
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
    """Replace a file; on Windows this fails while another program reads the old one, so try again for a while."""
    for wait_s in (0.05, 0.1, 0.2, 0.4, 0.8):
        with suppress(PermissionError):
            new.replace(path)
            return
        time.sleep(wait_s)
    new.replace(path)


def described(error: OSError, path: Path) -> OSError:
    """The error with the file that was to be written, and with a clear message for a full disk."""
    full = error.errno in _NO_ROOM and not str(error.strerror).startswith(_FULL)
    if error.errno is None or not (full or error.filename is None or _is_temporary(error.filename, path)):
        return error
    return OSError(error.errno, f"{_FULL} ({error.strerror}); free some space" if full else error.strerror, str(path))


def _is_temporary(filename: object, path: Path) -> bool:
    """Whether an error names the temporary file for this path, which means nothing to users."""
    return isinstance(filename, str) and Path(filename).name.startswith(f".{path.stem}-")


def free_path(path: Path, before_number: str = "") -> Path:
    """The path, with a number appended if it exists."""
    number, free = 1, path
    while os.path.lexists(free):  # also true for a broken link
        number += 1
        free = path.with_name(f"{path.name}{before_number}{number}")
    return free


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic(path) as new:
        new.write_bytes(content)


def entered_path(text: str | None) -> Path:
    """The path that a user typed or pasted, on the page, in the API or in a settings file; '.' if it is empty.

    It may be quoted, contain ~, be a file:// URL, or have the invisible characters that Windows' properties dialog adds.
    ConfigError if it is not a path, or is in a folder for uploads.
    """
    entered = _bare(text or "")
    if "\0" in entered:
        message = f"Found {entered!r}, expected the path of a folder or file."
        raise ConfigError(message)
    path = Path(_of_url(entered) if entered.lower().startswith("file:/") else entered)
    with suppress(RuntimeError):  # no user of that name
        path = path.expanduser()
    if any(is_within(path, folder) for folder in upload_folders()):
        message = f"Found {path}, which is in the folder for uploads; expected a file or folder elsewhere: move it."
        raise ConfigError(message)
    return path


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path is this folder or inside of it, after resolving links; case is ignored where the system ignores it."""
    inner, outer = (Path(os.path.normcase(os.path.realpath(each))) for each in (path, folder))
    return inner.is_relative_to(outer)


def _bare(text: str) -> str:
    """A path without surrounding spaces, invisible characters and quotes."""
    before = None
    while text != before:
        before = text
        text = text.strip().strip(_INVISIBLE)
        if text[:1] in _QUOTES and text[-1:] == _QUOTES[text[0]] and len(text) > 1:
            text = text[1:-1]
    return text.strip('"')


def _of_url(url: str) -> str:
    """The path of a file: URL, as file managers and browsers copy it; ConfigError if it is on another machine."""
    host, path = "", unquote(url[len("file:") :])
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        path = slash + path
    if os.name == "nt":
        drive = re.match(r"/?([A-Za-z]:)", host + path)
        return (host + path).removeprefix("/") if drive else f"//{host}{path}" if host not in _HERE else path
    if host.lower() not in _HERE:
        message = f"Found {url}, a file on the machine {host!r}; expected one on this machine."
        raise ConfigError(message)
    return path


def upload_folders() -> list[Path]:
    """Where gradio keeps uploads and files that it shows, the folder in use last; websites may have put files there."""
    chosen = os.environ.get("GRADIO_TEMP_DIR")
    return [Path(each) for each in (Path(tempfile.gettempdir(), "gradio"), chosen) if each]


def checked_name(name: str) -> str:
    """The name, if it is valid in prompts and as a file name on every system; else ConfigError."""
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
    """The name, if the names of all files of a run are short enough; else ConfigError."""
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > LONGEST_NAME_BYTES:
        message = (
            f"The name {name[:20]!r}... has {size} bytes, expected at most {LONGEST_NAME_BYTES}, since names of "
            "files are derived from it: choose a shorter one."
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
