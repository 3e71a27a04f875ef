"""DiffusionModel over diffusers' modules. Knows nothing of how they were loaded or what they are used for.

B batch, C latent channels, H W latent height and width, V vectors, D width, T = 77 tokens a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ti_trainer.errors import ConfigError
from ti_trainer.files import short_hash
from ti_trainer.model import Conditioning, PredictionType, Vectors
from ti_trainer.prompts import PromptTokenizer, TokenizedPrompt


@dataclass
class DiffusersModel:
    """Stable Diffusion 1.x: one CLIP text encoder, its last layer but `clip_skip - 1` normalised as in the WebUI."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    alphas_cumprod: Tensor
    prediction_type: PredictionType
    name: str
    weights: Path
    clip_skip: int = 1

    def __post_init__(self) -> None:
        """Derive what the seam promises; ConfigError for a clip skip beyond the text encoder's layers."""
        layers = self.text_encoder.config.num_hidden_layers
        if not 1 <= self.clip_skip <= layers:
            found = f"Clip skip (clip_skip): found {self.clip_skip}"
            message = f"{found}, expected 1 to {layers}, the layers of this model's text encoder."
            raise ConfigError(message, "clip_skip")
        self.device, self.dtype = self.unet.device, self.unet.dtype
        self.alphas_cumprod = self.alphas_cumprod.to(self.device)
        self.needs_loss_scaling = self.dtype == torch.float16
        self._token_table = self.text_encoder.get_input_embeddings()
        self.widths = {"clip_l": self._token_table.embedding_dim}
        self.default_size_px = self.unet.config.sample_size * 8
        self._final_norm = next(m for n, m in self.text_encoder.named_modules() if n.endswith("final_layer_norm"))
        self._tokenized: dict[tuple[object, ...], tuple[TokenizedPrompt, Tensor]] = {}

    @cached_property
    def checkpoint_hash(self) -> str:
        """The WebUI's short hash; read only when asked for, since a checkpoint has gigabytes."""
        return short_hash(self.weights)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Freeze every weight; what required gradients before does so again afterwards."""
        modules = (self.unet, self.vae, self.text_encoder)
        before = [(module, module.training) for module in modules]
        thawed = [each for module in modules for each in module.parameters() if each.requires_grad]
        for module in modules:
            module.eval().requires_grad_(False)
        try:
            yield
        finally:
            for module, was_training in before:
                module.train(was_training)
            for each in thawed:
                each.requires_grad_()

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def tokenize(self, prompt: str, words: Mapping[str, Vectors]) -> TokenizedPrompt:
        """A prompt's chunks of token ids, and where the words' vectors go."""
        return self._tokenize(prompt, words)[0]

    def token_text(self, token_id: int) -> str:
        """Its letters; the end of a word is not marked."""
        return self.tokenizer.convert_ids_to_tokens(token_id).removesuffix("</w>")

    def token_embeddings(self, text: str) -> dict[str, Tensor]:
        """(m, D) for the m tokens of a text."""
        return {"clip_l": self._token_table.weight[self.token_ids(text)].detach().float().cpu()}

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents, each (B, C, H, W)."""
        latents = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        scale = self.vae.config.scaling_factor
        return latents.mean.float() * scale, latents.std.float() * scale

    def encode_prompts(self, prompts: Sequence[str], words: Mapping[str, Vectors]) -> Conditioning:
        """Hidden states (B, n T, D) of prompts of up to n chunks, each encoded alone."""
        encoded = [self._tokenize(prompt, words) for prompt in prompts]
        rows = max(len(ids) for _, ids in encoded)
        parts = [ids for _, ids in encoded]
        if any(len(ids) < rows for ids in parts):
            _, empty = self._tokenize("", words)
            parts = [torch.cat([ids, *[empty] * (rows - len(ids))]) for ids in parts]

        def splice(_module: nn.Module, _inputs: object, embedded: Tensor) -> Tensor:
            for number, (tokenized, _) in enumerate(encoded):
                for place in tokenized.splices:
                    vectors = words[place.name]["clip_l"]
                    row, end = number * rows + place.chunk, place.offset + len(vectors)
                    embedded[row, place.offset : end] = vectors.to(embedded)
            return embedded  # (B n, T, D)

        hook = self._token_table.register_forward_hook(splice)
        try:
            hidden = self._hidden(torch.cat(parts))
        finally:
            hook.remove()
        return Conditioning(hidden.reshape(len(prompts), -1, hidden.shape[-1]))

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        """The U-Net's output (B, C, H, W) in its own precision."""
        return self.unet(noisy_latents.to(self.dtype), timesteps, cond.hidden.to(self.dtype), return_dict=False)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, 8 H, 8 W) in [-1, 1], not clamped."""
        return self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]

    def _hidden(self, ids: Tensor) -> Tensor:
        if self.clip_skip == 1:
            return self.text_encoder(ids).last_hidden_state
        return self._final_norm(self.text_encoder(ids, output_hidden_states=True).hidden_states[-self.clip_skip])

    def _tokenize(self, prompt: str, words: Mapping[str, Vectors]) -> tuple[TokenizedPrompt, Tensor]:
        """A prompt's places of embeddings and its ids (n, T)."""
        counts = {name: len(vectors["clip_l"]) for name, vectors in words.items()}
        key = (prompt, *counts.items())
        if key not in self._tokenized:
            if len(self._tokenized) >= 4096:  # shuffled tags make nearly every prompt a new one
                self._tokenized.clear()
            pieces = self.tokenizer
            split = PromptTokenizer(
                self.token_ids, pieces.bos_token_id, pieces.eos_token_id, pieces.eos_token_id, self.token_ids(",")[0], counts
            )
            tokenized = split(prompt)
            self._tokenized[key] = tokenized, torch.tensor(tokenized.chunks, device=self.device)
        return self._tokenized[key]
