"""An entry of the queue: a run that waits to be started, as the queue's file stores it. Imports nothing heavy."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ti_trainer.host import ModelReference

if TYPE_CHECKING:
    from ti_trainer.config.training import TrainConfig
    from ti_trainer.runs.distill import Distillation
    from ti_trainer.runs.quick import QuickTraining
    from ti_trainer.runs.session import Session

State = Literal["waiting", "running", "failed"]
STATES: tuple[State, ...] = ("waiting", "running", "failed")
Entries = tuple["Entry", ...]


@dataclass(frozen=True)
class Entry:
    """A run that was queued. `message` says why it failed, and `option` is that of a ConfigError.

    `resume` is the id of the run to continue, and `overwrite` that of `Session`. With `prompt`, the fields of a
    `Distillation`, the embedding is created when it is started: `num_vectors` and `overwrite` are then those of its `begin`.
    With `quick`, the fields of a `QuickTraining`, images are prepared then as well, and `train` has only the options that
    were chosen. `model` is the one that it is meant for; None: it was added by a version that did not store it.
    """

    id: str
    name: str
    images: str
    train: Mapping[str, Any]
    state: State = "waiting"
    message: str = ""
    option: str = ""
    resume: str = ""
    overwrite: bool = False
    prompt: Mapping[str, Any] = field(default_factory=dict)
    num_vectors: int = 0
    quick: Mapping[str, Any] = field(default_factory=dict)
    model: ModelReference | None = None

    @classmethod
    def of(cls, session: Session) -> Entry:
        """A new entry for the run that a session describes."""
        resume = session.resume.id if session.resume else ""
        values = session.name, str(session.images.resolve()), session.config.to_dict()
        return cls(_new_id(), *values, resume=resume, overwrite=session.overwrite)

    @classmethod
    def of_prompt(cls, wanted: Distillation, config: TrainConfig, num_vectors: int | None, *, overwrite: bool) -> Entry:
        """A new entry for an embedding that is to learn from a prompt."""
        values = wanted.name, wanted.name, config.to_dict()
        return cls(_new_id(), *values, overwrite=overwrite, prompt=asdict(wanted), num_vectors=num_vectors or 0)

    @classmethod
    def of_quick(cls, work: QuickTraining) -> Entry:
        """A new entry for a quick training."""
        values = work.name, str(work.images.resolve()), dict(work.options)
        chosen = {"kind": work.kind, "init_text": work.init_text}
        return cls(_new_id(), *values, overwrite=work.overwrite, quick=chosen)

    @property
    def creates(self) -> bool:
        """Whether it creates the embedding that it trains."""
        return bool(self.prompt or self.quick)

    @property
    def max_steps(self) -> int | None:
        """The step to train to; None if the entry does not say."""
        steps = self.train.get("max_steps")
        return steps if isinstance(steps, int) else None

    @property
    def about_model(self) -> str:
        """The model that it is meant for, in words."""
        return f"model {self.model}" if self.model else "model not stored"

    def is_like(self, other: Entry) -> bool:
        """Whether another entry describes the same run."""
        return all(getattr(self, each) == getattr(other, each) for each in ("name", "images", "train", "resume", "prompt"))


def to_json(entry: Entry) -> dict[str, Any]:
    """What the file says of an entry: `_OPTIONAL` only where they are set."""
    return {name: value for name, value in asdict(entry).items() if value or name not in (*_OPTIONAL, "model")}


def from_json(values: object) -> Entry | None:
    """The entry that a file describes; None if it is not one. Its options are checked when it is started."""
    if not isinstance(values, dict):
        return None
    texts = [values.get(name) for name in ("id", "name", "images")]
    train, state, message = values.get("train"), values.get("state", "waiting"), values.get("message", "")
    if not all(isinstance(each, str) and each for each in texts) or not isinstance(train, dict):
        return None
    if state not in STATES or not isinstance(message, str) or not str(texts[0]).isalnum():
        return None
    optional = {name: values.get(name, kind()) for name, kind in _OPTIONAL.items()}
    if not all(isinstance(optional[name], kind) for name, kind in _OPTIONAL.items()):
        return None
    try:
        model = ModelReference(**values["model"]) if "model" in values else None
    except TypeError:
        return None
    if model is not None and not (model.name and all(isinstance(each, str) for each in asdict(model).values())):
        return None
    return Entry(str(texts[0]), str(texts[1]), str(texts[2]), train, state, message, model=model, **optional)


def _new_id() -> str:
    return secrets.token_hex(4)


_OPTIONAL: Mapping[str, type] = {
    "option": str,
    "resume": str,
    "overwrite": bool,
    "prompt": dict,
    "num_vectors": int,
    "quick": dict,
}
