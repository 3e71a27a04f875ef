"""Files of diffusers' scripts: vectors under the placeholder token, those of SDXL's second text encoder in a second file.

`named_tensors` reads each file; this module finds the files that belong together.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats.named_tensors import save


def main_file(folder: Path) -> Path:
    """The file that `load_textual_inversion(folder)` loads; EmbeddingFormatError if there is none."""
    for ending in (".safetensors", ".bin"):
        path = folder / f"learned_embeds{ending}"
        if path.is_file():
            return path
    message = f"The folder {folder} holds no learned_embeds.safetensors or .bin. Choose another one."
    raise EmbeddingFormatError(message)


def second_file(path: Path) -> Path:
    """The path of the file with the vectors for SDXL's second text encoder, whether or not it exists."""
    if path.name.startswith("learned_embeds"):
        return path.with_name(path.name.replace("learned_embeds", "learned_embeds_2", 1))
    return path.with_stem(f"{path.stem}_2")


def first_file(path: Path) -> Path | None:
    """The file that `path` would be the second file of, by its name; None if it is not named like one."""
    if path.name.startswith("learned_embeds_2"):
        return path.with_name(path.name.replace("learned_embeds_2", "learned_embeds", 1))
    return path.with_stem(path.stem.removesuffix("_2")) if path.stem.endswith("_2") else None


def may_be_first(embedding: Embedding) -> bool:
    """Whether it may be the first of two files."""
    return "token" in embedding.info and embedding.widths == {"clip_l": 768}


def joined(first: Embedding, second: Embedding) -> Embedding:
    """The SDXL embedding in two files, or the first one alone if they do not belong together."""
    if second.info.get("token") != first.info["token"] or second.widths != {"clip_g": 1280}:
        return first
    return replace(first, vectors=first.arrays | second.arrays)


def write(embedding: Embedding, path: Path, dtype: str = "fp32") -> None:
    """The vectors under `<name>`; SDXL's as two files."""
    token = f"<{embedding.name}>"
    arrays = embedding.arrays
    if set(arrays) == {"clip_l", "clip_g"}:
        save({token: arrays["clip_g"]}, second_file(path), dtype=dtype)
    save({token: next(iter(arrays.values()))}, path, dtype=dtype)
