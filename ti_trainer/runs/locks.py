"""Locks on run folders and embedding files, so that two processes do not overwrite each other's work.

The operating system releases a lock when its process ends for any reason. Lock files are in this computer's folder for
temporary files and are never deleted: one process could otherwise lock the deleted file and another one its replacement.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ti_trainer.errors import ConfigError
from ti_trainer.files import write_bytes

log = logging.getLogger(__name__)
BRIEF_S = 10.0  # how long to wait for a lock that is held for a moment


def of_embedding(file: Path) -> Path:
    """The lock file of an embedding file; the same for every file extension."""
    return _of(file.with_suffix(""))


def of_run(folder: Path) -> Path:
    """The lock file of a run folder."""
    return _of(folder)


def of_file(path: Path) -> Path:
    """The lock file of a file that processes change in turn."""
    return _of(path)


def _of(path: Path) -> Path:
    name = hashlib.sha256(os.path.normcase(os.path.realpath(path)).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Path(tempfile.gettempdir(), f"ti-trainer-locks-{getpass.getuser()}", f"{name}.lock")


@contextmanager
def embeddings_held(folder: Path, names: Iterable[str], warn: Callable[[str], None] = log.info) -> Iterator[None]:
    """Lock those of these embeddings that exist; ConfigError if another process is training one of them."""
    from ti_trainer.formats import embeddings_dir  # here, since it imports torch

    with ExitStack() as stack:
        for name in names:
            file = embeddings_dir.find(folder, name)
            if file is not None:
                stack.enter_context(held(of_embedding(file), f"The embedding {name}", warn))
        yield


@contextmanager
def held(lock_file: Path, what: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock; ConfigError that names the process if another one holds it.

    Warns instead where the file system has no locks.
    """
    with ExitStack() as stack:
        try:
            lock_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = FileLock(lock_file, timeout=0)
            lock.acquire()
        except Timeout:
            message = f"{what} is being trained by another process ({_holder(lock_file)}). Stop it, or wait until it ends."
            raise ConfigError(message) from None
        except (OSError, NotImplementedError) as error:  # a folder that is read only, a network drive without locks
            reason = getattr(error, "strerror", None) or str(error)
            warn(f"{what} cannot be locked ({reason}). Make sure that no other process is training it.")
        else:
            stack.callback(_release, lock, lock_file)
            with suppress(OSError):
                about = {"pid": os.getpid(), "host": socket.gethostname()}
                write_bytes(_about(lock_file), json.dumps(about).encode())
        yield


@contextmanager
def briefly(lock_file: Path, what: str) -> Iterator[None]:
    """Hold a lock for a moment, waiting for another process that does so; ConfigError if that takes too long.

    Does nothing where the file system has no locks.
    """
    with ExitStack() as stack:
        try:
            lock_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(FileLock(lock_file, timeout=BRIEF_S))
        except Timeout:
            message = f"{what} is being changed by another process: try again."
            raise ConfigError(message) from None
        except (OSError, NotImplementedError) as error:
            log.debug("%s cannot be locked.", what, exc_info=error)
        yield


def _about(lock_file: Path) -> Path:
    """The file that names the holder. A separate file, because Windows lets no other process read a locked one."""
    return lock_file.with_name(f"{lock_file.name}.json")


def _holder(lock_file: Path) -> str:
    try:
        with _about(lock_file).open("rb") as file:
            about = json.loads(file.read(4096))
        return f"{int(about['pid'])} on {str(about['host'])[:100]}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "unknown"


def _release(lock: FileLock, lock_file: Path) -> None:
    with suppress(OSError):
        _about(lock_file).unlink()
    lock.release()
