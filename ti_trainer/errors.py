"""Errors with messages for users: what was found, what was expected and what to do."""


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
