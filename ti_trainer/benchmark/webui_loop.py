"""A training loop with the cost of the WebUI's own, as a peer for bench, which watches its progress bar.

As in the WebUI v1.10.1, the U-Net's weights accumulate gradients that are not used, gradient checkpointing computes each of
its blocks twice, attention is plain softmax(Q K) V, and weights have torch's default memory format.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # not this folder, whose module names may clash

import torch
from tqdm import tqdm

from ti_trainer import formats
from ti_trainer.data.dataset import Dataset
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import load_dataset
from ti_trainer.data.prompts import Prompter, load_template
from ti_trainer.embedding import Embedding, initial_vectors
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers.attention import plain_attention
from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.training.step import training_loss

WORD = "bench"


@contextmanager
def as_the_webui(model: DiffusersModel) -> Iterator[None]:
    """Set the model up as the WebUI's training does: the text encoder is frozen, the U-Net is not."""
    unet = model.unet
    with model.training(), plain_attention(unet):
        unet.to(memory_format=torch.contiguous_format).requires_grad_(True)
        unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            unet.disable_gradient_checkpointing()
            unet.requires_grad_(False)
            unet.to(memory_format=torch.channels_last)
            for each in unet.parameters():
                each.grad = None


def steps(model: DiffusersModel, dataset: Dataset, batch_size: int, vectors: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A function that does one training step and updates the vectors in place; call it in `as_the_webui`."""
    batches = dataset.batches(batch_size)
    for each in vectors.values():
        each.requires_grad_()
    optimizer = torch.optim.AdamW(vectors.values(), lr=5e-3, weight_decay=0.0)
    scaler = torch.amp.GradScaler(model.device.type, enabled=model.needs_loss_scaling)

    def step() -> None:
        loss = training_loss(model, next(batches).on(model.device), {WORD: vectors}).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)  # of the vectors only: gradients of the weights accumulate
        loss.item()

    return step


def main() -> None:
    """Train with a progress bar named Steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    for flag, kind in (("--model", str), ("--images", Path), ("--out", Path), ("--device", str), ("--precision", str)):
        parser.add_argument(flag, type=kind, required=True)
    for flag in ("--size", "--batch-size", "--steps"):
        parser.add_argument(flag, type=int, required=True)
    parser.add_argument("--init-text", required=True)
    args = parser.parse_args()
    model = load(args.model, args.device, ModelOptions(args.precision))
    prompter = Prompter(WORD, load_template("subject"))
    dataset = load_dataset(args.images, model, Frame((args.size, args.size)), prompter)
    tokens = model.token_embeddings(args.init_text)
    vectors = {encoder: initial_vectors(each, 1).to(model.device) for encoder, each in tokens.items()}
    with as_the_webui(model):
        step = steps(model, dataset, args.batch_size, vectors)
        with tqdm(total=args.steps, desc="Steps") as bar:
            for _ in range(args.steps):
                step()
                bar.update(1)
    learned = {encoder: each.detach().cpu() for encoder, each in vectors.items()}
    formats.write(Embedding(WORD, learned, args.steps), args.out)


if __name__ == "__main__":
    main()
