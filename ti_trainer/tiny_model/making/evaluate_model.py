"""Evaluate the embedded model: do generated images show what their prompts say?

Run `python -m ti_trainer.tiny_model.making.evaluate_model`. A classifier, which is trained on drawn scenes only, answers.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.hosts.diffusers import loading, sampling
from ti_trainer.tiny_model.making.make_vae import psnr
from ti_trainer.tiny_model.making.scenes import COLOURS, SCENERY, SHAPES, TEXTURES, Scene, Thing, draw_array, place

BACKGROUNDS = [*SCENERY, *(f"on a {name} background" for name in COLOURS)]
SIZES = {"shape": len(SHAPES), "texture": len(TEXTURES), "background": len(BACKGROUNDS), "colours": len(COLOURS)}


def labelled_scene(rng: np.random.Generator) -> tuple[Scene, str, dict[str, int | list[int]]]:
    """A scene in named colours, a prompt that describes it completely, and the same description as class numbers."""
    shape, texture = int(rng.integers(len(SHAPES))), int(rng.integers(len(TEXTURES)))
    colours = rng.choice(len(COLOURS), 2, replace=False).tolist()
    names = [list(COLOURS)[index] for index in colours]
    kind = TEXTURES[texture]
    thing = Thing(list(SHAPES)[shape], COLOURS[names[0]], kind, COLOURS[names[1]])
    scene, size, where = place(thing, rng)
    said = [names[0]] if kind == "plain" else [names[0], "and", names[1], kind]
    prompt = " ".join(word for word in ("a picture of a", size, *said, thing.shape, where) if word)
    background = next(index for index, words in enumerate(BACKGROUNDS) if where.endswith(words))
    seen = colours[:1] if kind == "plain" else colours
    return scene, prompt, {"shape": shape, "texture": texture, "background": background, "colours": sorted(seen)}


class Classifier(nn.Module):
    """A small convolutional classifier of (B, 3, 64, 64) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 128), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, size) for name, size in SIZES.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits by attribute."""
        hidden = self.body(pixels)
        return {name: head(hidden) for name, head in self.heads.items()}


def train_classifier(steps: int, batch_size: int = 64) -> Classifier:
    """Train on drawn scenes with some blur and noise, so that small defects of generated images do not matter."""
    classifier = Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rng = np.random.default_rng((77, step))
        scenes, _, labels = zip(*(labelled_scene(rng) for _ in range(batch_size)), strict=True)
        pixels = torch.from_numpy(np.stack([draw_array(scene) for scene in scenes])).permute(0, 3, 1, 2) * 2 - 1
        if step % 2:
            pixels = nn.functional.avg_pool2d(nn.functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
        answers = classifier(pixels + 0.05 * torch.randn(pixels.shape))
        shape, texture, background = (
            cross_entropy(answers[q], torch.tensor([label[q] for label in labels]))
            for q in ("shape", "texture", "background")
        )
        loss = shape + texture + background
        present = torch.stack(
            [nn.functional.one_hot(torch.tensor(label["colours"]), len(COLOURS)).amax(0) for label in labels]
        )
        loss = loss + 4 * binary_cross_entropy_with_logits(answers["colours"], present.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


@torch.no_grad()
def score(classifier: Classifier, pixels: Tensor, labels: list[dict[str, Any]]) -> dict[str, float]:
    """The accuracy on images (B, 3, 64, 64) by attribute."""
    answers = classifier(pixels)
    right = {
        q: [int(a.argmax()) == label[q] for a, label in zip(answers[q], labels, strict=True)]
        for q in SIZES
        if q != "colours"
    }
    right["colours"] = [
        sorted(a.topk(len(label["colours"])).indices.tolist()) == label["colours"]
        for a, label in zip(answers["colours"], labels, strict=True)
    ]
    return {question: round(sum(each) / len(each), 3) for question, each in right.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Print, as JSON, the classifier's accuracy on drawn, reconstructed and generated images, and the VAE's PSNR."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--cfg-scale", type=float, default=4.0)
    parser.add_argument("--classifier", type=Path, help="file of the trained classifier; written if it does not exist")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of the classifier")
    args = parser.parse_args(argv)
    if args.classifier and args.classifier.exists():
        classifier = Classifier().eval()
        classifier.load_state_dict(torch.load(args.classifier, weights_only=True))
    else:
        classifier = train_classifier(args.steps)
        if args.classifier:
            torch.save(classifier.state_dict(), args.classifier)
    model = loading.load(args.model, "cpu", ModelOptions("fp32"))
    rng = np.random.default_rng(5)
    scenes, prompts, labels = zip(*(labelled_scene(rng) for _ in range(args.prompts)), strict=True)
    drawn = torch.from_numpy(np.stack([draw_array(scene) for scene in scenes])).permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        again = torch.cat([model.decode(model.encode_images(x)[0]).clamp(-1, 1) for x in drawn.split(32)])
    images = [
        sampling.generate(model, GenerationRequest(prompt, cfg_scale=args.cfg_scale, seed=n), {})
        for n, prompt in enumerate(prompts)
    ]
    made = torch.from_numpy(np.stack([np.asarray(image, np.float32) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1
    everything = {"drawings": drawn, "reconstructions": again, "generated": made}
    scores = {name: score(classifier, pixels, list(labels)) for name, pixels in everything.items()}
    spread = math.sqrt(0.25 / args.prompts)
    print(
        json.dumps(
            {
                **scores,
                "prompts": args.prompts,
                "standard_error_at_most": round(spread, 3),
                "psnr_db": round(psnr(model.vae), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
