"""The page that is published with an embedding, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import Embedding
from ti_trainer.prompts import escaped
from ti_trainer.workbench.share import Shared, public

TRAINING = {  # options of a run that are published, with their labels; none of them holds a path
    "learning_rate": "learning rate",
    "lr_scheduler": "decay",
    "optimizer": "optimizer",
    "batch_size": "batch size",
    "gradient_accumulation_steps": "gradient accumulation",
    "width": "width",
    "height": "height",
    "loss_weighting": "loss weighting",
    "latent_sampling": "latent sampling",
    "clip_skip": "CLIP skip",
    "ema_rate": "EMA rate",
    "train_cfg_scale": "guidance scale in training",
    "seed": "seed",
}
ALWAYS = ("learning_rate", "optimizer", "batch_size", "width", "height")
LICENSE = "(to be filled in)"


def page(shared: Shared) -> str:
    """The whole page."""
    name = shared.name
    rows = "\n".join(f"| {label} | {_cell(value)} |" for label, value in facts(shared))
    preview = f"![{_cell(name)}](<{name}.preview.png>)\n\n" if shared.preview else ""
    about = f"{shared.description}\n\n" if shared.description else ""
    return (
        f"# {_cell(name)}\n\n{about}{preview}| | |\n|---|---|\n{rows}\n\n## How to use it\n\n{_usage(shared)}\n\n"
        f"## How to install it\n\n{_install(shared.embeddings)}\n"
    )


def facts(shared: Shared) -> list[tuple[str, str]]:
    """What is known about the embedding, by label."""
    embedding, info = shared.embedding, shared.embedding.info
    settings = shared.run.settings() if shared.run else {}
    images = settings.get("num_images", info.get("num_images"))
    checkpoint = _base_model(shared)
    rows = [
        ("Type", "Textual Inversion embedding"),
        ("Name in prompts", f"`{name_in_prompts(embedding.name)}`"),
        ("For", "the negative prompt" if shared.for_negative else "the prompt"),
        ("Negative embedding", f"`{name_in_prompts(shared.negative.name)}`" if shared.negative else ""),
        ("Advised weight", f"{shared.weight:g}" if shared.weight else ""),
        ("Vectors", str(embedding.num_vectors)),
        ("Model family", embedding.family),
        ("Base model", checkpoint),
        ("Steps", str(embedding.step) if embedding.step else ""),
        ("Training images", str(images) if isinstance(images, int) else ""),
        ("Initial text", str(info["init_text"]) if isinstance(info.get("init_text"), str) else ""),
        ("Training", _training(settings.get("train", {}))),
        ("License", shared.license or LICENSE),
    ]
    return [(label, value) for label, value in rows if value]


def notes(shared: Shared) -> str:
    """What is known about the embedding in one paragraph, for the WebUI's cards."""
    left_out = ("Type", "" if shared.license else "License")
    return "; ".join(f"{label}: {value.replace('`', '')}" for label, value in facts(shared) if label not in left_out)


def name_in_prompts(name: str) -> str:
    """The name with its parentheses escaped."""
    return escaped(name)


def _base_model(shared: Shared) -> str:
    embedding = public(shared.embedding)
    digits = f" [{embedding.checkpoint_hash}]" if embedding.checkpoint_hash else ""
    return f"{embedding.checkpoint}{digits}" if embedding.checkpoint else digits.strip()


def _training(train: dict[str, Any]) -> str:
    """The options of the run that matter, in short."""
    defaults = TrainConfig().to_dict()
    shown = [
        f"{label} {train[name]}"
        for name, label in TRAINING.items()
        if train.get(name) not in (None, 0, "") and (name in ALWAYS or train[name] != defaults.get(name))
    ]
    return ", ".join(shown)


def _usage(shared: Shared) -> str:
    name = name_in_prompts(shared.name)
    word = f"({name}:{shared.weight:g})" if shared.weight and shared.weight != 1 else name
    if shared.for_negative:
        return f"Write `{word}` in the negative prompt."
    negative = f", and `{name_in_prompts(shared.negative.name)}` in the negative prompt" if shared.negative else ""
    return f"Write `{word}` in the prompt{negative}."


def _install(embeddings: Sequence[Embedding]) -> str:
    files = " and ".join(f"`{each.name}.safetensors`" for each in embeddings)
    first = embeddings[0]
    lines = [
        f"- **AUTOMATIC1111, Forge, reForge**: put {files} into the folder `embeddings`. `{first.name}.json` and "
        f"`{first.name}.preview.png`, if there is one, beside it fill its card.",
        f"- **ComfyUI**: put {files} into `models/embeddings`, and write `embedding:{first.name}`.",
        f"- **diffusers**:\n\n```python\n{_diffusers(embeddings)}\n```",
    ]
    return "\n".join(lines)


def _diffusers(embeddings: Sequence[Embedding]) -> str:
    if len(embeddings[0].widths) == 1:
        return "\n".join(
            f"pipe.load_textual_inversion({each.name + '.safetensors'!r}, token={each.name!r})" for each in embeddings
        )
    lines = ["from safetensors.torch import load_file", ""]
    for each in embeddings:
        lines += [
            f"vectors = load_file({each.name + '.safetensors'!r})",
            f"pipe.load_textual_inversion(vectors['clip_l'], token={each.name!r},",
            "                             text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)",
            f"pipe.load_textual_inversion(vectors['clip_g'], token={each.name!r},",
            "                             text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)",
        ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text in a table of Markdown: on one line, and without HTML."""
    one_line = " ".join(text.split())
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        one_line = one_line.replace(sign, entity)
    return one_line
