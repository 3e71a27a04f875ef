"""Datasets of several folders, each with repeats, weight, captions and masks; reads kohya's dataset_config files.

The caller checks which folders may be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ti_trainer.config.training import options
from ti_trainer.data.kohya_folders import about_other_names, repeat_folders
from ti_trainer.data.listing import list_folder
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.files import entered_path, write_bytes
from ti_trainer.wording import pip_install

ENDINGS = (".toml", ".json")
KEYS = {  # our names -> kohya's
    "folder": "image_dir",
    "repeats": "num_repeats",
    "weight": "loss_weight",  # within custom_attributes, where kohya's own check lets other tools' keys through
    "caption_extension": "caption_extension",
    "class_tokens": "class_tokens",
    "caption_prefix": "caption_prefix",
    "caption_suffix": "caption_suffix",
    "masks": "conditioning_data_dir",
    "is_reg": "is_reg",
}
INHERITED = {"num_repeats", "caption_extension", "class_tokens", "caption_prefix", "caption_suffix", "custom_attributes"}
OWN = {"image_dir", "conditioning_data_dir", "is_reg"}  # of a subset alone
INSTEAD = {  # what options of ours say for the whole dataset
    "resolution": ("width", "height"),
    "batch_size": ("batch_size",),
    "enable_bucket": ("buckets",),
    **dict.fromkeys(("bucket_reso_steps", "bucket_no_upscale", "min_bucket_reso", "max_bucket_reso"), ("buckets",)),
    "shuffle_caption": ("shuffle_tags",),
    "caption_tag_dropout_rate": ("tag_dropout",),
    "alpha_mask": ("use_alpha_weight",),
    "prior_loss_weight": ("prior_loss_weight",),
}
MOST_REPEATS, MOST_WEIGHT = 10_000, 1000


@dataclass(frozen=True)
class Subset:
    """A folder of images and how they are fed; DatasetError if that cannot be.

    `weight` multiplies the loss of its images. `class_tokens` is the caption of images without a caption file. `masks` is
    a folder with a grey image of the same stem for each image: what is brighter counts more. `is_reg`: images of the
    class that the thing belongs to, not of the thing.
    """

    folder: Path
    repeats: int = 1
    weight: float = 1.0
    caption_extension: str = ".txt"
    class_tokens: str = ""
    caption_prefix: str = ""
    caption_suffix: str = ""
    masks: Path | None = None
    is_reg: bool = False

    def __post_init__(self) -> None:
        """Check each field."""
        self._check("repeats", f"a whole number from 1 to {MOST_REPEATS}", _whole(self.repeats, 1, MOST_REPEATS))
        number = type(self.weight) in (int, float) and 0 < self.weight <= MOST_WEIGHT
        self._check("weight", f"a number above 0, and at most {MOST_WEIGHT}", number)
        for name in ("caption_extension", "class_tokens", "caption_prefix", "caption_suffix"):
            self._check(name, "a text", isinstance(getattr(self, name), str))
        ending = bool(re.fullmatch(r"[^/\\\0]*\.\w+", self.caption_extension))
        self._check("caption_extension", "the end of a file's name, such as '.txt'", ending)
        self._check("is_reg", "true or false", isinstance(self.is_reg, bool))
        self._check("masks", "another folder than that of the images", self.masks != self.folder)

    def _check(self, name: str, expected: str, right: bool) -> None:
        if not right:
            found = getattr(self, name)
            message = f"{KEYS[name]}: found {str(found) if isinstance(found, Path) else found!r}, expected {expected}."
            raise DatasetError(message)

    def to_dict(self) -> dict[str, Any]:
        """For the settings file of a run: what a dataset file says of it."""
        named = {
            KEYS[name]: getattr(self, name) for name in KEYS if getattr(self, name) != getattr(Subset(self.folder), name)
        }
        named = {"image_dir": self.folder, **named}
        return {key: str(value) if isinstance(value, Path) else value for key, value in named.items()}

    def captioned(self, text: str | None) -> str | None:
        """The caption of one of its images with prefix and suffix; None if there is none."""
        parts = [part for part in (self.caption_prefix, text, self.caption_suffix) if part]
        return " ".join(parts) if parts or text is not None else None


def read_subsets(path: Path, warn: Callable[[str], None] = lambda message: None) -> tuple[Subset, ...]:
    """What a dataset consists of: a folder is one subset; a .toml or .json file lists some as kohya's dataset_config does.

    A folder whose images lie in subfolders such as "10_sks star" has these as subsets. Relative folders start at the
    file's. A caption file ends with .txt unless caption_extension says otherwise; subsets of all [[datasets]] make up one
    dataset. `warn` is called with the keys that are not used. DatasetError if it cannot be read.
    Source: https://github.com/kohya-ss/sd-scripts/blob/main/docs/config_README-en.md
    """
    if path.is_dir():
        listing = list_folder(path)
        folders = repeat_folders(listing, warn)
        if not folders and (reasons := about_other_names(listing)):
            message = f"There are no images in {path} itself. {' '.join(reasons)}"
            raise DatasetError(message)
        return tuple(Subset(each.path, each.repeats, class_tokens=each.class_tokens) for each in folders) or (Subset(path),)
    if path.suffix.lower() not in ENDINGS:
        return (Subset(path),)
    content = _table(path, "the whole file", _parsed(path))
    general = _table(path, "general", content.get("general", {}))
    found: list[Subset] = []
    passed_over = {key: value for key, value in content.items() if key not in ("general", "datasets")}
    passed_over |= _foreign(general, INHERITED)
    number = 0
    for dataset in _tables(path, "datasets", content.get("datasets")):
        passed_over |= _foreign(dataset, INHERITED | {"subsets"})
        for entry in _tables(path, "datasets.subsets", dataset.get("subsets")):
            number += 1
            passed_over |= _foreign(entry, INHERITED | OWN)
            if (subset := _subset(path, number, (entry, dataset, general), warn)) is not None:
                found.append(subset)
    if not found:
        message = f"{path} lists no folder: found no [[datasets.subsets]] with num_repeats of at least 1, expected some."
        raise DatasetError(message)
    for message in _about(path, passed_over):
        warn(message)
    return tuple(found)


def checked_subsets(
    path: Path, check: Callable[[Path], None], warn: Callable[[str], None] = lambda message: None
) -> tuple[Subset, ...]:
    """`read_subsets`, once `check`, which raises if it may not be read, has passed each folder of images and of masks.

    The path itself is checked by the caller, before.
    """
    subsets = read_subsets(path, warn)
    for each in subsets:
        check(each.folder)
        if each.masks is not None:
            check(each.masks)
    return subsets


def write_subsets(path: Path, subsets: Sequence[Subset]) -> None:
    """Write them as a TOML file that `read_subsets` reads, and kohya's trainers, unless a subset with masks has more."""
    lines = ["# A dataset of TI Trainer, in the format of kohya's dataset_config."]
    # Kohya reads masks only where all subsets of a [[datasets]] have some.
    for _, group in groupby(subsets, key=lambda each: each.masks is not None):
        lines += ["", "[[datasets]]"]
        for each in group:
            lines += ["", "[[datasets.subsets]]", *_lines(each)]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def _lines(subset: Subset) -> Iterator[str]:
    plain = Subset(subset.folder)
    yield f"image_dir = {_quoted(str(subset.folder.absolute()))}"
    yield f"caption_extension = {_quoted(subset.caption_extension)}"  # kohya's default is another
    for name in ("repeats", "class_tokens", "caption_prefix", "caption_suffix", "is_reg"):
        if (value := getattr(subset, name)) != getattr(plain, name):
            yield f"{KEYS[name]} = {_quoted(value)}"
    if subset.masks is not None:
        yield f"{KEYS['masks']} = {_quoted(str(subset.masks.absolute()))}"
    if subset.weight != plain.weight:
        yield f"custom_attributes = {{ {KEYS['weight']} = {float(subset.weight)!r} }}"


