"""Forge's loaded engine in the shape that WebuiModel expects: that of an ldm LatentDiffusion, or an sgm model for SDXL.

It is made of `forge_objects_original`, which has no LoRA. This module does not import Forge's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ti_trainer.embedding import encoder_of_width
from ti_trainer.errors import ConfigError
from ti_trainer.hosts.forge.variants import uses_emphasis
from ti_trainer.hosts.webui.model_spec import SDXL_SIZES
from ti_trainer.hosts.webui.text import Emphasize, Layers, PromptEncoder


def text_engines(engine: Any) -> list[Any]:
    """Forge's engines of the text encoders: one, or CLIP-L's and CLIP-G's of SDXL. Empty for other engines."""
    if not engine.is_sdxl:
        return [engine.text_processing_engine] if hasattr(engine, "text_processing_engine") else []
    names = ("text_processing_engine_l", "text_processing_engine_g")
    return [getattr(engine, name) for name in names if hasattr(engine, name)]


class EngineView(nn.Module):
    """The networks of a loaded SD 1.x, SD 2.x or SDXL; they stay Forge's."""

    image_size = 64  # SD 1.x and SD 2.x with epsilon prediction, in latent pixels

    def __init__(self, engine: Any, loaded_with: Mapping[str, Any]) -> None:
        """`loaded_with`: the parameters that Forge loaded it with. Call it outside of inference mode."""
        super().__init__()
        self.engine, self.loaded_with = engine, loaded_with
        objects = engine.forge_objects_original
        encoders = objects.clip.cond_stage_model
        self.model = nn.Module()
        self.model.diffusion_model = objects.unet.model.diffusion_model
        if engine.is_sdxl:
            self.conditioner = Conditioner(encoders, engine.embedder)
        else:
            self.cond_stage_model = encoders
        self.first_stage_model = objects.vae.first_stage_model
        self.scale_factor = float(self.first_stage_model.scaling_factor)
        self.alphas_cumprod = objects.unet.model.predictor.alphas_cumprod.clone()  # autograd cannot save Forge's own
        self.sd_checkpoint_info = engine.sd_checkpoint_info


class Conditioner(nn.Module):
    """SDXL's text encoders, and its embedders of sizes as sgm has them."""

    def __init__(self, encoders: nn.Module, timestep: nn.Module) -> None:
        """`timestep` embeds numbers (B,) as (B, 256)."""
        super().__init__()
        self.encoders = encoders
        self.embedders = nn.ModuleList(SizeEmbedder(key, timestep) for key in SDXL_SIZES)


class SizeEmbedder(nn.Module):
    """Embeds height and width, or another pair of numbers."""

    def __init__(self, input_key: str, timestep: nn.Module) -> None:
        """`input_key` is sgm's name of the pair."""
        super().__init__()
        self.input_key, self.timestep = input_key, timestep

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, 2) -> (B, 512)."""
        embedded: Tensor = self.timestep(numbers.flatten())  # (2 B, 256)
        return embedded.unflatten(0, numbers.shape).flatten(1)


class TextStage:
    """A text engine in the shape of A1111's wrapper around a text encoder; `emphasis` makes Forge's option for a prompt."""

    def __init__(self, engine: Any, emphasis: Callable[[], Any]) -> None:
        """Nothing of the engine is changed."""
        self._engine, self._emphasis = engine, emphasis
        self.hijack = EmbeddingsView(engine.embeddings)
        self.wrapped = SimpleNamespace(tokenizer=engine.tokenizer)
        self.id_end, self.id_pad = engine.id_end, engine.id_pad
        self.tokenize, self.modules = engine.tokenize, engine.text_encoder.modules
        self.named_modules = engine.text_encoder.named_modules

    def tokenize_line(self, line: str) -> Any:
        """The chunks of a prompt, and the number of its tokens; with the embeddings of `hijack`."""
        engine = copy(self._engine)
        engine.embeddings = self.hijack.embedding_db
        uses_emphasis(engine, self._emphasis())
        return engine.tokenize_line(line)


class EmbeddingsView:
    """A text engine's database of embeddings; `fixes` are the embeddings of the next forward pass."""

    def __init__(self, database: Any) -> None:
        """The table of token embeddings reads `fixes` from this database, also for a copy of this view."""
        self.embedding_db = self._read = database

    @property
    def fixes(self) -> Any:
        """For each chunk its embeddings and where they are."""
        return self._read.fixes

    @fixes.setter
    def fixes(self, fixes: Any) -> None:
        self._read.fixes = fixes


def prompt_encoders(
    engine: Any, device: torch.device, emphasis: Callable[[], Any], emphasize: Emphasize, clip_skip: int
) -> tuple[PromptEncoder, ...]:
    """One for each text encoder. ConfigError if it has fewer layers than `clip_skip`."""
    found = []
    for each in text_engines(engine):
        stage = TextStage(each, emphasis)
        layers = _layers(each, clip_skip)
        width = each.text_encoder.transformer.config.hidden_size
        encoder = each.embedding_key if engine.is_sdxl else encoder_of_width(width)
        found.append(PromptEncoder(encoder, stage, stage, layers, device, emphasize))
    return tuple(found)


def _layers(engine: Any, clip_skip: int) -> Layers:
    """Hidden states and pooled states of an engine's encoder. Forge's clip skip has no effect below the model's own."""
    transformer = engine.text_encoder.transformer
    skip, count = max(clip_skip, engine.minimal_clip_skip), transformer.config.num_hidden_layers
    if not 1 <= skip <= count:
        message = (
            f"Clip skip: found {clip_skip}, expected 1 to {count}, the layers of this model's text encoder. "
            "Lower it at the top of the page."
        )
        raise ConfigError(message, "clip_skip")

    def run(ids: Tensor) -> tuple[Tensor, Tensor | None]:
        outputs = transformer(ids, output_hidden_states=True)
        hidden = outputs.hidden_states[-skip]
        if engine.final_layer_norm:
            hidden = transformer.text_model.final_layer_norm(hidden)
        if not engine.return_pooled:
            return hidden, None
        pooled = outputs.pooler_output
        is_projected = engine.text_projection and engine.embedding_key != "clip_l"
        return hidden, transformer.text_projection(pooled) if is_projected else pooled

    return run
