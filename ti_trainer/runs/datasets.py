"""Where datasets come from, as far as the host lets the page read them, and what to warn of before a run on one."""

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

DATA_SETS = "datasets"  # within the folder of runs


def datasets_dir(host: Host) -> Path:
    """Where dataset files that the page saved lie."""
    return host.log_dir / DATA_SETS


def subsets_of(host: Host, images: Path, warn: Callable[[str], None] = lambda message: None) -> tuple[Subset, ...]:
    """What a dataset consists of, a folder or a file that lists some, as far as the host lets the page read all of it.

    ConfigError for a folder, or a file, that it does not; DatasetError for a file that cannot be read. A file that the page
    saved itself may be read wherever runs lie.
    """
    if not is_within(images, datasets_dir(host)):
        host.check_folder(images)
    return checked_subsets(images, host.check_folder, warn)


def warnings_of(
    config: TrainConfig, model: DiffusionModel, embedding: Embedding, prompter: Prompter, subsets: Sequence[Subset]
) -> list[str]:
    """What is likely to go wrong in a run, the same on the page and on the command line; DatasetError if it cannot be."""
    found = preflight(subsets, prompter, config, model, embedding.vectors)
    return [*about_embedding(model, embedding), *found.warnings]


def about_embedding(model: DiffusionModel, embedding: Embedding) -> list[str]:
    """What there is to say of the word itself, and of the text that one begins as which was not trained yet."""
    name = embedding.name
    said = about_an_ordinary_word(model, name)
    text = embedding.info.get("init_text")
    if embedding.step == 0 and isinstance(text, str):
        said.append(embeddings_dir.text_left_out(model, text, embedding.num_vectors))
    return list(filter(None, said))
