"""Run the WebUI's launch.py, by its own Python and in its folder, with packages newer than it was made for.

Nothing of ours needs what is mended here: its own training does, and a torchvision that was built for another torch.
Besides, open_clip is told of the small text encoders that lie in `open_clip/` of the data folder.
"""

import runpy
import sys
from pathlib import Path

import torch
from torch.utils.data import Sampler


def _init(self: Sampler, data_source: object = None) -> None:
    """As torch 2.1 had it: newer torch has none, and the WebUI's batch sampler passes an argument to it."""


def _declare_operators() -> torch.library.Library | None:
    """A torchvision whose compiled part cannot be loaded (CUDA's, beside a torch for CPUs) is imported without it."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


def _know_small_open_clips() -> None:
    folders = [Path(each.removeprefix("--data-dir=")) / "open_clip" for each in sys.argv if each.startswith("--data-dir=")]
    for folder in folders:
        if folder.is_dir():
            import open_clip

            open_clip.add_model_config(folder)


if "__init__" not in vars(Sampler):
    Sampler.__init__ = _init
operators = _declare_operators()  # gone with the object
_know_small_open_clips()
launch = Path("launch.py").resolve()
sys.path[0] = str(launch.parent)
sys.argv[0] = str(launch)
runpy.run_path(str(launch), run_name="__main__")
