"""The run folder: settings, losses, previews, copies of the embedding, and the state to resume from.

LOG/<YYYY-MM-DD>/<name>/
    settings.json  state.safetensors  textual_inversion_loss.csv  validation_loss.csv  trials.csv  loss.png
    before_after.png  comparison.png
    embeddings/<name>-<step>.safetensors  images/<name>-<step>.png  image_embeddings/<name>-<step>.png
"""

from __future__ import annotations

import datetime
import functools
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
from ti_trainer.config.training import TrainConfig, options
from ti_trainer.embedding import Embedding, averaged_name, negative_name
from ti_trainer.errors import ConfigError, TrainingError
from ti_trainer.files import write_bytes
from ti_trainer.runs.tables import CSV_COLUMNS, VALIDATION_COLUMNS, forget_after, rows_of
from ti_trainer.training.state import TrainState

log = logging.getLogger(__name__)
LARGEST_SETTINGS_BYTES = 16 * 2**20  # a dataset of thousands of folders needs about 1 MB
LORA_HASH = "teacher_lora_hash"  # in the settings
DECISIVE = (  # options whose change makes a resumed run inexact; rates, limits and what is written may change
    *("seed", "batch_size", "gradient_accumulation_steps", "repeats", "latent_sampling", "prior_loss_weight"),
    *("template", "shuffle_tags", "tag_dropout", "clip_skip", "precision", "compile"),
    *("use_alpha_weight", "mask_outside", "normalize_masks"),
    *("negative", "train_cfg_scale", "positive_filewords_only", "ema_rate", "ema_every"),
    *("loss_weighting", "snr_gamma", "prompt_preservation", "teacher_prompt", "opposite_prompt", "teacher_negative_prompt"),
    *("teacher_lora", "teacher_lora_weight"),
    *("reconstruction_weight", "discriminator", "discriminator_class", "discriminator_weight"),
)
BEFORE = {"stop_when_done": False, "prompt_preservation": 0.0}  # what runs did before there were these options


