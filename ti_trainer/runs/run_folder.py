"""A run's folder: settings, losses, samples, copies of the embedding and the state to go on from. Explains itself to people.

LOG/<YYYY-MM-DD>/<name>/
    settings.json  state.safetensors  textual_inversion_loss.csv  validation_loss.csv  trials.csv  loss.png
    before_after.png
    embeddings/<name>-<step>.safetensors  images/<name>-<step>.png  image_embeddings/<name>-<step>.png
"""

from __future__ import annotations

import datetime
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import Embedding, averaged_name, negative_name
from ti_trainer.errors import TrainingError
from ti_trainer.files import write_bytes
from ti_trainer.runs.tables import CSV_COLUMNS, VALIDATION_COLUMNS, forget_after, rows_of
from ti_trainer.training.state import TrainState

log = logging.getLogger(__name__)
LARGEST_SETTINGS_BYTES = 16 * 2**20  # a dataset file with thousands of folders has one
DECISIVE = (  # options that make another run of it when they change; rates, limits and what is written may change
    *("seed", "batch_size", "gradient_accumulation_steps", "repeats", "latent_sampling", "prior_loss_weight"),
    *("template", "shuffle_tags", "tag_dropout", "clip_skip", "precision", "compile"),
    *("use_alpha_weight", "mask_outside", "normalize_masks"),
    *("negative", "train_cfg_scale", "positive_filewords_only", "ema_rate", "ema_every"),
    *("loss_weighting", "snr_gamma"),
    *("reconstruction_weight", "discriminator", "discriminator_class", "discriminator_weight"),
)


