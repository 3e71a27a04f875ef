"""Train the embedded model's text encoder and U-Net together on latents of captioned scenes."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ti_trainer.tiny_model.making.make_vae import SCALING_FACTOR, images
from ti_trainer.tiny_model.making.muon import MuonAndAdam
from ti_trainer.tiny_model.making.scenes import (
    COLOURS,
    POSITIONS,
    PREFIXES,
    SCENERY,
    SHAPES,
    SIZES,
    TEXTURES,
    Thing,
    draw_array,
    random_scene,
    random_thing,
)

NOUNS = 400  # words each of which stands for one thing with fixed arbitrary colours
EMPTY_CAPTIONS = 0.1


def new_text_encoder() -> CLIPTextModel:
    """A small CLIP text encoder with the full vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=64,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """A U-Net like Stable Diffusion 1.x's with two levels, for latents of 8 x 8."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=32,
    )


def new_scheduler() -> DDPMScheduler:
    """Stable Diffusion 1.x's noise schedule."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def nouns(tokenizer: CLIPTokenizer) -> dict[str, Thing]:
    """Words of one token that captions do not use otherwise, and the things that they stand for."""
    words = (token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>"))
    taken = {
        word for text in [*SHAPES, *COLOURS, *TEXTURES, *SIZES, *POSITIONS, *SCENERY, *PREFIXES] for word in text.split()
    }
    fit = sorted(word for word in words if word.isascii() and word.isalpha() and word.islower() and 5 <= len(word) <= 7)
    fit = [word for word in fit if word not in {*taken, "thing", "background"}]
    rng = np.random.default_rng(400)
    return {str(word): random_thing(rng) for word in rng.choice(fit, NOUNS, replace=False)}


@torch.no_grad()
def whiten(vae: AutoencoderKL) -> None:
    """Shift and scale each latent channel to mean 0 and, times the scaling factor, variance 1, as the diffusion expects.

    The change is folded into the convolutions around the latents, so that images stay the same. A channel that the
    autoencoder does not use contains only noise, which is not scaled: its distribution becomes narrow around its mean.
    """
    sample = torch.cat([vae.encode(x).latent_dist.mode() for x in images(1024, np.random.default_rng(7)).split(64)])
    mean, std = sample.mean((0, 2, 3)), sample.std((0, 2, 3))
    gain = 1 / (std * SCALING_FACTOR)
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain[None, :, None, None]
    quant.weight[:4] *= gain[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) * gain
    quant.bias[4:] += 2 * gain.log()
    unused = torch.cat([torch.zeros(4, dtype=torch.bool), std < 0.1])
    quant.weight[unused] = 0
    quant.bias[unused] = 2 * math.log(0.05 / SCALING_FACTOR)


@torch.no_grad()
def rescale(text_encoder: CLIPTextModel, token_std: float) -> None:
    """Scale the token embeddings to this standard deviation without changing outputs, so that usual learning rates work.

    Every layer reads the residual stream through a LayerNorm, which is invariant to scale: everything that is added to the
    stream is scaled by the same factor, and the epsilon of the norms by its square.
    """
    factor = token_std / text_encoder.get_input_embeddings().weight.std()
    added = ("token_embedding", "position_embedding", "out_proj", "fc2")
    for name, parameter in text_encoder.named_parameters():
        if name.split(".")[-2] in added:
            parameter *= factor
    text_encoder.config.layer_norm_eps *= float(factor) ** 2
    for module in text_encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = text_encoder.config.layer_norm_eps


@torch.no_grad()
def latent_set(vae: AutoencoderKL, tokenizer: CLIPTokenizer, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents (count, 4, 8, 8) of scenes, scaled, in half precision, and token ids (count, 77) of their captions."""
    rng, bound = np.random.default_rng(seed), nouns(tokenizer)
    latents, ids = [], []
    for start in range(0, count, 64):
        scenes, captions = zip(*(random_scene(rng, bound) for _ in range(min(64, count - start))), strict=True)
        pixels = torch.from_numpy(np.stack([draw_array(scene) for scene in scenes])).permute(0, 3, 1, 2) * 2 - 1
        latents.append((vae.encode(pixels).latent_dist.mode() * SCALING_FACTOR).half())
        padded = tokenizer(list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        ids.append(padded.input_ids.int())
    return torch.cat(latents), torch.cat(ids)


def train(
    folder: Path, latents: Tensor, ids: Tensor, empty_ids: Tensor, minutes: float, batch_size: int = 64
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Train for a number of minutes, including those before the state in the folder; saves it every two minutes."""
    state_file = folder / "diffusion.state"
    text_encoder = new_text_encoder()
    net = nn.ModuleDict({"text": text_encoder, "unet": new_unet()})
    scheduler = new_scheduler()
    embeddings = text_encoder.get_input_embeddings().weight
    nn.init.normal_(embeddings, std=0.5)
    positions = [p for name, p in text_encoder.named_parameters() if "position_embedding" in name]
    optimizer = MuonAndAdam([net], lr=4e-3, adam_lr=2e-3, tables=[embeddings, *positions])
    average = {k: v.detach().clone() for k, v in net.state_dict().items()}
    step, spent = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, spent = state["average"], state["step"], state["spent"]
    alphas = scheduler.alphas_cumprod
    weight = (5 * (1 - alphas) / alphas).clamp(max=1.0)  # min-SNR, gamma 5
    losses: list[float] = []
    started, last_saved = time.monotonic() - spent, time.monotonic()
    while (spent := time.monotonic() - started) < minutes * 60:
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(latents), (batch_size,), generator=generator)
        empty = torch.rand(batch_size, generator=generator) < EMPTY_CAPTIONS
        clean, tokens = latents[chosen].float(), torch.where(empty[:, None], empty_ids, ids[chosen])
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(1000, (batch_size,), generator=generator)
        prediction = net["unet"](
            scheduler.add_noise(clean, noise, timesteps), timesteps, net["text"](tokens.long())[0]
        ).sample
        loss = ((prediction - noise).square().mean((1, 2, 3)) * weight[timesteps]).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step(spent / (minutes * 60), warm=min(1.0, (step + 1) / 100))
        step += 1
        losses.append(loss.item())
        rate = min(0.998, 1 - 1 / (step / 8 + 1))
        if step % 4 == 0:
            for key, value in net.state_dict().items():
                average[key].lerp_(value, 1 - rate**4) if value.is_floating_point() else average[key].copy_(value)
        if time.monotonic() - last_saved > 120:
            last_saved = time.monotonic()
            save(state_file, net, optimizer, average, step, time.monotonic() - started)
            print(f"diffusion step {step}, {spent / 60:.1f} of {minutes} min, loss {np.mean(losses[-300:]):.4f}", flush=True)
    save(state_file, net, optimizer, average, step, minutes * 60)
    net.load_state_dict(average)
    return net["text"], net["unet"]


def save(path: Path, net: nn.Module, optimizer: MuonAndAdam, average: dict, step: int, spent: float) -> None:
    """Keep the state to go on from."""
    new = path.with_suffix(".new")
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
    torch.save({**state, "step": step, "spent": spent}, new)
    new.replace(path)
