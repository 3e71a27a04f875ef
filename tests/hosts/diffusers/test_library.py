"""diffusers and transformers are imported in part, and nothing in this process notices."""

from __future__ import annotations

import subprocess
import sys

FIRST = """
import sys, torch
before = set(sys.modules)
from ti_trainer.hosts.diffusers import library
loaded = set(sys.modules) - before
assert not {"torch._dynamo", "scipy", "bitsandbytes"} & loaded, "not needed"
assert not [name for name in loaded if name.startswith("torch.")], "a module of torch's own would hold a stand-in"
assert "diffusers.models.unets.unet_2d" not in loaded
stand_ins = [name for name, each in sys.modules.items() if type(each).__name__ == "_StandIn"]
assert not stand_ins, stand_ins
"""
THEN = """
import diffusers, scipy.stats, torch.distributed.tensor
from diffusers.models.unets import UNet2DModel
from diffusers.hooks import apply_group_offloading
assert diffusers.models.unets.UNet2DConditionModel is library.UNet2DConditionModel
assert diffusers.StableDiffusionPipeline and diffusers.AutoencoderKL is library.AutoencoderKL
library.prepare_compiling()
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2, 2]
"""


def test_only_what_is_used_is_imported_and_the_rest_can_be_imported_later() -> None:
    """In a process of its own: here, other tests have imported them in full."""
    done = subprocess.run([sys.executable, "-c", FIRST + THEN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
