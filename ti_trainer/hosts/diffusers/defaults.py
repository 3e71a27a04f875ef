"""Default values of StandaloneHost, which the command line declares its arguments with; imports nothing heavy."""

from pathlib import Path

from ti_trainer.host import ModelReference

MODEL = "embedded"
DEVICE = "auto"
EMBEDDINGS_DIR = Path("embeddings")
LOG_DIR = Path("textual_inversion")


def model_reference(model: str) -> ModelReference:
    """The name and the absolute path of a model; its hash would have to be computed from the whole file."""
    if model == MODEL:
        return ModelReference(MODEL, MODEL)
    path = Path(model).expanduser()
    return ModelReference(path.stem, str(path.resolve()))