@dataclass(frozen=True)
class Run:
    """One run of one embedding."""

    path: Path

    @classmethod
    def create(cls, log_dir: Path, name: str, settings: dict[str, Any]) -> Run:
        """A new folder, numbered if the name was trained today already."""
        day = log_dir / datetime.datetime.now().astimezone().date().isoformat()
        number = 1
        while True:
            path = day / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
        run = cls(path)
        try:
            run.save_settings(settings)
        except OSError:
            path.rmdir()  # not a run
            raise
        return run

    @classmethod
    def all(cls, log_dir: Path) -> list[Run]:
        """Every run, the one that was at work last first."""
        runs = [cls(path.parent) for path in log_dir.glob("*/*/settings.json")]
        return sorted(runs, key=lambda run: run.changed_at, reverse=True)

    @classmethod
    def latest(cls, log_dir: Path, name: str) -> Run:
        """The run of this embedding whose state was saved last; TrainingError if there is none to go on with.

        Also if that may be one whose settings cannot be read: its folder has the name, and an older run is not meant.
        """
        states = sorted(log_dir.glob("*/*/state.safetensors"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        folder_name = re.compile(re.escape(name) + r"(-\d+)?")
        for run in (cls(path.parent) for path in states):
            named = run.settings().get("name")
            if named == name:
                return run
            if named is None and folder_name.fullmatch(run.path.name):
                message = (
                    f"The latest run of {name!r} seems to be {run.path}, but it cannot be resumed: "
                    f"{run.damage or 'settings.json names no embedding'}. Restore that file, or move this folder out of "
                    f"{log_dir} to resume an earlier run."
                )
                raise TrainingError(message)
        message = f"There is no run of {name!r} under {log_dir} to resume: train it without --resume first."
        raise TrainingError(message)

    def settings(self) -> dict[str, Any]:
        """What `save_settings` wrote; empty if it is not there or damaged."""
        return self._settings()[0]

    @property
    def damage(self) -> str:
        """Why its settings cannot be read; "" if they can."""
        return self._settings()[1]

    def _settings(self) -> tuple[dict[str, Any], str]:
        path = self.path / "settings.json"
        try:
            if not path.is_file():
                return {}, "settings.json is not a file"
            if path.stat().st_size > LARGEST_SETTINGS_BYTES:
                return {}, f"settings.json is larger than {LARGEST_SETTINGS_BYTES // 2**20} MB"
            settings = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            return {}, f"settings.json cannot be read: {error.strerror}"
        except (ValueError, RecursionError) as error:
            return {}, f"settings.json is not JSON: {error}"
        known = isinstance(settings, dict) and isinstance(settings.get("name", ""), str)
        if not known or not isinstance(settings.get("train", {}), dict):
            return {}, "settings.json does not hold the settings of a run"
        return settings, ""

    def save_settings(self, settings: dict[str, Any]) -> None:
        """Write settings.json."""
        write_bytes(self.path / "settings.json", json.dumps(settings, indent=2, ensure_ascii=False).encode())

    def remember(self, files: Mapping[str, str]) -> None:
        """Note what the embeddings' files hold now, by their names: digests, for whoever goes on with it."""
        if settings := self.settings():  # what cannot be read is left as it is
            self.save_settings({**settings, "embedding_files": dict(files)})

    @property
    def id(self) -> str:
        """Names it among all runs: day/name."""
        return "/".join(self.path.parts[-2:])

    @property
    def changed_at(self) -> float:
        """When its state was last saved, or it began; seconds since the epoch."""
        state = self.path / "state.safetensors"
        try:
            return (state if state.is_file() else self.path / "settings.json").stat().st_mtime
        except OSError:  # a link to nowhere, or deleted just now
            return 0.0

    @property
    def step(self) -> int:
        """How far its state is; 0 if there is none."""
        path = self.path / "state.safetensors"
        if not path.is_file():
            return 0
        try:
            with safe_open(path, "pt") as file:
                return int(json.loads(file.metadata()["state"])["step"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return 0

    def previews(self) -> list[tuple[int, Path]]:
        """Preview images by their steps."""
        return _numbered(self.path / "images", ".png")

    def copy_file(self, embedding: Embedding) -> Path:
        """Where a copy of the embedding, as it is at its step, is kept."""
        return self.path / "embeddings" / f"{embedding.name}-{embedding.step}.safetensors"

    def write_copy(self, embedding: Embedding) -> None:
        """Keep it as it is at its step. Inside, too, it is called NAME-STEP: who goes by that shall not take it for NAME."""
        formats.write(replace(embedding, name=f"{embedding.name}-{embedding.step}"), self.copy_file(embedding))

    def copies(self, *, averaged: bool = False) -> list[tuple[int, Path]]:
        """Copies of the embedding, or those of its moving average, by their steps."""
        name = str(self.settings().get("name"))
        wanted = averaged_name(name) if averaged else name
        copies = _numbered(self.path / "embeddings", ".safetensors")
        return [(step, path) for step, path in copies if path.stem == f"{wanted}-{step}"]

    def negative_of(self, copy: Path) -> Path | None:
        """The copy of the negative embedding that was made with this one, if there is one."""
        name = str(self.settings().get("name"))
        path = copy.with_name(negative_name(name) + copy.name.removeprefix(name))
        return path if path.is_file() else None

    def save_state(self, state: TrainState, fingerprint: str) -> None:
        """Keep what is needed to go on exactly."""
        tensors, counts = state.pack()
        counts["dataset"] = fingerprint
        # Not `save_file`, which has words of its own for a full disk.
        content = save({key: value.contiguous() for key, value in tensors.items()}, {"state": json.dumps(counts)})
        write_bytes(self.path / "state.safetensors", content)

    def load_state(self) -> tuple[TrainState, str]:
        """The state and the fingerprint of its dataset; TrainingError if it cannot be read."""
        path = self.path / "state.safetensors"
        try:
            with safe_open(path, "pt") as file:
                counts = json.loads(file.metadata()["state"])
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            return TrainState.unpack(tensors, counts), counts["dataset"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            message = f"The state {path} cannot be read ({error}): start a new run."
            raise TrainingError(message) from error

    @property
    def loss_file(self) -> Path:
        """The table of losses."""
        return self.path / "textual_inversion_loss.csv"

    @property
    def validation_file(self) -> Path:
        """The table of validation losses."""
        return self.path / "validation_loss.csv"

    def losses(self) -> list[dict[str, float]]:
        """Whole lines of the table of losses."""
        rows, _ = rows_of(self.loss_file, CSV_COLUMNS)
        return [{column: float(value) for column, value in row.items()} for row in rows]

    def validation_losses(self) -> list[tuple[int, float]]:
        """Validation losses by their steps."""
        rows, _ = rows_of(self.validation_file, VALIDATION_COLUMNS)
        return [(int(row["step"]), float(row["loss"])) for row in rows]

    def forget_after(self, step: int, warn: Callable[[str], None] = log.warning) -> None:
        """Leave out losses beyond this step: they will be written again. Warns of a damaged table, and goes on without."""
        for path, columns in ((self.loss_file, CSV_COLUMNS), (self.validation_file, VALIDATION_COLUMNS)):
            try:
                said = forget_after(path, columns, step)
            except OSError as error:
                said = f"{path.name} cannot be continued: {error.strerror}."
            if said:
                warn(said)


def changes(before: dict[str, Any], now: dict[str, Any], other_images: bool) -> list[str]:
    """What of a run's settings makes it differ, when resumed, from one that was not interrupted."""
    changed = ["images or captions"] if other_images else []
    if before.get("model_hash") != now["model_hash"]:
        changed.append("model")
    if before.get("model_spec") not in (None, now.get("model_spec")):
        changed.append(f"what the model is ({before['model_kind']})")
    then = {**TrainConfig().to_dict(), **before.get("train", {})}  # options that are new since were as they are by default
    if (then["memory"] == "8bit") != (now["train"]["memory"] == "8bit"):  # others change no number
        changed.append("memory")
    return changed + [name for name in DECISIVE if then.get(name) != now["train"][name]]


def _numbered(folder: Path, ending: str) -> list[tuple[int, Path]]:
    """Files named <name>-<step><ending>, by their steps."""
    steps = ((path.stem.rsplit("-", 1)[-1], path) for path in folder.glob(f"*{ending}") if not path.name.startswith("."))
    return sorted((int(step), path) for step, path in steps if step.isdecimal())
