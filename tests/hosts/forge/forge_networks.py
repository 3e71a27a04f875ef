"""Stand-ins for Forge's networks and engines, written by us to behave like them; `check_in_forge.py` compares with the real.

Weights are inference tensors, LoRAs stay merged into them, transformer blocks add in place, and a U-Net's calls share their
options unless they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ti_trainer import tiny_model

WIDTH, WIDTH_G, CHUNK, CPU = 32, 64, 75, torch.device("cpu")
SHARED_OPTIONS: dict[str, Any] = {}  # Forge's default argument


class Attention(nn.Module):
    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.heads = 4
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = nn.Linear(context, width, bias=False), nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(
        self, x: Tensor, context: Tensor | None = None, value: Any = None, transformer_options: Any = None
    ) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = Attention(width, width), Attention(width, context)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.ff = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        return self._forward(x, context, transformer_options)

    def _forward(self, x: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        x += self.attn1(self.norm1(x))
        x += self.attn2(self.norm2(x), context)
        x.add_(self.ff(self.norm3(x)))  # as ersatzForge
        return x


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    exponents = torch.arange(dim // 2) / (dim // 2)
    angles = timesteps[:, None].float() * torch.exp(-np.log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], 1)


class Timestep(nn.Module):
    def forward(self, numbers: Tensor) -> Tensor:
        return timestep_embedding(numbers, 16)


class Unet(nn.Module):
    def __init__(self, context: int, vector: int = 0, in_channels: int = 4) -> None:
        super().__init__()
        self.in_channels, self.num_classes = in_channels, "sequential" if vector else None
        self.storage_dtype: Any = torch.float32
        self.computation_dtype = torch.float32
        self.first, self.last = nn.Conv2d(in_channels, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 4, 3, padding=1)
        self.time, self.label = nn.Linear(WIDTH, WIDTH), nn.Linear(vector, WIDTH) if vector else None
        self.blocks = nn.ModuleList(Block(WIDTH, context) for _ in range(2))

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Any = None, y: Any = None, transformer_options: Any = SHARED_OPTIONS
    ) -> Tensor:
        transformer_options["calls"] = transformer_options.get("calls", 0) + 1
        assert transformer_options["calls"] == 1, "options of another call"
        embedded = self.time(timestep_embedding(timesteps, WIDTH).to(x.dtype))
        if self.label is not None:
            embedded = embedded + self.label(y)
        h = (self.first(x) + embedded[:, :, None, None]).flatten(2).transpose(1, 2)
        for block in self.blocks:
            h = block(h, context, transformer_options)
        return self.last(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class Vae(AutoencoderKL):
    scaling_factor = 0.18215

    def decode(self, latents: Tensor) -> Tensor:  # type: ignore[override]
        return self.decoder(self.post_quant_conv(latents))


class Predictor(nn.Module):
    def __init__(self, prediction_type: str = "epsilon") -> None:
        super().__init__()
        self.prediction_type = prediction_type
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.register_buffer("alphas_cumprod", (1 - betas).cumprod(0).float())
        self.register_buffer("sigmas", ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt())
        self.register_buffer("log_sigmas", self.sigmas.log())


class TokenTable(nn.Module):
    def __init__(self, wrapped: nn.Embedding, embeddings: Any, key: str) -> None:
        super().__init__()
        self.wrapped, self.embeddings, self.key, self.weight = wrapped, embeddings, key, wrapped.weight

    def forward(self, ids: Tensor) -> Tensor:
        fixes, self.embeddings.fixes = self.embeddings.fixes, None
        rows = []
        for row, places in zip(self.wrapped(ids), fixes or [()] * len(ids), strict=True):
            for offset, embedding in places:
                vectors = embedding.vec[self.key] if isinstance(embedding.vec, dict) else embedding.vec
                row = torch.cat([row[: offset + 1], vectors.to(row), row[offset + 1 + len(vectors) :]])
            rows.append(row)
        return torch.stack(rows)


class Database:
    """Reads `*.txt`: files that hold a number, which stand for embeddings of one vector."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self.tokenizer, self.folder, self.fixes = tokenizer, folder, None
        self.ids_lookup: dict[int, list[Any]] = {}
        self.word_embeddings: dict[str, Any] = {}

    def load_textual_inversion_embeddings(self) -> None:
        self.word_embeddings.clear()
        for file in self.folder.glob("*.txt"):
            try:
                number = getattr(torch, "load")(str(file))  # noqa: B009
            except ValueError:
                continue
            self.word_embeddings[file.stem] = SimpleNamespace(vec=number, filename=str(file))


