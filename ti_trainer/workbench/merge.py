"""Merge embeddings by an expression: look names up, compute, preview and save the result."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ti_trainer import __version__, formats
from ti_trainer.data.prompts import NAME
from ti_trainer.embedding import Embedding, word_pattern
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import name_warnings, syntax_warnings
from ti_trainer.prompts import BREAK, CHUNK, escaped, weighted_parts
from ti_trainer.runs import locks
from ti_trainer.wording import counted
from ti_trainer.workbench.evaluation import Scope, evaluate
from ti_trainer.workbench.expression import quoted

if TYPE_CHECKING:
    from PIL import Image

    from ti_trainer.host import GenerationRequest, Host
    from ti_trainer.model import DiffusionModel

UNNAMED = "ti-merged-preview"  # the result's name in prompts before it has one
MAX_CLOSE = 3  # names in a message


@dataclass(frozen=True)
class Names:
    """Embeddings by their names in expressions: files that were given, and those of a folder."""

    folder: Path
    given: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def files(self) -> list[Path]:
        """The folder's files, listed once."""
        return embeddings_dir.embedding_files(self.folder)

    @cached_property
    def known(self) -> list[str]:
        """All names."""
        return [*self.given, *dict.fromkeys(path.stem for path in self.files)]

    def read(self, name: str) -> Embedding:
        """The embedding of a name in any case; ConfigError if there is none, EmbeddingFormatError if it is damaged."""
        given = next((path for each, path in self.given.items() if each.casefold() == name.casefold()), None)
        path = given or embeddings_dir.find_among(self.files, name)
        if path is None:
            raise ConfigError(self._unknown(name))
        return formats.read(path)

    def _unknown(self, name: str) -> str:
        bare = name.casefold()
        longer = [each for each in self.known if each.casefold().startswith(bare)]
        folded = {each.casefold(): each for each in self.known}
        close = longer or [folded[each] for each in difflib.get_close_matches(bare, folded, MAX_CLOSE)]
        if close:
            return f"there is no embedding {name!r}; did you mean {', '.join(map(quoted, close[:MAX_CLOSE]))}?"
        some = ", ".join(map(quoted, self.known[:8])) or "none"
        more = f" and {len(self.known) - 8} more" if len(self.known) > 8 else ""
        return f"there is no embedding {name!r} in {self.folder} (found: {some}{more})."


@dataclass(frozen=True)
class Merged:
    """The result of an expression, not saved yet; `uses_model` if the loaded model's vocabulary is part of it."""

    expression: str
    embedding: Embedding
    sources: tuple[str, ...]
    uses_model: bool
    warnings: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """Its vectors, family and widths, as a sentence."""
        widths = ", ".join(f"{encoder} {width}" for encoder, width in self.embedding.widths.items())
        return f"{counted(self.embedding.num_vectors, 'vector')} for {self.embedding.family} ({widths})."


def merge(expression: str, names: Names, model: Callable[[], DiffusionModel]) -> Merged:
    """Compute an expression; the model is opened only for its vocabulary. ConfigError if that is not possible."""
    lookup = _Lookup(names, model)
    if not expression.strip():
        message = 'Expression: empty; expected one such as 0.5 * a + 0.5 * b, or text("red hair").'
        raise ConfigError(message, "expression")
    result = evaluate(expression, lookup.scope)
    vectors = {encoder: each.astype(np.float32) for encoder, each in result.items()}
    opened = [model()] if lookup.uses_model else []
    info = {"expression": " ".join(expression.split()), "ti_trainer": __version__}
    if lookup.sources:
        info["merged_from"] = ", ".join(lookup.sources)
    models = {(each.checkpoint, each.checkpoint_hash) for each in lookup.sources.values()}
    models |= {(each.name, each.checkpoint_hash) for each in opened}
    checkpoint, checkpoint_hash = models.pop() if len(models) == 1 else (None, None)
    embedding = Embedding(UNNAMED, vectors, 0, checkpoint, checkpoint_hash, info)
    return Merged(expression, embedding, tuple(lookup.sources), lookup.uses_model, tuple(dict.fromkeys(lookup.warnings)))


