"""A preprocessing from beginning to end: what the command line and the page both call. Knows nothing of either.

Originals are only read. What is written is whole, and a second time nothing is made twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
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
from ti_trainer.preprocess.manifest import NOT_OURS, Entry, FileSignature, Manifest, caption_hash, image_of, note, stamp_of
from ti_trainer.preprocess.masks import Mask, check_folder, masks_of
from ti_trainer.preprocess.pool import run_tasks
from ti_trainer.preprocess.source import images_of, notes_on, real
from ti_trainer.preprocess.transforms import Result, results
from ti_trainer.wording import counted

CAPTIONS_IN_VAIN = 5  # one after the other: then something is wrong with all of them
Caption = Callable[[Image.Image], str]
Progress = Callable[[int, int], None]


@dataclass
class Summary:
    """What was done: photos that became images, those that had been done before, and files that failed, with reasons."""

    photos: int = 0
    images: int = 0
    captions: int = 0
    masks: int = 0
    done_before: int = 0
    kept: list[str] = field(default_factory=list)  # what somebody had changed, painted or left out
    failed: list[tuple[str, str]] = field(default_factory=list)
    stopped: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people: what was done, without the reasons of what failed."""
        made = f"{counted(self.photos, 'photo')} became {counted(self.images, 'image')} in {self.seconds:.0f} s"
        counts = {"a caption": self.captions, "a mask": self.masks}
        said = [", ".join([made, *(f"{count} with {what}" for what, count in counts.items() if count)]) + "."]
        if self.done_before:
            said.append(f"{counted(self.done_before, 'photo')} had been done before, with the same options.")
        if self.kept:
            more = f" and {len(self.kept) - 5} more" if len(self.kept) > 5 else ""
            said.append(f"As you changed or left them: {', '.join(self.kept[:5])}{more}.")
        if self.failed:
            said.append(f"{counted(len(self.failed), 'file')} could not be used.")
        return said + self.notes


@dataclass(frozen=True, eq=False)
class _Task:
    """A photo to be made images of, but for those to be kept; `settings` name the options that they are made with."""

    path: Path
    mask: Mask | None
    existing: Existing
    entry: Entry
    kept: set[str]
    settings: str

    def order(self, folder: Path) -> dict[str, Any]:
        """For a worker."""
        entry = self.entry
        known = {"stem": entry.stem, "keep": sorted(self.kept), "mine": entry.images, "masks": entry.masks}
        mask = [str(self.mask.path), self.mask.mark] if self.mask else None
        return {"path": str(self.path), "mask": mask, "folder": str(folder), **known}


