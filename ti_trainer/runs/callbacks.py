"""The callbacks that write a run's files: each is called with every event and does one thing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from threading import Event as Flag

from PIL import Image
from torch import Tensor

from ti_trainer import formats
from ti_trainer.embedding import Embedding, negative_name, unwanted
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.files import atomic
from ti_trainer.host import GenerationRequest, Lease
from ti_trainer.model import Vectors
from ti_trainer.offload.plan import ran_out
from ti_trainer.prompts import escaped
from ti_trainer.runs.plots import write_rows
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.tables import CSV_COLUMNS, VALIDATION_COLUMNS, append_row
from ti_trainer.runs.trials import evaluate_trials_at_end, write_table
from ti_trainer.training.events import Event, Finished, StepDone
from ti_trainer.training.selection import IMAGES, evaluate_trials, trial_results
from ti_trainer.training.trainer import Trainer

log = logging.getLogger(__name__)
Callback = Callable[[Event], None]
Generate = Callable[[GenerationRequest, Mapping[str, Vectors]], Image.Image]


@dataclass
class LossTable:
    """A line of the CSV every `every` steps and at the end, with the mean loss since the previous line."""

    run: Run
    every: int
    _last: StepDone | None = None
    _sum: Tensor | float = 0.0
    _count: int = 0

    def __call__(self, event: Event) -> None:
        """Add the step's loss; it is read from the device only when a line is written."""
        if isinstance(event, StepDone):
            self._last, self._sum, self._count = event, self._sum + event.loss, self._count + 1
        if self._last and self._count and (event.step % self.every == 0 or isinstance(event, Finished)):
            last = self._last
            row = (last.step, last.epoch, last.epoch_step, f"{float(self._sum) / self._count:.7f}", last.learning_rate)
            append_row(self.run.loss_file, CSV_COLUMNS, row)
            self._sum, self._count = 0.0, 0


@dataclass
class HostProgress:
    """Report progress to the host."""

    lease: Lease
    trainer: Trainer

    def __call__(self, event: Event) -> None:
        """Report a step."""
        if isinstance(event, StepDone):
            name, last = self.trainer.embedding_name, self.trainer.last_step
            self.lease.progress(event.step, last, f"Training {name}: step {event.step} of {last}, epoch {event.epoch}")


@dataclass
class StateKeeper:
    """Save the state to resume from every `every` steps, or after `every_s` seconds."""

    run: Run
    trainer: Trainer
    every: int
    every_s: float
    fingerprint: str
    _saved_at: float = field(default_factory=time.monotonic)

    def __call__(self, event: Event) -> None:
        """Save if it is due."""
        if not isinstance(event, StepDone):
            return
        due = event.step % self.every == 0 or time.monotonic() - self._saved_at > self.every_s
        if due and self.trainer.is_finite():
            self.run.save_state(self.trainer.state(), self.fingerprint)
            self._saved_at = time.monotonic()


@dataclass
class NonEssential:
    """A callback whose file errors must not end a run: the first OSError becomes a warning, later ones are ignored."""

    write: Callable[[Event], None]
    what: str
    warn: Callable[[str], None] = log.warning
    _warned: bool = False

    def __call__(self, event: Event) -> None:
        """Pass the event on."""
        with self.tolerating():
            self.write(event)

    @contextmanager
    def tolerating(self) -> Iterator[None]:
        """OSError becomes a warning."""
        try:
            yield
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            if not self._warned:
                self.warn(f"The {self.what} could not be written; training continues. {error.strerror or error}{where}.")
            self._warned = True


def _due(event: StepDone, every: int, requested: Flag) -> bool:
    """Whether something is due that is written every `every` steps (0: never) and on request. Clears the request."""
    wanted = requested.is_set()
    if wanted:  # clear it only then, so that a request that arrives just now is not lost
        requested.clear()
    return wanted or (every > 0 and event.step % every == 0)


@dataclass
class Copies:
    """A copy of the embedding every `every` steps (0: never), and on request."""

    run: Run
    trainer: Trainer
    every: int
    requested: Flag = field(default_factory=Flag)

    def __call__(self, event: Event) -> None:
        """Write a copy if one is due."""
        if isinstance(event, StepDone) and _due(event, self.every, self.requested):
            for embedding in self.trainer.copies:
                self.run.write_copy(embedding)