class _Lookup:
    """What an expression looked up."""

    def __init__(self, names: Names, model: Callable[[], DiffusionModel]) -> None:
        self.names, self.model = names, model
        self.sources: dict[str, Embedding] = {}
        self.warnings: list[str] = []
        self.uses_model = False

    @property
    def scope(self) -> Scope:
        return Scope(self.embedding, self.tokens, self.text, self.norms)

    def embedding(self, name: str) -> Mapping[str, NDArray[np.float32]]:
        found = self.sources[name] = self.names.read(name)
        if repaired := found.info.get("repaired"):
            self.warnings.append(f"{name}: {repaired}.")
        return found.arrays

    def tokens(self, text: str) -> Mapping[str, NDArray[np.float32]]:
        self.uses_model = True
        self._warn_of_names(text)
        return {encoder: each.float().numpy() for encoder, each in self.model().token_embeddings(text).items()}

    def text(self, text: str) -> Mapping[str, NDArray[np.float32]]:
        self.uses_model = True
        self._warn_of_names(text)
        self.warnings += syntax_warnings("text", text)
        return weighted_text(self.model(), text)

    def norms(self) -> Mapping[str, float]:
        from ti_trainer.training.vocabulary import Vocabulary

        self.uses_model = True
        return Vocabulary.of(self.model()).norms

    def _warn_of_names(self, text: str) -> None:
        folded = text.casefold()
        for each in self.names.known:
            if each.casefold() in folded and re.search(word_pattern(each), text):
                self.warnings.append(
                    f"{each} in {text!r} is read as ordinary words: write cat(..., {quoted(each)}) for the embedding."
                )


def weighted_text(model: DiffusionModel, text: str) -> dict[str, NDArray[np.float32]]:
    """(m, D) by text encoder: the vectors of the tokens of a prompt, each multiplied by its weight, as in (hat:1.2).

    So does the extension embedding-merge. In a prompt, a weight is applied after the text encoder instead, so the effect is
    not the same. ConfigError for BREAK.
    """
    rows: list[dict[str, NDArray[np.float32]]] = []
    for part in weighted_parts(text):
        if part == BREAK:
            message = "BREAK starts a new chunk in a prompt, but an embedding is always in one: leave it out."
            raise ConfigError(message)
        words, weight = part
        rows.append({e: np.float32(weight) * each.float().numpy() for e, each in model.token_embeddings(words).items()})
    return {encoder: np.concatenate([row[encoder] for row in rows]) for encoder in rows[0]}


def norms_of(embedding: Embedding, model: DiffusionModel | None) -> list[tuple[str, str]]:
    """Rows for people: by text encoder the length of each vector, relative to the vocabulary's if the model fits."""
    usual: Mapping[str, float] = {}
    if model is not None and dict(model.widths) == embedding.widths:
        from ti_trainer.training.vocabulary import Vocabulary

        usual = Vocabulary.of(model).norms
    rows = []
    for encoder, vectors in embedding.arrays.items():
        lengths = np.linalg.norm(vectors, axis=1)  # (V,)
        shown = ", ".join(f"{each:.3g}" for each in lengths[:16]) + (", ..." if len(lengths) > 16 else "")
        if encoder in usual:
            shown += f" (usual: {usual[encoder]:.3g})"
        rows.append((f"Lengths, {encoder}", shown))
    return rows