@dataclass(frozen=True)
class Preprocessing:
    """A folder of photos to be made a dataset in another folder.

    `face_models` are folders in which a face detector's model may lie; `captioning` opens what writes captions.
    """

    source: Path
    destination: Path
    config: PreprocessConfig
    face_models: Sequence[Path] = ()
    captioning: Callable[[], AbstractContextManager[Caption]] | None = None

    def check(self) -> list[Path]:
        """The photos; ConfigError or DatasetError if it cannot be."""
        source, destination = real(self.source), real(self.destination)
        if source == destination or destination in source.parents:
            where = "the same as" if source == destination else "inside"
            message = f"The source {self.source} is {where} the destination {self.destination}: name an empty, new folder."
            raise ConfigError(message)
        if os.path.lexists(self.destination) and not self.destination.is_dir():
            what = "a file" if self.destination.is_file() else "no folder"
            message = f"The destination {self.destination} is {what}: name a folder, which is made if there is none."
            raise ConfigError(message)
        if self._masks_folder is not None:
            check_folder(self._masks_folder, self.source)
        return images_of(self.source, self._elsewhere, recursive=self.config.recursive)

    def notes(self) -> list[str]:
        """What is in the source and not used, or not taken over."""
        return notes_on(self.source, self._elsewhere, recursive=self.config.recursive)

    def preview(self, count: int) -> Iterator[tuple[Path, list[Result], str]]:
        """The first photos with what would become of them, and a caption or what is wrong; nothing is written."""
        photos = self.check()[:count]
        source, masks, captions = real(self.source), self._masks(photos), self._captions(photos)
        finder = faces.load(self.face_models)[0] if self.config.resize == "focal" else None
        with self.captioning() if self.captioning else nullcontext() as caption:
            for path in photos:
                place = source / path.relative_to(self.source)
                yield path, *self._previewed(path, masks.get(place), captions[place], finder, caption)

    def _previewed(
        self, path: Path, mask: Mask | None, existing: Existing, finder: faces.Faces | None, caption: Caption | None
    ) -> tuple[list[Result], str]:
        try:
            made = results(path, self.config, finder, mask.path if mask else None)
            return made, self._caption(existing, made[-1].image, caption)
        except Exception as error:  # a damaged file provokes anything
            return [], str(error) or type(error).__name__

    def run(self, progress: Progress = lambda done, total: None, should_stop: Callable[[], bool] = lambda: False) -> Summary:
        """Do it. When stopped, photos that have been begun are finished."""
        begun_at, photos = time.monotonic(), self.check()
        summary, manifest = Summary(notes=self.notes()), Manifest.of(self.destination)
        manifest.tidy()
        common, tasks = self._settings(), []
        masks, captions = self._masks(photos), self._captions(photos)
        for path, entry in manifest.enter(self._entered(photos, summary)).items():
            mask = masks.get(path)
            signature = "" if self.config.existing_captions == "ignore" else captions[path].signature()
            settings = common + signature + (mask.signature() if mask else "")
            if manifest.is_done(entry, settings):
                summary.done_before += 1
            else:
                tasks.append(_Task(path, mask, captions[path], entry, manifest.changed(entry), settings))
        over = len(photos) - len(tasks)
        progress(over, len(photos))
        if tasks:
            self._work_off(tasks, manifest, summary, should_stop, lambda done: progress(over + done, len(photos)))
        summary.kept.sort()
        summary.stopped = should_stop()
        summary.seconds = time.monotonic() - begun_at
        return summary

    def _entered(self, photos: list[Path], summary: Summary) -> Iterator[tuple[Path, str, FileSignature]]:
        """For the ledger: paths that mean the same wherever we are started; links stay links."""
        source = real(self.source)
        for path in photos:
            relative = path.relative_to(self.source)
            try:
                yield source / relative, relative.as_posix(), stamp_of(path)
            except OSError as error:  # a link to nowhere, or gone since
                summary.failed.append((relative.as_posix(), error.strerror or str(error)))

    def _work_off(
        self,
        tasks: list[_Task],
        manifest: Manifest,
        summary: Summary,
        should_stop: Callable[[], bool],
        progress: Callable[[int], None],
    ) -> None:
        """Let workers make images, caption them here meanwhile, and enter what was done."""
        given = json.dumps({"config": self.config.to_dict(), "face_models": [str(each) for each in self.face_models]})
        with self.captioning() if self.captioning else nullcontext() as caption:
            self.destination.mkdir(parents=True, exist_ok=True)
            manifest.save()
            try:
                answers = run_tasks(((each, each.order(self.destination)) for each in tasks), given, should_stop)
                in_vain = 0
                for number, (task, answer) in enumerate(answers, start=1):
                    if "disk" in answer:
                        message = f"{answer['disk']}. What was made until then is whole; the same again goes on from there."
                        raise DatasetError(message)
                    if "failed" in answer:
                        summary.failed.append((task.entry.relative, answer["failed"]))
                    else:
                        failed = self._enter(task, answer, manifest, caption, summary)
                        in_vain = in_vain + 1 if failed else 0
                        if in_vain == CAPTIONS_IN_VAIN:
                            message = f"{in_vain} captions failed one after the other: {failed}"
                            raise DatasetError(message)
                    progress(number)
            finally:
                with suppress(OSError):  # the journal knows it all
                    manifest.save()

    def _enter(
        self, task: _Task, answer: dict[str, Any], manifest: Manifest, caption: Caption | None, summary: Summary
    ) -> str | None:
        """Write captions, remove what earlier settings made of the photo, and note what there is now; or say why not."""
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
        except Exception as error:  # a captioner's own, as of a full GPU, or a caption that is no text
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
        summary.photos += 1
        summary.images += len(written)
        summary.masks += len(answer["masks"])
        summary.kept += [*kept, *painted]
        return None

    def _write_captions(
        self, task: _Task, images: list[str], manifest: Manifest, caption: Caption | None, summary: Summary
    ) -> dict[str, str]:
        """A caption for each image, the same for its mirrored copy; hashes of what lies there by the files' names."""
        texts: dict[str, str] = {}
        hashes: dict[str, str] = {}
        for name in images:
            file = self.destination / name
            part, caption_file = file.stem.removesuffix(FLIPPED), file.with_suffix(".txt")
            if part not in texts:
                with opened_image(file) if caption else nullcontext() as image:
                    texts[part] = self._caption(task.existing, image, caption)
            if manifest.was_edited(task.entry, caption_file):
                summary.kept.append(caption_file.name)
                hashes[caption_file.name] = task.entry.captions.get(caption_file.name, "")
            elif texts[part]:
                content = texts[part].encode()
                hashes[caption_file.name] = caption_hash(content)
                note(self.destination, task.entry.stem, name=caption_file.name, hash=hashes[caption_file.name])
                write_bytes(caption_file, content)
                summary.captions += 1
        return hashes

    def _caption(self, existing: Existing, image: Image.Image | None, caption: Caption | None) -> str:
        action = self.config.existing_captions
        text = None if action == "ignore" else existing.text()
        if text and action == "copy":
            return text
        said = merged(text, caption(image) if caption and image else "", action)
        return said or ("" if action == "ignore" else existing.words)

    def _masks(self, photos: list[Path]) -> dict[Path, Mask]:
        """Of photos by their paths as `_entered` has them."""
        return masks_of(self._places(photos), real(self.source), self._masks_folder)

    def _captions(self, photos: list[Path]) -> dict[Path, Existing]:
        """The same of their captions."""
        return captions_of(self._places(photos), real(self.source))

    def _places(self, photos: list[Path]) -> list[Path]:
        source = real(self.source)
        return [source / path.relative_to(self.source) for path in photos]

    @property
    def _elsewhere(self) -> set[Path]:
        """Folders that may lie within the source and have other files than it."""
        return {real(each) for each in (self.destination, self._masks_folder) if each}

    @property
    def _masks_folder(self) -> Path | None:
        return Path(self.config.masks) if self.config.masks else None

    def _settings(self) -> str:
        """Names what all images depend on besides the photos."""
        finder = faces.load(self.face_models)[1] if self.config.resize == "focal" else ""
        content = {**self.config.to_dict(), "recursive": None, "faces": finder}
        del content["masks"]  # each photo's says itself whether it is another one
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
