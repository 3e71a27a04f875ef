"""Where data sets come from, as far as the host lets the page read them. Reads no picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ti_trainer.data.subsets import Subset, checked_subsets
from ti_trainer.files import is_within
from ti_trainer.host import Host

DATA_SETS = "data sets"  # within the folder of runs


def data_sets_dir(host: Host) -> Path:
    """Where data set files that the page saved lie."""
    return host.log_dir / DATA_SETS


def subsets_of(host: Host, images: Path, warn: Callable[[str], None] = lambda message: None) -> tuple[Subset, ...]:
    """What a data set consists of, a folder or a file that lists some, as far as the host lets the page read all of it.

    ConfigError for a folder, or a file, that it does not; DatasetError for a file that cannot be read. A file that the page
    saved itself may be read wherever runs lie.
    """
    if not is_within(images, data_sets_dir(host)):
        host.check_folder(images)
    return checked_subsets(images, host.check_folder, warn)