class Emphasis:
    name = "Original"
    tokens: Any
    multipliers: Any
    z: Any

    def after_transformers(self) -> None:
        mean = self.z.mean()
        self.z = self.z * self.multipliers[..., None]
        self.z = self.z * (mean / self.z.mean())


class NeoEmphasis(Emphasis):
    def __call__(self, z: Tensor, multipliers: Tensor) -> Tensor:
        self.z, self.multipliers = z, multipliers
        self.after_transformers()
        return self.z


class TextEngine:
    def __init__(self, encoder: Any, key: str, folder: Path, *, sdxl: bool = False) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(tiny_model.MODEL / "tokenizer")
        self.embeddings, self.embedding_key = Database(self.tokenizer, folder), key
        self.embeddings.load_textual_inversion_embeddings()
        self.text_encoder, self.emphasis = encoder, Emphasis()
        self.text_projection = self.return_pooled = key == "clip_g"
        self.minimal_clip_skip, self.clip_skip, self.final_layer_norm = (2, 2, False) if sdxl else (1, 1, True)
        self.id_start, self.id_end, self.id_pad = 49406, 49407, 0 if key == "clip_g" else 49407
        part = encoder.transformer.text_model.embeddings
        part.token_embedding = TokenTable(part.token_embedding, self.embeddings, key)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), truncation=False, add_special_tokens=False)["input_ids"]

    def tokenize_line(self, line: str) -> tuple[list[Any], int]:
        chunk = SimpleNamespace(tokens=[], multipliers=[], fixes=[])
        weighted = self.emphasis.name == "Original"
        for part in line.split("|"):
            text, weight = (part[:-2], 1.5) if weighted and part.endswith("++") else (part, 1.0)
            ids, position = self.tokenize([text])[0], 0
            while position < len(ids):
                key, embedding = self._at(ids, position)
                if embedding:
                    chunk.fixes.append((len(chunk.tokens), embedding))
                count = embedding.vectors if embedding else 1
                chunk.tokens += [0] * count if embedding else [ids[position]]
                chunk.multipliers += [weight] * count
                position += len(key)
        fill = CHUNK - len(chunk.tokens)
        chunk.tokens = [self.id_start, *chunk.tokens, *[self.id_end] * (fill + 1)]
        chunk.multipliers = [1.0, *chunk.multipliers, *[1.0] * (fill + 1)]
        return [chunk], 1

    def __call__(self, text: str) -> Any:
        """By Forge's own way: hidden states, and pooled ones of CLIP-G."""
        (chunk,), _ = self.tokenize_line(text)
        ids = torch.tensor([chunk.tokens])
        if self.id_end != self.id_pad:
            ids[0, chunk.tokens.index(self.id_end) + 1 :] = self.id_pad
        self.embeddings.fixes = [chunk.fixes]
        outputs = self.text_encoder.transformer(ids, output_hidden_states=True)
        z = outputs.hidden_states[-max(self.clip_skip, self.minimal_clip_skip)]
        if self.final_layer_norm:
            z = self.text_encoder.transformer.text_model.final_layer_norm(z)
        emphasis = Emphasis()
        emphasis.multipliers, emphasis.z = torch.tensor([chunk.multipliers]), z
        emphasis.after_transformers()
        if not self.return_pooled:
            return emphasis.z
        return emphasis.z, self.text_encoder.transformer.text_projection(outputs.pooler_output)

    def _at(self, ids: list[int], position: int) -> tuple[list[int], Any]:
        for key, embedding in self.embeddings.ids_lookup.get(ids[position], ()):
            if ids[position : position + len(key)] == key:
                return key, embedding
        return [ids[position]], None


