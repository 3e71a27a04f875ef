"""Images that the model generates for a run which learns from prompts instead of images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ti_trainer.data.caption_files import GENERATED
from ti_trainer.files import atomic
from ti_trainer.host import GenerationRequest, Host
from ti_trainer.model import DiffusionModel

IMAGES, STEPS, CFG_SCALE = 4, 8, 3.0  # on the embedded model, 16 images teach no better


@dataclass(frozen=True)
class GeneratedImages:
    """`count` images of each prompt, in `folder`."""

    folder: Path
    prompts: tuple[str, ...]
    count: int = IMAGES

    @classmethod
    def of(
        cls, host: Host, name: str, prompts: Sequence[str], count: int = IMAGES, lora: tuple[object, ...] = ()
    ) -> GeneratedImages:
        """Images of these prompts for an embedding. Other prompts, another model or another LoRA get another folder.

        `lora` tells LoRAs apart.
        """
        facts = (host.describe(), tuple(prompts), STEPS, CFG_SCALE, *lora)
        digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:8]
        return cls(host.log_dir.resolve() / GENERATED / f"{name}-{digest}", tuple(prompts), count)

    def generate(self, host: Host, model: DiffusionModel, progress: Callable[[int, int], None]) -> None:
        """Generate the images that are missing; to be called while the host's lock is held, and within `with_lora`."""
        wanted = [
            (self.folder / f"{number + 1:02d}-{seed}.png", GenerationRequest(prompt, "", STEPS, CFG_SCALE, seed))
            for number, prompt in enumerate(self.prompts)
            for seed in range(1, self.count + 1)
        ]
        missing = [(path, request) for path, request in wanted if not path.exists()]
        for done, (path, request) in enumerate(missing):
            progress(done, len(missing))
            image = host.generate(model, request, {})
            with atomic(path) as temporary:
                image.save(temporary, "PNG")
        progress(len(missing), len(missing))
