"""Find the subsets of a dataset, with the host's checks of folders, and the warnings before a run on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.caption_files import GENERATED
from ti_trainer.data.dataset import Item
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.preflight import preflight
from ti_trainer.data.prompts import NAME, Prompter
from ti_trainer.data.subsets import Subset, checked_subsets
from ti_trainer.embedding import Embedding
from ti_trainer.files import is_within
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import about_an_ordinary_word
from ti_trainer.host import Host
from ti_trainer.model import DiffusionModel

DATASETS, UPLOADS = "datasets", "images"  # folders within the log folder


def datasets_dir(host: Host) -> Path:
    """The folder of dataset files that the page saved, and of datasets that a quick training prepared."""
    return host.log_dir / DATASETS


def uploads_dir(host: Host) -> Path:
    """The folder of images that were uploaded to the page."""
    return host.log_dir / UPLOADS


def check_folder(host: Host, folder: Path) -> None:
    """ConfigError for a folder or file that the host does not allow. What TI Trainer itself wrote is always allowed."""
    own = (host.log_dir / GENERATED, datasets_dir(host), uploads_dir(host))
    if not any(is_within(folder, each) and not is_within(each, folder) for each in own):
        host.check_folder(folder)


def subsets_of(host: Host, images: Path, warn: Callable[[str], None] = lambda message: None) -> tuple[Subset, ...]:
    """The subsets of a dataset: one folder of images, or those that a .toml file lists.

    ConfigError for a folder or file that the host does not allow; DatasetError for a file that cannot be read.
    """
    check_folder(host, images)
    return checked_subsets(images, partial(check_folder, host), warn)


def items_to_measure(model: DiffusionModel, subsets: Sequence[Subset], most: int | None = None) -> Sequence[Item]:
    """Images at the model's own size, without regularization images; latents do not depend on a seed.

    At most `most` of them, evenly spread. DatasetError if none can be used.
    """
    dataset = load_dataset(
        [subset for subset in subsets if not subset.is_reg],
        model,
        Frame((model.default_size_px, model.default_size_px)),
        Prompter("", [NAME]),
        DatasetOptions(latent_sampling="deterministic"),
        most=most,
    )
    return dataset.items


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
