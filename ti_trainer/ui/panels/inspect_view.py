"""What Inspect shows of an embedding, of a run's drift and of a prompt: HTML of values, with all text escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from ti_trainer.embedding import Embedding, described_family
from ti_trainer.prompts import CHUNK
from ti_trainer.ui.render import VERBATIM, facts, notice
from ti_trainer.wording import counted
from ti_trainer.workbench.drift import Drift
from ti_trainer.workbench.inspect import EncoderReport, Near, quantiles, shown_token
from ti_trainer.workbench.pictures import drift as drift_picture
from ti_trainer.workbench.pictures import matrix
from ti_trainer.workbench.pictures import norms as norms_picture
from ti_trainer.workbench.prompt_view import Piece, PromptView

SHOWN_TEXT = 200  # characters of a value from a file
ABOUT_TOKENS = "An ellipsis marks a part of a longer word: cat and cat… are two tokens."


def about(embedding: Embedding, negative: Embedding | None = None) -> str:
    """The facts that the file states."""
    info = embedding.info
    checkpoint = " ".join(
        filter(None, (embedding.checkpoint, embedding.checkpoint_hash and f"[{embedding.checkpoint_hash}]"))
    )
    rows: list[tuple[str, Any]] = [
        ("Name in the file", embedding.name),
        ("Family", described_family(embedding.family, embedding.widths)),
        ("Vectors", embedding.num_vectors),
        ("Step", embedding.step or "unknown"),
        ("Base checkpoint", checkpoint or "unknown"),
        ("Format", info.get("format", "unknown")),
        *(
            (label, info[key])
            for label, key in (("Written by", "tool"), ("Initialization text", "init_text"))
            if info.get(key)
        ),
        *([("Read from", f"its {info['where']}")] if info.get("where") else []),
        *([("Negative embedding", f"{negative.name}, {counted(negative.num_vectors, 'vector')}")] if negative else []),
    ]
    html = facts((name, _cut(value)) for name, value in rows)
    html += notice("warning", f"Corrected: {info['repaired']}." if info.get("repaired") else "")
    if embedding.num_vectors > CHUNK:
        html += notice("warning", f"No prompt can hold its {embedding.num_vectors} vectors: there is room for {CHUNK}.")
    if info.get("where") == "pixels":
        html += notice("info", "The card's metadata is lost, but its pixels still hold the embedding.")
    return html


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_TEXT else f"{text[: SHOWN_TEXT - 1]}…"


def reports(found: Sequence[EncoderReport], model: str) -> str:
    """The vectors of each text encoder; `model` is the name of the model that the vocabulary is of, "" without one."""
    several = len(found) > 1
    parts = []
    for each in found:
        title = f"Text encoder {each.encoder}" if several else "Vectors"
        parts.append(f'<div class="ti-section-title">{escape(title)}</div>{_norms(each, model)}{_table(each)}')
        if len(each.norms) > 1:
            parts.append(f'<div class="ti-subdued">Cosine similarity between its vectors</div>{matrix(each.similarities)}')
    if any(each.tokens for each in found):
        parts.append(f'<div class="ti-subdued">{ABOUT_TOKENS}</div>')
    return f'<div class="ti-inspect">{"".join(parts)}</div>'


def _norms(report: EncoderReport, model: str) -> str:
    if report.vocabulary is None:
        if not model:
            return ""
        what = f"{model} has no text encoder {report.encoder} of width {report.width}: load a model of its family to see"
        return notice("info", f"{what} the nearest tokens.")
    low, median, high = quantiles(report.vocabulary)
    text = f"Norms (lines) beside the vocabulary of {model}: median {median:.4g}, 90% between {low:.4g} and {high:.4g}"
    return f'<div class="ti-subdued">{escape(text)}</div>{norms_picture(report.norms, report.vocabulary)}'


def _table(report: EncoderReport) -> str:
    heads = ["Vector", "Norm"]
    heads += ["Nearest tokens"] * bool(report.tokens) + ["Nearest embeddings"] * any(report.embeddings)
    rows = []
    for number, norm in enumerate(report.norms):
        rank = report.rank_of(float(norm))
        above = "" if rank is None else f"<small>above {100 * rank:.0f}%</small>"
        cells = [str(number + 1), f"{float(norm):.4g} {above}"]
        if report.tokens:
            cells.append(_chips(report.tokens[number], _of_token))
        if any(report.embeddings):
            cells.append(_chips(report.embeddings[number], _of_embedding))
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    head = "".join(f"<th>{each}</th>" for each in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="ti-scroll"><table class="ti-vectors"><tr>{head}</tr>{body}</table></div>'


def _chips(near: Sequence[Near], shown: Callable[[Near], tuple[str, str]]) -> str:
    return f'<div class="ti-tokens" {VERBATIM}>{"".join(_chip(each.similarity, *shown(each)) for each in near)}</div>'


def _chip(similarity: float, text: str, title: str) -> str:
    number = f"<small>{similarity:.3f}</small>"
    return f'<span class="ti-token" title="{escape(title)}">{escape(text) or "&nbsp;"}{number}</span>'


def _of_token(near: Near) -> tuple[str, str]:
    return shown_token(near.name) or f"#{near.number}", f"{near.name} #{near.number}, similarity {near.similarity:.6f}"


def _of_embedding(near: Near) -> tuple[str, str]:
    return near.name, f"Vector {near.number + 1} of {near.name}, similarity {near.similarity:.6f}"


def drift(found: Drift, run_id: str) -> str:
    """How a run's copies moved away from the first one."""
    skipped = "".join(notice("warning", each) for each in found.skipped)
    if not found.points:
        return skipped + notice("info", f"The run {run_id} has saved no copies: set Save an embedding every N steps.")
    first, last = found.points[0], found.points[-1]
    rows: list[tuple[str, object]] = [("Run", run_id), ("Copies", f"{len(found.points)}, steps {first.step} to {last.step}")]
    for encoder, similarity in last.similarity.items():
        change = f"{first.norm[encoder]:.4g} to {last.norm[encoder]:.4g}"
        rows.append((encoder, f"similarity of the last to the first {similarity:.4f}, norm {change}"))
    left_out = f"{counted(found.left_out, 'copy')} between them were left out." if found.left_out else ""
    picture = drift_picture(found.series("similarity"), found.series("norm")) if len(found.points) > 1 else ""
    return skipped + facts(rows) + notice("info", left_out) + picture


def prompt(view: PromptView) -> str:
    """The chunks of a prompt, and what is to be said about it."""
    chunks = "".join(
        f'<div class="ti-prompt">Chunk {number}: {size} of {CHUNK} tokens</div>'
        f'<div class="ti-tokens" {VERBATIM}>{"".join(map(_piece, chunk))}</div>'
        for number, (chunk, size) in enumerate(zip(view.chunks, view.sizes, strict=True), 1)
    )
    warnings = "".join(notice("warning", each) for each in view.warnings)
    return f'{warnings}{notice("info", chr(10).join(view.notes))}<div class="ti-prompts">{chunks}</div>'


def _piece(piece: Piece) -> str:
    weight = "" if piece.weight == 1 else f" × {piece.weight:.3g}"
    if piece.token_id is None:
        below, kind = counted(piece.count, "vector"), " ti-embedding"
    else:
        below, kind = str(piece.token_id), ""
    return f'<span class="ti-token{kind}">{escape(piece.text)}{weight}<small>{below}</small></span>'