class NeoTextEngine(TextEngine):
    """The newest Neo's: it reads its setting for emphasis itself."""

    @property
    def emphasis(self) -> NeoEmphasis:
        return NeoEmphasis()

    @emphasis.setter
    def emphasis(self, value: Any) -> None:
        if type(value) is not Emphasis:  # that of the constructor above
            raise AttributeError


class Patcher:
    """A network of the memory manager; `lora` is added to its first weight when it is loaded."""

    load_device = offload_device = CPU

    def __init__(self, model: nn.Module, lora: float = 0.0) -> None:
        self.model, self.lora = model, lora

    def unload(self) -> None:
        assert torch.is_inference_mode_enabled(), "weights that are moved outside of inference mode become unusable"

    def refresh_loras(self) -> None:
        merged = getattr(self.model, "merged", 0.0)
        if merged != self.lora:
            weight = next(self.model.parameters())
            with torch.inference_mode():  # what a LoRA has changed is an inference tensor
                new = nn.Parameter(weight + self.lora - merged, requires_grad=False)
            for module in self.model.modules():
                for name, each in module._parameters.items():
                    if each is weight:
                        module._parameters[name] = new
            self.model.merged = self.lora


@torch.inference_mode()
def make_engine(kind: str, folder: Path, *, in_channels: int = 4, text_engine: type[TextEngine] = TextEngine) -> Any:
    """A loaded engine of a family (SD 1.x, SDXL), always the same, as Forge's loader leaves it."""
    torch.manual_seed(2)
    sdxl = kind == "SDXL"
    vae = Vae(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2
    )
    unet = Unet(WIDTH + WIDTH_G if sdxl else WIDTH, WIDTH_G + 6 * 16 if sdxl else 0, in_channels)
    kmodel = nn.Module()
    kmodel.diffusion_model, kmodel.predictor = unet, Predictor()
    encoders = nn.Module()
    encoders.clip_l = _encoder(WIDTH)
    if sdxl:
        encoders.clip_g = _encoder(WIDTH_G)
    vae_patcher = SimpleNamespace(first_stage_model=vae.eval(), patcher=Patcher(vae))
    objects = SimpleNamespace(
        unet=Patcher(kmodel), vae=vae_patcher, clip=SimpleNamespace(cond_stage_model=encoders, patcher=Patcher(encoders))
    )
    engine = SimpleNamespace(
        forge_objects=objects, forge_objects_original=objects, is_sd1=not sdxl, is_sd2=False, is_sdxl=sdxl,
        model_config=SimpleNamespace(ztsnr=False), sd_checkpoint_info=checkpoint("tiny"), embedder=Timestep(),
    )  # fmt: skip
    if sdxl:
        engine.text_processing_engine_l = text_engine(encoders.clip_l, "clip_l", folder, sdxl=True)
        engine.text_processing_engine_g = text_engine(encoders.clip_g, "clip_g", folder, sdxl=True)
    else:
        engine.text_processing_engine = text_engine(encoders.clip_l, "clip_l", folder)
    return engine


def checkpoint(name: str) -> Any:
    return SimpleNamespace(model_name=name, title=f"{name}.safetensors", filename=f"/nowhere/{name}", shorthash="0123456789")


def _encoder(width: int) -> nn.Module:
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, eos_token_id=2
    )
    encoder, transformer = nn.Module(), CLIPTextModel(config)
    if not hasattr(transformer, "text_model"):  # transformers 5 has its parts in the model itself
        object.__setattr__(transformer, "text_model", transformer)
    nn.init.normal_(transformer.text_model.final_layer_norm.bias)  # emphasis divides by a mean, which else is next to 0
    transformer.text_projection = nn.Linear(width, width, bias=False)
    encoder.transformer = transformer.half()
    part = transformer.text_model.embeddings
    part.token_embedding.float(), part.position_embedding.float()
    encoder.transformer.float()
    return encoder
