"""Models as the WebUI takes them: a checkpoint, its .yaml and a folder with the text encoder's shape and vocabulary."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(each) for each in (TESTS.parent, TESTS / "hosts" / "diffusers") if str(each) not in sys.path]

import ldm_export  # noqa: E402 - of the neighbouring tests

from ti_trainer import embedded  # noqa: E402
from ti_trainer.hosts.diffusers.model import DiffusersModel  # noqa: E402


def export(model: DiffusersModel, webui: Path, checkpoint: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the checkpoint, its .yaml and `<checkpoint>-clip/`; the .yaml completes that of SD 1.x in the WebUI."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    weights = {key: value.to(dtype).contiguous() for key, value in ldm_export.checkpoint(model).items()}
    save_file(weights, checkpoint)
    clip = checkpoint.with_name(f"{checkpoint.stem}-clip")  # instead of the name of a model to be downloaded
    shutil.copytree(embedded.MODEL / "tokenizer", clip, dirs_exist_ok=True)
    model.text_encoder.config.save_pretrained(clip)
    base = yaml.safe_load((webui / "configs" / "v1-inference.yaml").read_text(encoding="utf-8"))
    ours = ldm_export.configuration(model, clip)
    checkpoint.with_suffix(".yaml").write_text(yaml.safe_dump(_merged(base, ours)), encoding="utf-8")


def _merged(base: Any, ours: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(ours, dict):
        return ours
    return {key: _merged(base.get(key), ours[key]) if key in ours else base[key] for key in base | ours}
