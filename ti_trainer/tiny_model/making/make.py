"""Train the embedded model from scratch: `python -m ti_trainer.tiny_model.making.make --out DIR`.

This takes hours. After an interruption, run it again with the same --work to continue. It needs the package open_clip_torch
for CLIP's vocabulary.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from ti_trainer.tiny_model import DEMO
from ti_trainer.tiny_model.making import make_diffusion, make_vae
from ti_trainer.tiny_model.making.scenes import CONCEPTS, concept, write_images

MERGES = 49152 - 256 - 2
TOKEN_STD = 0.0083  # 0.014 in SD 1.5; the default learning rate of 0.005 works best with this value


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write CLIP's byte-pair vocabulary, a copy of which is in the open_clip package, in transformers' format."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        message = (
            "CLIP's vocabulary is part of the package open_clip_torch, which is not installed: pip install open_clip_torch"
        )
        raise RuntimeError(message)
    with gzip.open(Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : MERGES + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    units = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    words = [*units, *(unit + "</w>" for unit in units), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.dumps({word: number for number, word in enumerate(words)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    config = {**special, "model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "add_prefix_space": False, "errors": "replace"}, indent=2)
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def make(work: Path, out: Path, vae_minutes: float, diffusion_minutes: float, decoder_minutes: float, images: int) -> None:
    """Train the parts that are not trained yet and write the model to `out` in diffusers' format, half precision."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(work / "tokenizer")
    vae_file, set_file = work / "vae.pt", work / "latents.pt"
    if not vae_file.exists():
        vae = make_vae.train(work, vae_minutes)
        make_diffusion.whiten(vae)
        torch.save(vae.state_dict(), vae_file)
    vae = make_vae.new_vae()
    vae.load_state_dict(torch.load(vae_file, weights_only=True))
    if not set_file.exists():
        torch.save(make_diffusion.latent_set(vae, tokenizer, images, seed=2), set_file)
    latents, ids = torch.load(set_file, weights_only=True)
    empty = tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids.int()
    text_encoder, unet = make_diffusion.train(work, latents, ids, empty, diffusion_minutes)
    make_diffusion.rescale(text_encoder, TOKEN_STD)
    vae = make_vae.train(work, decoder_minutes, whole=vae)
    save(out, vae, text_encoder, unet, tokenizer)


def save(
    out: Path, vae: AutoencoderKL, text_encoder: torch.nn.Module, unet: torch.nn.Module, tokenizer: CLIPTokenizer
) -> None:
    """Write a Stable Diffusion 1.x model folder in diffusers' format."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_diffusion.new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if out.exists():
        shutil.rmtree(out)
    pipeline.to(torch.float16).save_pretrained(out)
    config = out / "text_encoder" / "config.json"  # libraries that use the precision in the config would mix two dtypes
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    shutil.rmtree(out / "tokenizer")
    make_tokenizer(out / "tokenizer")  # as vocab.json and merges.txt, for older libraries


def make_demo() -> None:
    """Draw the training images of the demo."""
    write_images(DEMO, concept(CONCEPTS[0], 8, seed=36))


def main() -> None:
    """Make the demo images and the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("embedded-work"), help="folder for the training state (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the model; replaced if it exists")
    parser.add_argument("--vae-minutes", type=float, default=22)
    parser.add_argument("--diffusion-minutes", type=float, default=64)
    parser.add_argument("--decoder-minutes", type=float, default=45)
    parser.add_argument("--images", type=int, default=80_000, help="number of captioned latents to train the U-Net on")
    args = parser.parse_args()
    make_demo()
    make(args.work, args.out, args.vae_minutes, args.diffusion_minutes, args.decoder_minutes, args.images)


if __name__ == "__main__":
    main()
