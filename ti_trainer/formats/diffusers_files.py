"""What diffusers' scripts write: the vectors under the placeholder token, SDXL's second text encoder in another file.

Reading a single file is `named_tensors`' work; this file knows which files belong together.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats.named_tensors import save


def main_file(folder: Path) -> Path:
    """The file that `load_textual_inversion(folder)` takes; EmbeddingFormatError if there is none."""
    for ending in (".safetensors", ".bin"):
        path = folder / f"learned_embeds{ending}"
        if path.is_file():
            return path
    message = f"The folder {folder} holds no learned_embeds.safetensors or .bin. Choose an embedding, or diffusers' folder."
    raise EmbeddingFormatError(message)


def second_file(path: Path) -> Path:
    """Where the vectors for SDXL's second text encoder are, if there are any."""
    if path.name.startswith("learned_embeds"):
        return path.with_name(path.name.replace("learned_embeds", "learned_embeds_2", 1))
    return path.with_stem(f"{path.stem}_2")


def first_file(path: Path) -> Path | None:
    """The file that `path` would be the second one of; None if it is not named so."""
    if path.name.startswith("learned_embeds_2"):
        return path.with_name(path.name.replace("learned_embeds_2", "learned_embeds", 1))
    return path.with_stem(path.stem.removesuffix("_2")) if path.stem.endswith("_2") else None


def may_be_first(embedding: Embedding) -> bool:
    """Whether it may have a second half."""
    return "token" in embedding.info and embedding.widths == {"clip_l": 768}


def joined(first: Embedding, second: Embedding) -> Embedding:
    """The SDXL embedding that two files make, or the first if the second does not belong to it."""
    if second.info.get("token") != first.info["token"] or second.widths != {"clip_g": 1280}:
        return first
    return replace(first, vectors=first.vectors | second.vectors)


def write(embedding: Embedding, path: Path) -> None:
    """The vectors under `<name>`; SDXL's as two files."""
    token = f"<{embedding.name}>"
    if set(embedding.vectors) == {"clip_l", "clip_g"}:
        save({token: embedding.vectors["clip_g"]}, second_file(path))
    save({token: next(iter(embedding.vectors.values()))}, path)