@dataclass
class Previews:
    """A preview every `every` steps (0: never), before the first step, after the last, and on request; also as cards.

    If early stopping keeps another step than the last, there is one of that step too. Several requests make one file, with
    their images below each other; the card has the first.
    """

    run: Run
    trainer: Trainer
    generate: Generate
    requests: Sequence[GenerationRequest]
    every: int
    cards: bool
    requested: Flag = field(default_factory=Flag)
    warn: Callable[[str], None] = log.warning

    def before(self, prompt: str) -> None:
        """Generate one before the first step."""
        self._preview(self.trainer.embeddings, prompt)

    def __call__(self, event: Event) -> None:
        """Generate one if it is due. The run's random generators are not used."""
        if isinstance(event, Finished):
            self._preview_result(event)
        if not isinstance(event, StepDone):
            return
        last = self.every > 0 and event.step == self.trainer.last_step
        if _due(event, self.every, self.requested) or last:
            self._preview(self.trainer.embeddings, event.prompts[-1])

    def _preview_result(self, event: Finished) -> None:
        result = self.trainer.result
        is_new = result[0].step not in dict(self.run.previews())
        if self.every > 0 and event.reason == "done" and self.trainer.best_so_far is not None and is_new:
            self._preview(result, f"a photo of {escaped(result[0].name)}")

    def _preview(self, embeddings: Sequence[Embedding], prompt: str) -> None:
        embedding, vectors = embeddings[0], {each.name: each.vectors for each in embeddings}
        try:
            images = [self.generate(self._completed(each, embeddings, prompt), vectors) for each in self.requests]
        except Exception as error:
            if not (isinstance(error, TITrainerError) or ran_out(error)):  # a preview must not end the run
                raise
            self.warn(f"No preview at step {embedding.step}: {error}")
            return
        name = f"{embedding.name}-{embedding.step}.png"
        with atomic(self.run.path / "images" / name) as new:
            write_rows(images, new)
        if self.cards:
            for each, negative in zip_longest(embeddings, embeddings[1:]):  # the card also holds the negative
                named = replace(each, name=f"{each.name}-{each.step}")  # the WebUI uses this name, not the file's
                card = self.run.path / "image_embeddings" / f"{named.name}.png"
                if negative is not None:
                    negative = replace(negative, name=negative_name(named.name))
                formats.write_card(images[0], named, card, negative=negative)

    def _completed(self, request: GenerationRequest, embeddings: Sequence[Embedding], prompt: str) -> GenerationRequest:
        """The request with this prompt if it has none, and with DreamArtist's negative embedding."""
        request = replace(request, prompt=request.prompt or prompt)
        if self.trainer.scale is not None:
            both = filter(None, (unwanted(request.prompt, embeddings[0].name), request.negative_prompt))
            request = replace(request, negative_prompt=", ".join(both))
        return request


@dataclass
class Evaluation:
    """The validation loss every `every` steps, before the first and after the last; of several trials the lowest.

    It is measured on at most `images` images. A table lists all trials.
    """

    run: Run
    trainer: Trainer
    every: int
    images: int = IMAGES
    warn: Callable[[str], None] = log.warning

    def before(self) -> None:
        """Measure before the first step."""
        self._measure()

    def __call__(self, event: Event) -> None:
        """Measure if it is due."""
        if isinstance(event, StepDone) and (event.step % self.every == 0 or event.step == self.trainer.last_step):
            self._measure()

    def _measure(self) -> None:
        step = self.trainer.step
        try:
            loss = evaluate_trials(self.trainer, self.images)
        except Exception as error:
            if not ran_out(error):  # a measurement must not end the run
                raise
            self.warn(f"The validation loss was not measured at step {step}: {error}")
            return
        append_row(self.run.validation_file, VALIDATION_COLUMNS, (step, f"{loss:.7f}"))
        write_table(self.run, trial_results(self.trainer))


@dataclass
class FinalEvaluation:
    """Evaluate the trials after the last step, before the preview of the best one."""

    run: Run
    trainer: Trainer
    warn: Callable[[str], None] = log.warning

    def __call__(self, event: Event) -> None:
        """Evaluate after the last step, unless that is done."""
        if isinstance(event, StepDone) and event.step == self.trainer.last_step:
            evaluate_trials_at_end(self.trainer, self.run, self.warn)


class TensorBoardLog:
    """Log losses and the learning rate for TensorBoard."""

    def __init__(self, folder: Path, every: int) -> None:
        """ConfigError if the package is missing."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            message = "TensorBoard needs the package tensorboard: pip install tensorboard, or leave the option off."
            raise ConfigError(message) from error
        self.every, self._writer = every, SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        """Log the step, and close the file at the end."""
        if isinstance(event, Finished):
            self._writer.close()
        elif isinstance(event, StepDone) and event.step % self.every == 0:
            self._writer.add_scalar("loss", float(event.loss), event.step)
            self._writer.add_scalar("learn_rate", event.learning_rate, event.step)
