"""Start an entry of the queue: as a run, a run to continue, an embedding that learns from a prompt, or a quick training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import ConfigError
from ti_trainer.host import Host
from ti_trainer.runs.checks import check_model
from ti_trainer.runs.distill import Distillation
from ti_trainer.runs.queue_entry import Entry
from ti_trainer.runs.quick import QuickTraining
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.runs.suggestions import is_trained

T = TypeVar("T")


def start(
    entry: Entry, host: Host, start_run: Callable[[Session], object], start_quick: Callable[[QuickTraining], object]
) -> None:
    """Call one of the two with what the entry describes; creates the embedding of a prompt.

    ConfigError for what cannot be used, and for an entry that is meant for another model than the host's.
    """
    check_model(host, entry.model)
    if entry.quick:
        start_quick(_quick(entry, host))
        return
    config = TrainConfig.from_dict(entry.train)

    def begin(session: Session) -> None:
        start_run(replace(session, intended_model=entry.model))

    if entry.prompt:
        again = not host.is_public and not is_trained(host, entry.name)  # an earlier attempt may have created it
        wanted = _made(Distillation, entry, {**entry.prompt, "contexts": tuple(entry.prompt.get("contexts", ()))})
        wanted.begin(host, config, entry.num_vectors or None, begin, overwrite=entry.overwrite or again)
    else:
        resume = Run.find(host.log_dir, entry.resume) if entry.resume else None
        begin(Session(host, entry.name, Path(entry.images), config, resume, overwrite=entry.overwrite))


def _quick(entry: Entry, host: Host) -> QuickTraining:
    given = {"host": host, "name": entry.name, "images": Path(entry.images), "options": entry.train}
    return _made(QuickTraining, entry, {**entry.quick, **given, "overwrite": entry.overwrite, "intended_model": entry.model})


def _made(kind: Callable[..., T], entry: Entry, values: Mapping[str, Any]) -> T:
    """What an entry describes; ConfigError if another version wrote it."""
    try:
        return kind(**values)
    except TypeError as error:
        message = f"{entry.name!r} in the queue cannot be used ({error}): add it again."
        raise ConfigError(message) from error
