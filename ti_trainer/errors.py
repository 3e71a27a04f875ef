"""Errors with messages for users: what was found, what was expected and what to do."""

import errno

_FORBIDDEN = "Allow this program's user to read and write there, or choose another folder."
_OCCUPIED = "A file is in the place of a folder, or the other way round: rename or move it."
_ADVICE = {
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.ENOTDIR: _OCCUPIED,
    errno.EISDIR: _OCCUPIED,
    errno.EEXIST: _OCCUPIED,
    errno.ENAMETOOLONG: "Choose a shorter name or path.",
    errno.EIO: "The disk or the network drive may be damaged or disconnected.",
}


def explained(error: Exception) -> str:
    """An error as a sentence; of the operating system's errors what, where and, if that is known, what to do."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    what = f"{error.strerror or error}: {error.filename}."
    return f"{what} {_ADVICE[error.errno]}" if error.errno in _ADVICE else what


class TITrainerError(Exception):
    """An error that the user can correct."""


class ConfigError(TITrainerError):
    """An option has an invalid value; `option` is its name, if it is an option of TrainConfig."""

    def __init__(self, message: str, option: str = "") -> None:
        """`option` lets a page show the message next to the field."""
        super().__init__(message)
        self.option = option


class BusyError(ConfigError):
    """A training must end first; a page may hide the message when it has ended."""


class EmbeddingFormatError(TITrainerError):
    """A file is not an embedding, is damaged, or is not safe to read."""


class DatasetError(TITrainerError):
    """The dataset cannot be used for training."""


class ModelError(TITrainerError):
    """The checkpoint cannot be read or is not supported."""


class StoppedError(TITrainerError):
    """A run was stopped before its first step: nothing was changed."""


class TrainingError(TITrainerError):
    """Training failed; its result up to then is saved."""


class LostProcessError(TrainingError):
    """One of several processes that train together has ended."""