def with_and_without(
    host: Host, model: DiffusionModel, embedding: Embedding, request: GenerationRequest
) -> Iterator[tuple[str, Image.Image]]:
    """An image of the prompts without [name], then one with the embedding in its place, at the same seed.

    Other embeddings of the folder keep their meaning in the prompts. The caller holds the host's lock. ConfigError if no
    prompt has [name], or the model cannot use the embedding.
    """
    from ti_trainer.model import check_fits

    prompts = request.prompt, request.negative_prompt
    if not any(NAME in each for each in prompts):
        message = f"Prompt: found {request.prompt!r}, expected {NAME} where the embedding is to be."
        raise ConfigError(message, "prompt")
    check_fits(model, embedding)
    check_count(embedding)
    others, _ = embeddings_dir.usable(host.embeddings_dir, model)
    plain, negative = map(without_name, prompts)
    yield "without", host.generate(model, replace(request, prompt=plain, negative_prompt=negative), others)
    named, negative = (each.replace(NAME, escaped(UNNAMED)) for each in prompts)
    known = {**others, UNNAMED: embedding.vectors}
    yield "with it", host.generate(model, replace(request, prompt=named, negative_prompt=negative), known)


def without_name(prompt: str) -> str:
    """A prompt without [name], and without the comma beside it."""
    parts = [
        " ".join(re.sub(r"\(\s*\[name\]\s*(:[^()]*)?\)", "", part).replace(NAME, "").split()) for part in prompt.split(",")
    ]
    return ", ".join(filter(None, parts))


def check_count(embedding: Embedding) -> None:
    """ConfigError for more vectors than a prompt has room for."""
    if embedding.num_vectors > CHUNK:
        message = (
            f"Expression: the result has {embedding.num_vectors} vectors, but a prompt has room for {CHUNK}: use a part of "
            f"it, as in (...)[0:{CHUNK}]."
        )
        raise ConfigError(message, "expression")


def save(host: Host, merged: Merged, name: str, *, overwrite: bool, warn: Callable[[str], None]) -> Path:
    """Save the result under a name in the embeddings folder; ConfigError if the name is invalid or taken.

    The caller holds the host's lock, and says that the folder has changed.
    """
    folder, name = host.embeddings_dir, name.strip()
    check_count(merged.embedding)
    embeddings_dir.free_file(folder, name, overwrite=overwrite)
    with locks.embeddings_held(folder, [name]):
        file = embeddings_dir.free_file(folder, name, len(merged.embedding.widths), overwrite=overwrite)
        model = host.open_model()
        for each in name_warnings(model, folder, name):
            warn(each)
        if dict(model.widths) != merged.embedding.widths:
            warn(f"{model.name} cannot use {name}, since it is for {merged.embedding.family} models.")
        embeddings_dir.save(merged.embedding.renamed(name), file, warn)
    if file.suffix.lower() != ".safetensors":
        warn(f"{file.name} cannot hold a note of the expression; a .safetensors file can.")
    return file


METHODS = {  # label -> least and most embeddings
    "Weighted sum": (1, 8),
    "Average": (2, 8),
    "Concatenate": (2, 8),
    "Difference": (2, 2),
    "Interpolate": (2, 2),
    "Interpolate, spherical": (2, 2),
}


def expression_of(method: str, chosen: Sequence[tuple[str, float]], position: float = 0.5) -> str:
    """The expression of a simple method for embeddings with weights; ConfigError if their number does not fit.

    `position` is for interpolation: 0 is the first embedding, 1 the second.
    """
    least, most = METHODS[method]
    if not least <= len(chosen) <= most:
        expected = f"{least}" if least == most else f"{least} to {most}"
        message = f"{method}: found {counted(len(chosen), 'embedding')}, expected {expected}. Choose them in the lists."
        raise ConfigError(message)
    names = [quoted(name) for name, _ in chosen]
    weighted = [_weighted(name, weight) for name, (_, weight) in zip(names, chosen, strict=True)]
    if method == "Average":
        return f"mean({', '.join(names)})"
    if method == "Concatenate":
        return f"cat({', '.join(weighted)})"
    if method.startswith("Interpolate"):
        return f"{'slerp' if 'spherical' in method else 'lerp'}({', '.join(names)}, {position:g})"
    return (" - " if method == "Difference" else " + ").join(weighted).replace("+ -", "- ").replace("- -", "+ ")


def _weighted(name: str, weight: float) -> str:
    return name if weight == 1 else f"{weight:g} * {name}"
