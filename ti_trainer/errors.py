"""What can go wrong, as users see it: each message says what was found, what was expected and what to do."""


class TITrainerError(Exception):
    """Anything that the user can mend."""


class ConfigError(TITrainerError):
    """An option has a value that cannot be used; `option` names it, where it is one of TrainConfig."""

    def __init__(self, message: str, option: str = "") -> None:
        """`option` is the field's name, so that a page can show the message beside it."""
        super().__init__(message)
        self.option = option


class BusyError(ConfigError):
    """A training that is going on must end first: a page may take the message away then."""


class EmbeddingFormatError(TITrainerError):
    """A file is not an embedding, is damaged, or is not safe to read."""


class DatasetError(TITrainerError):
    """The folder of images cannot be trained on."""


class ModelError(TITrainerError):
    """The checkpoint cannot be read, or is of a kind that cannot be trained."""


class StoppedError(TITrainerError):
    """A run was stopped before its first step: there is nothing to keep, and nothing was changed."""


class TrainingError(TITrainerError):
    """Training went wrong; what was learned before is kept."""


class LostProcessError(TrainingError):
    """Of several processes that trained together one is not there any more."""