def _quoted(value: str | int) -> str:
    """As in JSON, whose texts, numbers and truths are TOML's as well, but for one control character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _subset(path: Path, number: int, levels: Sequence[Mapping[str, Any]], warn: Callable[[str], None]) -> Subset | None:
    """One of them, what it does not say itself taken from its dataset or from [general]; None if it is switched off."""
    values = {key: next((level[key] for level in levels if level.get(key) is not None), None) for key in INHERITED}
    entry, where = levels[0], f"{path}, subset {number}"
    if type(values["num_repeats"]) is int and values["num_repeats"] < 1:
        warn(f"{path.name}: subset {number} is left out, since its num_repeats is {values['num_repeats']}.")
        return None
    attributes = _table(path, f"custom_attributes of subset {number}", values.pop("custom_attributes") or {})
    values |= {"is_reg": entry.get("is_reg"), "loss_weight": attributes.get("loss_weight")}
    fields: dict[str, Any] = {name: values[key] for name, key in KEYS.items() if values.get(key) is not None}
    folder, masks = (_folder(path, where, KEYS[name], entry.get(KEYS[name])) for name in ("folder", "masks"))
    if folder is None:
        message = f"{where}: found no image_dir, expected the folder with its images."
        raise DatasetError(message)
    try:
        return Subset(folder, masks=masks, **fields)
    except DatasetError as error:
        message = f"{where}: {error}"
        raise DatasetError(message) from error


def _folder(path: Path, where: str, key: str, value: Any) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        message = f"{where}: {key}: found {value!r}, expected the path of a folder."
        raise DatasetError(message)
    if re.search(r"[\x00-\x1f]", value):
        message = f"{where}: {key}: found {value!r}. {_escapes(path, path.read_text(encoding='utf-8-sig'))}"
        raise DatasetError(message)
    return path.absolute().parent / entered_path(value)


def _parsed(path: Path) -> Any:
    """The content of the file."""
    if not path.is_file():
        message = f"The dataset {path} does not exist: name a folder with images, or a .toml file that lists folders."
        raise DatasetError(message)
    text = ""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return json.loads(text) if path.suffix.lower() == ".json" else _toml().loads(text)
    except (OSError, ValueError, RecursionError) as error:
        cause = _escapes(path, text)
        expected = cause or "expected a dataset as kohya's dataset_config has it, in TOML or JSON."
        message = f"{path} cannot be read ({error}): {expected}"
        raise DatasetError(message) from error


def _escapes(path: Path, text: str) -> str:
    r"""What is wrong with a Windows path such as "C:\Users\me", if the file has one; "" if not."""
    quoted = re.findall(r'"([^"\n]*)"', text)
    found = next((each for each in quoted if "\\" in each.replace("\\\\", "")), None)
    if found is None:
        return ""
    single = "" if path.suffix.lower() == ".json" else f", or single quotes: '{found}'"
    slashes = found.replace("\\", "/")
    return f'a backslash in double quotes begins an escape. Write slashes: "{slashes}"{single}.'


def _toml() -> Any:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib
        except ImportError as error:
            message = f"Reading .toml files needs the package tomli on Python 3.10: {pip_install('tomli')}"
            raise ConfigError(message) from error
    return tomllib


def _table(path: Path, where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        message = f"{path}, {where}: found {value!r}, expected a table of keys and values."
        raise DatasetError(message)
    return value


def _tables(path: Path, where: str, value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not value:
        message = f"{path}: found no [[{where}]], expected at least one such table, with image_dir in [[datasets.subsets]]."
        raise DatasetError(message)
    return [_table(path, where, each) for each in value]


def _foreign(table: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Keys that are not obeyed; what is switched off or empty is not missed."""
    return {key: value for key, value in table.items() if key not in known and value}


def _about(path: Path, passed_over: Mapping[str, Any]) -> Iterator[str]:
    """What to say of keys that are not obeyed."""
    labels = {option.name: f"{option.label.rstrip('.')}" for option in options()}
    instead = [f"{key}: {', '.join(labels[name] for name in INSTEAD[key])}" for key in passed_over if key in INSTEAD]
    if instead:
        yield f"Keys of {path.name} that are not used, because they are options of the run here: {'; '.join(instead)}."
    others = [key for key in passed_over if key not in INSTEAD]
    if others:
        hint = " Put loss_weight into custom_attributes of its subset." if "loss_weight" in others else ""
        yield f"Keys of {path.name} that are not used: {', '.join(others)}.{hint}"


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high
