"""Detect what a file of tensors is by their names: users mix up LoRAs, embeddings and checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LORA = re.compile(
    r"^(base_model\.model\.)?lora_(unet|te\d?|transformer|prior)_|\blora[_.](up|down|A|B|mid|linear_layer|embedding_[AB])\b|_lora\."
)
_LYCORIS = re.compile(r"^lycoris_|\.(hada_w[12]|lokr_w[12]|oft_(blocks|diag)|boft_|on_input$|dora_scale|diff_b?$)")
# pattern of a name -> what the file is; the order matters, since checkpoints have names of their parts
_FIRST_THAT_FITS = [
    (re.compile(pattern), what)
    for pattern, what in (
        (r"^bundle_emb\..*", "a LoRA with embeddings bundled in it"),
        (r"^(control_model\.|controlnet_|lllite_|input_hint_block\.|controlnet_cond_embedding\.)", "a ControlNet"),
        (r"^(ip_adapter\.|image_proj\.)", "an IP-Adapter"),
        (r"^(model\.diffusion_model\.)?(double_blocks|single_blocks)\.", "a Flux checkpoint"),
        (r"^(model\.diffusion_model\.)?joint_blocks\.", "a Stable Diffusion 3 checkpoint"),
        (r"^(model\.diffusion_model|cond_stage_model|conditioner\.embedders)\.", "a checkpoint"),
        (r"^(transformer_blocks|single_transformer_blocks)\.", "a transformer of Flux or Stable Diffusion 3"),
        (r"^(down_blocks|input_blocks)\.\d", "a U-Net alone, without text encoder and VAE"),
        (
            r"^(first_stage_model\.)?(decoder|encoder)\.(conv_in|conv_out|mid|mid_block|up|down|up_blocks|down_blocks)\.",
            "a VAE",
        ),
        (r"^(text_model\.|transformer\.text_model\.)?(encoder|embeddings)\.(layers|token_embedding)\b", "a text encoder"),
        (r"^(encoder\.block\.\d|shared\.weight$)", "a T5 text encoder"),
        (r"^(RRDB_trunk|body\.\d+\.rdb\d|conv_first\.weight|layers\.\d+\.residual_group|model\.1\.sub\.\d)", "an upscaler"),
    )
]
_LONGEST = 200  # characters of a name that are compared
_HYPERNETWORK_WIDTHS = {"320", "640", "768", "1024", "1280"}


def spec_of(names: Iterable[object]) -> str | None:
    """What a file with these names of tensors is, with an article: "a LoRA"; None if they are unknown."""
    texts = [str(name)[:_LONGEST] for name in names]
    for pattern, what in _FIRST_THAT_FITS[:1]:
        if any(pattern.match(text) for text in texts):
            return what
    if any(_LORA.search(text) for text in texts):
        return "a LoRA"
    if any(_LYCORIS.search(text) for text in texts):
        return "a LoRA (LyCORIS)"
    for pattern, what in _FIRST_THAT_FITS[1:]:
        if any(pattern.match(text) for text in texts):
            return what
    widths = {text.partition(".")[0] for text in texts if text[:1].isdecimal()}
    return "a hypernetwork" if widths and widths <= _HYPERNETWORK_WIDTHS and len(texts) > 1 else None
