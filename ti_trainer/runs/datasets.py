"""Find the subsets of a dataset, with the host's checks of folders, and the warnings before a run on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.preflight import preflight
from ti_trainer.data.prompts import Prompter
from ti_trainer.data.subsets import Subset, checked_subsets
from ti_trainer.embedding import Embedding
from ti_trainer.files import is_within
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import about_an_ordinary_word
from ti_trainer.host import Host
from ti_trainer.model import DiffusionModel
from ti_trainer.runs.generated import FOLDER

DATASETS = "datasets"  # a folder within the log folder


def datasets_dir(host: Host) -> Path:
    """The folder of dataset files that the page saved."""
    return host.log_dir / DATASETS


def subsets_of(host: Host, images: Path, warn: Callable[[str], None] = lambda message: None) -> tuple[Subset, ...]:
    """The subsets of a dataset: one folder of images, or those that a .toml file lists.

    ConfigError for a folder or file that the host does not allow; DatasetError for a file that cannot be read. A dataset
    file that the page itself saved is always allowed, and so are images that the model generated for a run.
    """

    def check(folder: Path) -> None:
        if not is_within(folder, host.log_dir / FOLDER):
            host.check_folder(folder)

    if not is_within(images, datasets_dir(host)):
        check(images)
    return checked_subsets(images, check, warn)


def warnings_of(
    config: TrainConfig, model: DiffusionModel, embedding: Embedding, prompter: Prompter, subsets: Sequence[Subset]
) -> list[str]:
    """Warnings before a run, the same on the page and the command line; DatasetError for a dataset that cannot be used."""
    found = preflight(subsets, prompter, config, model, embedding.vectors)
    return [*about_embedding(model, embedding), *found.warnings]


def about_embedding(model: DiffusionModel, embedding: Embedding) -> list[str]:
    """Warnings about the embedding's name and, before its first step, about its initialization text."""
    name = embedding.name
    warnings = about_an_ordinary_word(model, name)
    text = embedding.info.get("init_text")
    if embedding.step == 0 and isinstance(text, str):
        warnings.append(embeddings_dir.text_left_out(model, text, embedding.num_vectors))
    return list(filter(None, warnings))
