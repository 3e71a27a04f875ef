"""Default values of StandaloneHost, which the command line declares its arguments with; imports nothing heavy."""

from pathlib import Path

from ti_trainer.errors import ModelError
from ti_trainer.host import ModelReference

MODEL = "embedded"
DEVICE = "auto"
EMBEDDINGS_DIR = Path("embeddings")
LOG_DIR = Path("textual_inversion")
INDEX = "model_index.json"  # of a model in diffusers' layout


def model_reference(model: str) -> ModelReference:
    """The name and the absolute path of a model; its hash would have to be computed from the whole file."""
    if model == MODEL:
        return ModelReference(MODEL, MODEL)
    path = Path(model).expanduser()
    return ModelReference(path.stem, str(path.resolve()))


def existing_model(model: str) -> ModelReference:
    """The reference of a model; ModelError if nothing is at its path. Whether it is a model is seen when it is loaded."""
    reference = model_reference(model)
    if reference.path != MODEL and not Path(reference.path).exists():
        raise ModelError(no_model(model))
    return reference


def no_model(model: str, found: str = "") -> str:
    """The error message for a path without a model; `found` is what is there, with ", " after it."""
    return (
        f"There is no model at {model!r}: {found}expected 'embedded', a folder in diffusers' layout (with {INDEX}), "
        "or a checkpoint file (.safetensors, .ckpt)."
    )
