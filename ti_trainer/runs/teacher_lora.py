"""The LoRA that an embedding learns from: which file it is, and who may read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import ConfigError
from ti_trainer.files import entered_path
from ti_trainer.formats.lora import read_lora
from ti_trainer.host import Host
from ti_trainer.lora import Lora

ENDING = ".safetensors"


def lora_names(host: Host) -> Sequence[str]:
    """The LoRAs in the host's own folders, by the names that prompts have them with."""
    return sorted({each.stem for folder in host.lora_dirs for each in folder.rglob(f"*{ENDING}")}, key=str.casefold)


def lora_file(host: Host, config: TrainConfig) -> Path | None:
    """The file that the options name, None if they name none; ConfigError if there is none or it may not be read.

    A name is looked for in the host's folders. Visitors of a public page may give no paths.
    """
    entered = config.teacher_lora
    if not entered:
        return None
    stem = entered.strip().removesuffix(ENDING)
    for folder in host.lora_dirs:
        if found := next((each for each in sorted(folder.rglob(f"*{ENDING}")) if each.stem == stem), None):
            return found
    if host.is_public:
        where = ", ".join(map(str, host.lora_dirs)) or "this page has no folder for them"
        message = f"LoRA (teacher_lora): found {entered[:80]!r}, expected the name of a LoRA of this server ({where})."
        raise ConfigError(message, "teacher_lora")
    path = entered_path(entered)
    host.check_folder(path.resolve().parent)
    if not path.is_file():
        what = "which is a folder" if path.is_dir() else "which does not exist"
        message = f"LoRA (teacher_lora): found {path}, {what}; expected a {ENDING} file."
        raise ConfigError(message, "teacher_lora")
    return path


def lora_of(host: Host, config: TrainConfig) -> Lora | None:
    """The LoRA that the options name, None if they name none; ConfigError if it cannot be used."""
    path = lora_file(host, config)
    return None if path is None else read_lora(path)