@dataclass(frozen=True)
class Run:
    """One run of one embedding."""

    path: Path

    @classmethod
    def create(cls, log_dir: Path, name: str, settings: dict[str, Any]) -> Run:
        """Create a run folder, numbered if the embedding has a run of today already."""
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
            path.rmdir()  # a folder without settings is not a run
            raise
        return run

    @classmethod
    def all(cls, log_dir: Path) -> list[Run]:
        """Every run, the most recently changed first."""
        runs = [cls(path.parent) for path in log_dir.glob("*/*/settings.json")]
        return sorted(runs, key=lambda run: run.changed_at, reverse=True)

    @classmethod
    def find(cls, log_dir: Path, run_id: str) -> Run:
        """The run with this id; ConfigError if there is none. The id is never used as a path."""
        for run in cls.all(log_dir):
            if run.id == run_id:
                return run
        message = f"The run {run_id} no longer exists: if it is in the bin, restore it first."
        raise ConfigError(message)

    @classmethod
    def latest(cls, log_dir: Path, name: str) -> Run:
        """The run of this embedding whose state was saved last; TrainingError if none can be resumed.

        Also if the latest may be one whose settings cannot be read, by the name of its folder: resuming an older run
        instead would be a surprise.
        """
        states = sorted(log_dir.glob("*/*/state.safetensors"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        folder_name = re.compile(re.escape(name) + r"(-\d+)?")
        for run in (cls(path.parent) for path in states):
            found = run.settings().get("name")
            if found == name:
                return run
            if found is None and folder_name.fullmatch(run.path.name):
                message = (
                    f"The latest run of {name!r} seems to be {run.path}, but it cannot be resumed: "
                    f"{run.damage or 'settings.json names no embedding'}. Restore that file, or move this folder out of "
                    f"{log_dir} to resume an earlier run."
                )
                raise TrainingError(message)
        message = f"There is no run of {name!r} under {log_dir} to resume. Start a new run."
        raise TrainingError(message)

    def settings(self) -> dict[str, Any]:
        """The content of settings.json; empty if the file is missing or damaged."""
        return self._settings()[0]

    def options(self) -> dict[str, Any]:
        """The run's training options, for `TrainConfig.from_dict`; ConfigError if this version cannot use them."""
        values = self.settings().get("train", {})
        unknown = sorted(set(values) - {each.name for each in options()})
        try:
            TrainConfig.from_dict({name: value for name, value in values.items() if name not in unknown})
            reason = f"it does not know the options {', '.join(unknown)}" if unknown else ""
        except ConfigError as error:
            reason = str(error).rstrip(".")
        if reason:
            message = (
                f"The run {self.id} was made by another version of TI Trainer, and this version cannot resume it: {reason}. "
                "Start a new run; it continues from the embedding as it is now."
            )
            raise ConfigError(message)
        return {**BEFORE, **values}

    @property
    def damage(self) -> str:
        """Why settings.json cannot be read; "" if it can."""
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
        is_run = isinstance(settings, dict) and isinstance(settings.get("name", ""), str)
        if not is_run or not isinstance(settings.get("train", {}), dict):
            return {}, "settings.json does not hold the settings of a run"
        return settings, ""

    def save_settings(self, settings: dict[str, Any]) -> None:
        """Write settings.json."""
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        write_bytes(self.path / "settings.json", text.encode(errors="backslashreplace"))  # which is how JSON escapes, too

    def record_files(self, digests: Mapping[str, str]) -> None:
        """Record the digests of the embedding files by embedding name, for the check when the run is resumed."""
        self._record("embedding_files", digests)

    def record_measured(self, figures: Mapping[str, float]) -> None:
        """Record figures of what was learned, beside those that are recorded already."""
        self._record("measured", {**self.measured(), **figures})

    def measured(self) -> dict[str, float]:
        """The figures by name."""
        found = self.settings().get("measured")
        return {name: value for name, value in found.items() if isinstance(value, float)} if isinstance(found, dict) else {}

    def _record(self, what: str, values: Mapping[str, object]) -> None:
        if settings := self.settings():  # a damaged file is not overwritten
            self.save_settings({**settings, what: dict(values)})

    @property
    def id(self) -> str:
        """The run's identifier: day/name."""
        return "/".join(self.path.parts[-2:])

    @property
    def changed_at(self) -> float:
        """When the state was last saved, or the run was started; seconds since the epoch."""
        state = self.path / "state.safetensors"
        try:
            return (state if state.is_file() else self.path / "settings.json").stat().st_mtime
        except OSError:  # a broken link, or deleted just now
            return 0.0

    @property
    def step(self) -> int:
        """The step of the saved state; 0 if there is none."""
        path = self.path / "state.safetensors"
        if not path.is_file():
            return 0
        try:
            with safe_open(path, "pt") as file:
                return int(json.loads(file.metadata()["state"])["step"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return 0

    def previews(self) -> list[tuple[int, Path]]:
        """Preview images by step."""
        return _numbered(self.path / "images", ".png")

    def copy_file(self, embedding: Embedding) -> Path:
        """The path of the embedding's copy at its step."""
        return self.path / "embeddings" / f"{embedding.name}-{embedding.step}.safetensors"

    def write_copy(self, embedding: Embedding) -> None:
        """Save a copy. The name inside the file is NAME-STEP too, since some programs read it instead of the file's name."""
        formats.write(replace(embedding, name=f"{embedding.name}-{embedding.step}"), self.copy_file(embedding))

    def copies(self, *, averaged: bool = False) -> list[tuple[int, Path]]:
        """Copies of the embedding, or of its moving average, by step."""
        name = str(self.settings().get("name"))
        wanted = averaged_name(name) if averaged else name
        copies = _numbered(self.path / "embeddings", ".safetensors")
        return [(step, path) for step, path in copies if path.stem == f"{wanted}-{step}"]

    def negative_of(self, copy: Path) -> Path | None:
        """The copy of the negative embedding at the same step, if there is one."""
        name = str(self.settings().get("name"))
        path = copy.with_name(negative_name(name) + copy.name.removeprefix(name))
        return path if path.is_file() else None

    def save_state(self, state: TrainState, fingerprint: str) -> None:
        """Save everything that an exact resume needs."""
        tensors, counts = state.pack()
        counts["dataset"] = fingerprint
        # Not `save_file`: it reports a full disk as another kind of error.
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
        """The CSV table of training losses."""
        return self.path / "textual_inversion_loss.csv"

    @property
    def validation_file(self) -> Path:
        """The CSV table of validation losses."""
        return self.path / "validation_loss.csv"

    def losses(self) -> list[dict[str, float]]:
        """The valid lines of the loss table."""
        rows, _ = rows_of(self.loss_file, CSV_COLUMNS)
        return [{column: float(value) for column, value in row.items()} for row in rows]

    def validation_losses(self) -> list[tuple[int, float]]:
        """Validation losses by step. The file is read again once it has changed: pages ask several times a second."""
        try:
            found = self.validation_file.stat()
        except OSError:
            return []
        return list(_validation_losses(self.validation_file, found.st_mtime_ns, found.st_size))

    def forget_after(self, step: int, warn: Callable[[str], None] = log.warning) -> None:
        """Remove losses beyond this step, which will be written again; warns about a damaged table."""
        for path, columns in ((self.loss_file, CSV_COLUMNS), (self.validation_file, VALIDATION_COLUMNS)):
            try:
                warning = forget_after(path, columns, step)
            except OSError as error:
                warning = f"{path.name} cannot be continued: {error.strerror}."
            if warning:
                warn(warning)


@functools.lru_cache(maxsize=16)
def _validation_losses(path: Path, _changed_ns: int, _size: int) -> tuple[tuple[int, float], ...]:
    rows, _ = rows_of(path, VALIDATION_COLUMNS)
    return tuple((int(row["step"]), float(row["loss"])) for row in rows)


def changes(before: dict[str, Any], now: dict[str, Any], other_images: bool) -> list[str]:
    """The settings whose change makes a resumed run differ from one that was not interrupted, as names for a message."""
    changed = ["images or captions"] if other_images else []
    if before.get("model_hash") != now["model_hash"]:
        changed.append("model")
    if before.get("model_spec") not in (None, now.get("model_spec")):
        changed.append(f"model spec ({before['model_spec']})")
    if before.get(LORA_HASH) != now.get(LORA_HASH) and before.get(LORA_HASH) is not None:
        changed.append("LoRA")
    then = {**TrainConfig().to_dict(), **BEFORE, **before.get("train", {})}  # other options have their defaults
    if (then["memory"] == "8bit") != (now["train"]["memory"] == "8bit"):  # the other modes compute the same
        changed.append("memory")
    return changed + [name for name in DECISIVE if then.get(name) != now["train"][name]]


def _numbered(folder: Path, ending: str) -> list[tuple[int, Path]]:
    """Files named <name>-<step><ending>, by step."""
    steps = ((path.stem.rsplit("-", 1)[-1], path) for path in folder.glob(f"*{ending}") if not path.name.startswith("."))
    return sorted((int(step), path) for step, path in steps if step.isdecimal())
