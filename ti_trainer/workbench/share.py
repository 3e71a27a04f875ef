"""What is published of an embedding. `share_files.py` writes it, `share_page.py` makes the page.

Nothing private is published: no paths, no metadata of other tools, no data of the preview beyond its pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PureWindowsPath

from PIL import Image

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.open_image import on_white, opened_image
from ti_trainer.data.upright import upright
from ti_trainer.embedding import LEARNED_FROM, Embedding, negative_name
from ti_trainer.errors import ConfigError, EmbeddingFormatError
from ti_trainer.files import checked_name
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.comparison import for_negative_prompt
from ti_trainer.runs.integrity import digest
from ti_trainer.runs.plots import PREVIEWS
from ti_trainer.runs.run_folder import Run

KEPT = ("init_text", "num_images", LEARNED_FROM)  # of what a file says about its embedding
LONGEST_SIDE = 1024  # of the preview


@dataclass(frozen=True)
class Shared:
    """What is to be published. `weight` 0: none is advised. `for_negative`: the embedding is for the negative prompt."""

    embedding: Embedding
    negative: Embedding | None = None
    run: Run | None = None
    preview: Path | None = None
    for_negative: bool = False
    weight: float = 0.0
    description: str = ""
    license: str = ""

    @property
    def name(self) -> str:
        """The name in prompts and of the files."""
        return self.embedding.name

    def check(self) -> None:
        """Raise ConfigError for what cannot be published; `option` names the field."""
        checked_name(self.name)
        if self.weight and not 0.05 <= abs(self.weight) <= 2:
            message = f"Weight: found {self.weight:g}, expected 0.05 to 2, such as 0.8; 0 if none is advised."
            raise ConfigError(message, "weight")

    @cached_property
    def image(self) -> Image.Image | None:
        """The preview without its metadata; None if there is none. OSError if it cannot be read."""
        if self.preview is None:
            return None
        with opened_image(self.preview) as opened:
            image = on_white(upright(opened))
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        return image

    @property
    def embeddings(self) -> list[Embedding]:
        """The embedding and its negative, without what is private."""
        return [public(each) for each in (self.embedding, self.negative) if each is not None]


def public(embedding: Embedding) -> Embedding:
    """The embedding without paths and without the metadata of other tools."""
    info = {key: embedding.info[key] for key in KEPT if isinstance(embedding.info.get(key), (str, int))}
    checkpoint = embedding.checkpoint and PureWindowsPath(embedding.checkpoint).name  # which also divides at /
    return replace(embedding, checkpoint=checkpoint, info=info)


def of_folder(folder: Path, log_dir: Path, name: str) -> Shared:
    """An embedding of the embeddings folder, with its negative, its run and its preview, as far as there are any."""
    embedding, path = embeddings_dir.load(folder, name)
    found = embeddings_dir.find_negative(folder, name)
    negative = None if found is None else replace(formats.read(found), name=negative_name(name))
    run = run_of(log_dir, embedding)
    beside = (path.with_name(path.stem + ending) for ending in PREVIEWS)
    shown = next((each for each in beside if each.is_file()), None)
    if shown is None and run is not None:
        shown = next((image for step, image in reversed(run.previews()) if 0 < step <= embedding.step), None)
    return Shared(embedding, negative, run, shown, for_negative=run is not None and _is_negative(run))


def run_of(log_dir: Path, embedding: Embedding) -> Run | None:
    """The run that made these very vectors, as its result or as a copy; None if there is none."""
    wanted = digest(embedding.vectors)
    for run in Run.all(log_dir):
        recorded = run.settings().get("embedding_files")
        if isinstance(recorded, Mapping) and wanted in recorded.values():
            return run
        copies = [path for step, path in (*run.copies(), *run.copies(averaged=True)) if step == embedding.step]
        if any(_is(path, wanted) for path in copies):
            return run
    return None


def _is(path: Path, wanted: str) -> bool:
    try:
        return digest(formats.read(path).vectors) == wanted
    except (EmbeddingFormatError, OSError):  # damaged
        return False


def _is_negative(run: Run) -> bool:
    try:
        return for_negative_prompt(TrainConfig.from_dict(run.options()))
    except ConfigError:  # of another version
        return False
