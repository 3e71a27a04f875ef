"""The hosts that these tests start: which one a checkout is, how it is started, and what differs in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ALWAYS = (
    "--skip-torch-cuda-test",
    "--skip-python-version-check",
    "--skip-version-check",
    "--skip-prepare-environment",  # which would run git and pip
    "--api",
)


@dataclass(frozen=True)
class Kind:
    """A host. `options` are those it needs on its command line; `loaded` is what it prints when a model is loaded."""

    name: str
    options: tuple[str, ...]
    loaded: str | None
    yaml_beside: bool = True  # builds the model from the .yaml beside a checkpoint
    is_gradio4: bool = False


A1111 = Kind(
    "A1111",
    (*ALWAYS, "--no-download-sd-model", "--do-not-download-clip", "--no-half", "--use-cpu=all"),
    loaded="Model loaded in",
)
REFORGE = Kind("reForge", (*ALWAYS, "--no-download-sd-model", "--always-cpu"), loaded="] loaded in")
CLASSIC = Kind("Forge Classic", REFORGE.options, loaded="Model loaded in")
FORGE = Kind("Forge", (*ALWAYS, "--always-cpu"), loaded=None, yaml_beside=False, is_gradio4=True)


def kind_of(checkout: Path) -> Kind:
    """By the packages that a checkout has. ValueError for one that these tests cannot start."""
    if not (checkout / "launch.py").is_file() or not (checkout / "repositories").is_dir():
        raise ValueError(f"{checkout} is no checkout of a WebUI that has its repositories/: start it once by itself.")
    if (checkout / "backend").is_dir():
        return FORGE
    if (checkout / "ldm_patched").is_dir():
        return REFORGE if (checkout / "textual_inversion_templates").is_dir() else CLASSIC
    return A1111
