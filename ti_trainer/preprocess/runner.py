"""Preprocess a folder of images into a dataset; the command line and the page both call this.

Source images are only read. Files are written atomically, and a second run makes only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ti_trainer.captioning.tags import merged
from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.data.listing import FLIPPED
from ti_trainer.data.open_image import opened_image
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.files import write_bytes
from ti_trainer.preprocess import faces
from ti_trainer.preprocess.captions import Existing, captions_of
from ti_trainer.preprocess.manifest import (
    NOT_OURS,
    Entry,
    FileSignature,
    Manifest,
    caption_hash,
    image_of,
    note,
    signature_of,
)
from ti_trainer.preprocess.masks import Mask, check_folder, masks_of
from ti_trainer.preprocess.pool import run_tasks
from ti_trainer.preprocess.source import images_of, notes_on, real
from ti_trainer.preprocess.summary import Summary
from ti_trainer.preprocess.transforms import Result, results

FAILED_CAPTIONS = 5  # in a row: then all of them will fail
Caption = Callable[[Image.Image], str]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class _Task:
    """A source image to process. `kept` are stems of results not to make again; `settings` is a digest of the options."""

    path: Path
    mask: Mask | None
    existing: Existing
    entry: Entry
    kept: set[str]
    settings: str

    def order(self, folder: Path) -> dict[str, Any]:
        """The task as JSON values for a worker."""
        entry = self.entry
        known = {"stem": entry.stem, "keep": sorted(self.kept), "mine": entry.images, "masks": entry.masks}
        mask = [str(self.mask.path), self.mask.mark] if self.mask else None
        return {"path": str(self.path), "mask": mask, "folder": str(folder), **known}


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of the images in one folder into a dataset in another.

    `face_models` are folders to search for a face detector's model; `captioning` opens the captioner, if any.
    """

    source: Path
    destination: Path
    config: PreprocessConfig
    face_models: Sequence[Path] = ()
    captioning: Callable[[], AbstractContextManager[Caption]] | None = None

    def check(self) -> list[Path]:
        """The source images; ConfigError or DatasetError if the run is not possible."""
        source, destination = real(self.source), real(self.destination)
        if source == destination or destination in source.parents:
            where = "the same as" if source == destination else "inside"
            message = f"The source {self.source} is {where} the destination {self.destination}. Choose a new folder."
            raise ConfigError(message)
        if os.path.lexists(self.destination) and not self.destination.is_dir():
            what = "a file" if self.destination.is_file() else "no folder"
            message = f"The destination {self.destination} is {what}. Choose a folder; it is created if necessary."
            raise ConfigError(message)
        if self._masks_folder is not None:
            check_folder(self._masks_folder, self.source)
        return images_of(self.source, self._elsewhere, recursive=self.config.recursive)

    def notes(self) -> list[str]:
        """Sentences about what the source has that is not used."""
        return notes_on(self.source, self._elsewhere, recursive=self.config.recursive)

    def preview(self, count: int) -> Iterator[tuple[Path, list[Result], str]]:
        """The first source images, each with its results and its caption or error; writes nothing."""
        images = self.check()[:count]
        source, masks, captions = real(self.source), self._masks(images), self._captions(images)
        finder = faces.load(self.face_models)[0] if self.config.resize == "focal" else None
        with self.captioning() if self.captioning else nullcontext() as caption:
            for path in images:
                absolute = source / path.relative_to(self.source)
                yield path, *self._previewed(path, masks.get(absolute), captions[absolute], finder, caption)

    def _previewed(
        self, path: Path, mask: Mask | None, existing: Existing, finder: faces.Faces | None, caption: Caption | None
    ) -> tuple[list[Result], str]:
        try:
            made = results(path, self.config, finder, mask.path if mask else None)
            return made, self._caption(existing, made[-1].image, caption)
        except Exception as error:  # a damaged file can raise anything
            return [], str(error) or type(error).__name__

    def run(self, progress: Progress = lambda done, total: None, should_stop: Callable[[], bool] = lambda: False) -> Summary:
        """Process all source images. When stopped, those that have begun are finished."""
        started_at, images = time.monotonic(), self.check()
        summary, manifest = Summary(notes=self.notes()), Manifest.of(self.destination)
        manifest.tidy()
        common, tasks = self._settings(), []
        masks, captions = self._masks(images), self._captions(images)
        for path, entry in manifest.enter(self._entered(images, summary)).items():
            mask = masks.get(path)
            signature = "" if self.config.existing_captions == "ignore" else captions[path].signature()
            settings = common + signature + (mask.signature() if mask else "")
            if manifest.is_done(entry, settings):
                summary.done_before += 1
            else:
                tasks.append(_Task(path, mask, captions[path], entry, manifest.changed(entry), settings))
        progress(before := len(images) - len(tasks), len(images))
        if tasks:
            self._run_tasks(tasks, manifest, summary, should_stop, lambda done: progress(before + done, len(images)))
        summary.kept.sort()
        summary.stopped = should_stop()
        summary.seconds = time.monotonic() - started_at
        return summary

    def _entered(self, images: list[Path], summary: Summary) -> Iterator[tuple[Path, str, FileSignature]]:
        """Absolute path, path within the source, and signature for the manifest; links are not resolved."""
        source = real(self.source)
        for path in images:
            relative = path.relative_to(self.source)
            try:
                yield source / relative, relative.as_posix(), signature_of(path)
            except OSError as error:  # a broken link, or deleted meanwhile
                summary.failed.append((relative.as_posix(), error.strerror or str(error)))

    def _run_tasks(
        self,
        tasks: list[_Task],
        manifest: Manifest,
        summary: Summary,
        should_stop: Callable[[], bool],
        progress: Callable[[int], None],
    ) -> None:
        """Make images in worker processes, caption them here meanwhile, and record what was done."""
        given = json.dumps({"config": self.config.to_dict(), "face_models": [str(each) for each in self.face_models]})
        with self.captioning() if self.captioning else nullcontext() as caption:
            self.destination.mkdir(parents=True, exist_ok=True)
            manifest.save()
            try:
                answers = run_tasks(((each, each.order(self.destination)) for each in tasks), given, should_stop)
                failed_in_a_row = 0
                for number, (task, answer) in enumerate(answers, start=1):
                    if "disk" in answer:
                        message = f"{answer['disk']}. Files made so far are complete; start again to continue."
                        raise DatasetError(message)
                    if "failed" in answer:
                        summary.failed.append((task.entry.relative, answer["failed"]))
                    else:
                        failed = self._enter(task, answer, manifest, caption, summary)
                        failed_in_a_row = failed_in_a_row + 1 if failed else 0
                        if failed_in_a_row == FAILED_CAPTIONS:
                            message = f"{failed_in_a_row} captions in a row failed: {failed}"
                            raise DatasetError(message)
                    progress(number)
            finally:
                with suppress(OSError):  # the journal has everything
                    manifest.save()

    def _enter(
        self, task: _Task, answer: dict[str, Any], manifest: Manifest, caption: Caption | None, summary: Summary
    ) -> str | None:
        """Write captions, remove results of earlier settings, and record the rest; returns the reason of a failure."""
        entry, written = task.entry, answer["written"]
        entry.settings = ""
        kept = {name: signature for name, signature in entry.images.items() if Path(name).stem in task.kept}
        painted = {name: entry.masks.get(name, NOT_OURS) for name in answer["painted"]}
        unmasked = task.kept - {image_of(name) for name in answer["masks"]}
        masks = manifest.masks_to_keep(entry, unmasked) | painted | answer["masks"]
        entry.images |= written
        entry.masks |= masks
        there = [name for name in (*kept, *written) if (self.destination / name).exists()]
        try:
            captions = self._write_captions(task, there, manifest, caption, summary)
        except OSError:
            raise
        except Exception as error:  # of the captioner, such as out of memory, or a caption file that is not text
            reason = str(error) or type(error).__name__
            summary.failed.append((entry.relative, reason))
            return reason
        captions |= {
            name: old for name, old in entry.captions.items() if Path(name).stem in task.kept and name not in captions
        }
        gone = manifest.leftovers(entry, [*kept, *written, *captions, *masks])
        for name in gone:
            (self.destination / name).unlink(missing_ok=True)
        entry.images = {name: signature for name, signature in entry.images.items() if name not in gone}
        entry.captions, entry.masks, entry.settings = captions, masks, task.settings
        now = {"images": entry.images, "captions": captions, "masks": masks}
        note(self.destination, entry.stem, settings=entry.settings, **now)
        summary.sources += 1
        summary.images += len(written)
        summary.masks += len(answer["masks"])
        summary.kept += [*kept, *painted]
        return None

    def _write_captions(
        self, task: _Task, images: list[str], manifest: Manifest, caption: Caption | None, summary: Summary
    ) -> dict[str, str]:
        """Write a caption for each image, the same for its mirrored copy. Returns the hash of each caption file by name."""
        texts: dict[str, str] = {}
        hashes: dict[str, str] = {}
        for name in images:
            file = self.destination / name
            part, caption_file = file.stem.removesuffix(FLIPPED), file.with_suffix(".txt")
            if part not in texts:
                with opened_image(file) if caption else nullcontext() as image:
                    texts[part] = self._caption(task.existing, image, caption)
                if caption and self.config.existing_captions == "copy" and task.existing.text():
                    summary.copied_captions += 1
            if manifest.was_edited(task.entry, caption_file):
                summary.kept.append(caption_file.name)
                hashes[caption_file.name] = task.entry.captions.get(caption_file.name, "")
            elif texts[part]:
                content = texts[part].encode()
                hashes[caption_file.name] = caption_hash(content)
                note(self.destination, task.entry.stem, name=caption_file.name, hash=hashes[caption_file.name])
                write_bytes(caption_file, content)
                summary.captions += 1
            elif caption:
                summary.without_caption += 1
        return hashes

    def _caption(self, existing: Existing, image: Image.Image | None, caption: Caption | None) -> str:
        action = self.config.existing_captions
        text = None if action == "ignore" else existing.text()
        if text and action == "copy":
            return text
        new = merged(text, caption(image) if caption and image else "", action)
        return new or ("" if action == "ignore" else existing.words)

    def _masks(self, images: list[Path]) -> dict[Path, Mask]:
        """Masks of source images, by their paths as in `_entered`."""
        return masks_of(self._absolute(images), real(self.source), self._masks_folder)

    def _captions(self, images: list[Path]) -> dict[Path, Existing]:
        """Captions of source images, by the same paths."""
        return captions_of(self._absolute(images), real(self.source))

    def _absolute(self, images: list[Path]) -> list[Path]:
        source = real(self.source)
        return [source / path.relative_to(self.source) for path in images]

    @property
    def _elsewhere(self) -> set[Path]:
        """Folders that may be inside the source, but are not part of it."""
        return {real(each) for each in (self.destination, self._masks_folder) if each}

    @property
    def _masks_folder(self) -> Path | None:
        return Path(self.config.masks) if self.config.masks else None

    def _settings(self) -> str:
        """A digest of all that results depend on besides the source images."""
        finder = faces.load(self.face_models)[1] if self.config.resize == "focal" else ""
        content = {**self.config.to_dict(), "recursive": None, "faces": finder}
        del content["masks"]  # the signature of each mask is added per image
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
