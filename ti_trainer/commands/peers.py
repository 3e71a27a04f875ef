"""Other trainers, run from their own checkouts as their users run them, to be measured beside ours."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ti_trainer import formats
from ti_trainer.data.pictures import find_images
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.hosts.diffusers import loading

LEARNING_RATE = 5e-3  # ours, so that the losses can be compared
WARM_UP = 10

# Runs a script with the time of each step of its progress bar noted. Some builds of torch have no torchvision; of that the
# script wants a random flip only, which Pillow can do.
DRIVER = """
import json, random, runpy, sys, time, types
import tqdm.auto
times = []
class Timed(tqdm.auto.tqdm):
    def update(self, n=1):
        if self.desc.startswith("Steps"):
            times.append(time.perf_counter())
        return super().update(n)
tqdm.auto.tqdm = Timed
try:
    import torchvision
except ImportError:
    import accelerate, diffusers, transformers  # these look for it, and shall not find ours
    from PIL import ImageOps
    class RandomHorizontalFlip:
        def __init__(self, p):
            self.p = p
        def __call__(self, image):
            return ImageOps.mirror(image) if random.random() < self.p else image
    transforms = types.ModuleType("torchvision.transforms")
    transforms.RandomHorizontalFlip = RandomHorizontalFlip
    torchvision = types.ModuleType("torchvision")
    torchvision.transforms = transforms
    sys.modules.update({"torchvision": torchvision, "torchvision.transforms": transforms})
out, script, sys.argv = sys.argv[1], sys.argv[2], sys.argv[2:]
runpy.run_path(script, run_name="__main__")
json.dump(times, open(out, "w"))
"""


@dataclass(frozen=True)
class PeerResult:
    """What a peer achieved."""

    steps_per_second: float
    embedding: Embedding


@dataclass(frozen=True)
class DiffusersExample:
    """examples/textual_inversion/textual_inversion.py of the diffusers library, in fp32."""

    folder: Path
    name: str = "diffusers"

    def train(self, model: Path, images: Path, size_px: int, batch_size: int, steps: int, init_word: str) -> PeerResult:
        """Train for so many steps and time them, less the first few. The init word must be one token."""
        script = self.folder / "examples" / "textual_inversion" / "textual_inversion.py"
        if not script.is_file():
            message = f"{script} does not exist: --against diffusers=DIR takes a checkout of the diffusers repository."
            raise ConfigError(message)
        missing = [package for package in ("accelerate", "tensorboard") if importlib.util.find_spec(package) is None]
        if missing:
            message = f"The peer needs {' and '.join(missing)}: pip install {' '.join(missing)}"
            raise ConfigError(message)
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            shutil.copytree(model, work / "model")
            wide = loading.load(
                str(model), "cpu", "fp32"
            )  # half precision is for shipping: trained in it, the peer gets NaN
            for part in ("unet", "vae", "text_encoder"):
                getattr(wide, part).save_pretrained(work / "model" / part)
            (work / "images").mkdir()
            for path in find_images(images):
                shutil.copy(path, work / "images")
            self._run(script, work, size_px, batch_size, steps, init_word)
            times = json.loads((work / "times.json").read_text())
            learned = formats.read(work / "out" / "learned_embeds.safetensors")
        return PeerResult((len(times) - 1 - WARM_UP) / (times[-1] - times[WARM_UP]), learned)

    def _run(self, script: Path, work: Path, size_px: int, batch_size: int, steps: int, init_word: str) -> None:
        options = {
            "pretrained_model_name_or_path": work / "model",
            "train_data_dir": work / "images",
            "output_dir": work / "out",
            "placeholder_token": "<bench>",
            "initializer_token": init_word,
            "resolution": size_px,
            "train_batch_size": batch_size,
            "max_train_steps": steps,
            "learning_rate": LEARNING_RATE,
            "save_steps": 10**9,
            "checkpointing_steps": 10**9,
            "seed": 0,
        }
        flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        command = [sys.executable, "-c", DRIVER, str(work / "times.json"), str(script), *flags]
        done = subprocess.run(command, capture_output=True, text=True, cwd=work, check=False)
        if done.returncode:
            message = f"The peer {self.name} failed: {done.stderr.strip()[-2000:]}"
            raise TITrainerError(message)


Peer = DiffusersExample
PEERS = {"diffusers": DiffusersExample}
