"""The Convert panel: write embeddings in another format or dtype, one or a whole folder; in and out of LoRAs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer import formats
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.files import checked_name, entered_path
from ti_trainer.formats import bundles, embeddings_dir
from ti_trainer.formats.precision import DTYPES
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.quick_train import paths_of
from ti_trainer.ui.panels.train_result import file_link
from ti_trainer.ui.render import facts, notice, refusal
from ti_trainer.wording import counted, encodable
from ti_trainer.workbench.convert import Outcome, Wanted, convert, convert_folder, read

PREFIX = "ti_trainer_convert_"
FOLDER = "converted"  # within the log folder
ABOUT = "Write an embedding in another format. What the new file cannot hold is listed."
ALL = "all"  # the dropdown's entry for the whole embeddings folder
MAX_SHOWN = 200  # files of a folder


def panel(page: Page) -> Any:
    """Add the form and the results; returns the list of embeddings."""
    fields: dict[str, Any] = {}
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            gr.HTML(f'<div class="ti-subdued">{ABOUT}</div>')
            fields["chosen"] = gr.Dropdown(
                choices(page),
                value=None,
                label="Embedding",
                info="From the embeddings folder." if page.is_public else f"{ALL!r} converts the whole embeddings folder.",
                allow_custom_value=True,
                elem_id=PREFIX + "chosen",
            )
            fields["upload"] = gr.File(label="Or a file of yours", height=126, elem_id=PREFIX + "upload")
            if not page.is_public:
                fields["path"] = gr.Textbox(label="Or the path of a file or a folder", max_lines=1, elem_id=PREFIX + "path")
            about = gr.HTML(elem_id=PREFIX + "about")
            with gr.Row():
                fields["format"] = gr.Dropdown(
                    list(formats.FORMATS), value="safetensors", label="Format", elem_id=PREFIX + "format"
                )
                info = "bf16 and fp16 are half as large and less precise."
                fields["dtype"] = gr.Radio(list(DTYPES), value="fp32", label="Type", info=info, elem_id=PREFIX + "dtype")
            about_format = gr.HTML(about_the_format("safetensors"), elem_id=PREFIX + "about_format")
            fields["name"] = gr.Textbox(
                label="New name",
                info="The file's name, which is also stored in it. Empty: unchanged.",
                max_lines=1,
                elem_id=PREFIX + "name",
            )
            info = "Of the two embeddings in a DreamArtist card, convert the negative one."
            fields["negative"] = gr.Checkbox(label="Negative embedding", info=info, elem_id=PREFIX + "negative")
            with gr.Accordion("LoRAs", open=False):
                fields["bundled"] = gr.Textbox(
                    label="Take out of a LoRA",
                    info="The file above is a LoRA: the name of the embedding in it.",
                    max_lines=1,
                    elem_id=PREFIX + "bundled",
                )
                if not page.is_public:
                    fields["lora"] = gr.Textbox(
                        label="Put into a LoRA",
                        info="The path of a .safetensors file. The embedding is put into a copy of it.",
                        max_lines=1,
                        elem_id=PREFIX + "lora",
                    )
            info = "Otherwise it is written to a folder of the runs, and can be downloaded."
            fields["install"] = gr.Checkbox(
                label="Write to the embeddings folder", info=info, visible=not page.is_public, elem_id=PREFIX + "install"
            )
            fields["overwrite"] = gr.Checkbox(label="Overwrite existing files", elem_id=PREFIX + "overwrite")
            button = gr.Button("Convert", variant="primary", elem_id=PREFIX + "button")
        with gr.Column(elem_classes=["ti-results"]):
            outcome = gr.HTML(elem_id=PREFIX + "outcome")
    for each in (*fields.values(), about_format):
        unsaved(each)

    def values_of(values: Mapping[Any, Any]) -> dict[str, Any]:
        return {name: values[field] for name, field in fields.items()}

    def run(values: Mapping[Any, Any]) -> Iterator[dict[Any, Any]]:
        for html in converted(page, values_of(values)):
            yield {outcome: html}

    inputs = set(fields.values())
    for name in ("chosen", "upload", "path"):
        if name in fields:
            listen(fields[name].change, lambda values: {about: look(page, values_of(values))}, inputs, [about])
    listen(fields["format"].change, about_the_format, [fields["format"]], [about_format])
    listen(fields["chosen"].focus, lambda: gr.update(choices=choices(page)), [], [fields["chosen"]])
    listen(button.click, run, inputs, [outcome], queue=True, show_progress="minimal")
    return fields["chosen"]


def choices(page: Page) -> list[str]:
    """The files in the embeddings folder, by their paths in it; the whole folder takes long, so not for visitors."""
    folder = page.host.embeddings_dir
    return [
        *([] if page.is_public else [ALL]),
        *(_place(folder, path) for path in embeddings_dir.embedding_files(folder)),
    ]


def _place(folder: Path, path: Path) -> str:
    return encodable(path.relative_to(folder).as_posix())


def about_the_format(name: str) -> str:
    """What a format is, and its extension; empty for an unknown one."""
    form = formats.FORMATS.get(name)
    return f'<div class="ti-subdued">{escape(form.about)} ({form.extensions[0]})</div>' if form else ""


def source_of(page: Page, values: Mapping[str, Any]) -> Path:
    """The file or folder that was given in one of the three ways; ConfigError for none or several."""
    chosen, entered = (values.get("chosen") or "").strip(), (values.get("path") or "").strip()
    uploaded = paths_of([values["upload"]]) if values.get("upload") else []
    given = [each for each in (chosen, entered, uploaded) if each]
    if len(given) != 1:
        message = (
            f"Found {len(given) or 'nothing'} to convert, expected an embedding of the folder, a file or a path: choose one."
        )
        raise ConfigError(message)
    if uploaded:
        return uploaded[0]
    folder = page.host.embeddings_dir
    if chosen:
        if chosen == ALL and not page.is_public:
            return folder
        found = {_place(folder, path): path for path in embeddings_dir.embedding_files(folder)}
        if chosen not in found:
            message = f"There is no file {chosen} in the embeddings folder: choose one in the list."
            raise ConfigError(message)
        return found[chosen]
    path = allowed_path(page, entered)
    if not path.exists():
        message = f"There is no file or folder {path}."
        raise ConfigError(message)
    return path


def allowed_path(page: Page, entered: str) -> Path:
    """A path that was entered; ConfigError if visitors of the page may not use it."""
    path = entered_path(entered)
    if page.is_public:
        message = "Paths cannot be entered on a public page: choose an embedding or a file of yours."
        raise ConfigError(message)
    page.host.check_folder(path if path.is_dir() else path.parent)
    return path


def look(page: Page, values: Mapping[str, Any]) -> str:
    """What the file is; empty if nothing is chosen."""
    try:
        source = source_of(page, values)
    except (ConfigError, OSError):
        return ""
    try:
        if source.is_dir():
            return notice("info", f"{counted(len(embeddings_dir.embedding_files(source)), 'file')} in this folder.")
        if (bundle := bundles.bundled(source)) is not None:
            return notice("info", f"A LoRA with these embeddings in it: {', '.join(list(bundle.words)[:MAX_SHOWN])}.")
        embedding = read(source, Wanted())
    except (TITrainerError, OSError) as error:
        return refusal(error)
    about = [f"{embedding.name}: {counted(embedding.num_vectors, 'vector')} for {embedding.family}"]
    about += [f"step {embedding.step}"] * bool(embedding.step) + [f"by {embedding.info['tool']}"] * (
        "tool" in embedding.info
    )
    return notice("info", ", ".join(about) + ".")


def converted(page: Page, values: Mapping[str, Any]) -> Iterator[str]:
    """Convert; yields what to show, for a folder file by file."""
    try:
        source = source_of(page, values)
        wanted = _wanted(page, values)
        if source.is_dir():
            yield from _folder(page, source, wanted, install=bool(values["install"]))
        else:
            link = not page.is_public or bool(values.get("upload"))  # visitors download what they brought
            yield _file(page, source, wanted, install=bool(values["install"]), link=link)
    except (TITrainerError, OSError) as error:
        yield refusal(error)


def _wanted(page: Page, values: Mapping[str, Any]) -> Wanted:
    """What was entered; ConfigError for a format or name that cannot be used."""
    format, dtype = values["format"], values["dtype"]
    if format not in formats.FORMATS or dtype not in DTYPES:
        message = f"Found the format {format} and the type {dtype}, expected some of the lists."
        raise ConfigError(message)
    name, bundled, lora = ((values.get(each) or "").strip() or None for each in ("name", "bundled", "lora"))
    into = allowed_path(page, lora) if lora else None
    if name is not None:
        checked_name(name)
    return Wanted(None if into else format, dtype, name, bool(values["negative"]), bundled, into, bool(values["overwrite"]))


def _file(page: Page, source: Path, wanted: Wanted, *, install: bool, link: bool) -> str:
    """Convert one file; `link`: with a link to download it."""
    host = page.host
    extension = formats.FORMATS[wanted.format].extensions[0] if wanted.format else ".safetensors"
    if wanted.into is not None and install:
        message = "A LoRA does not belong in the embeddings folder: do not tick Write to the embeddings folder."
        raise ConfigError(message)
    stem = wanted.name or (f"{wanted.into.stem}-{source.stem}" if wanted.into else wanted.bundled or source.stem)
    if not install:
        target = _free(host.log_dir / FOLDER / f"{checked_name(stem)}{extension}")
        return _shown(convert(source, target, wanted), link=link)
    embeddings_dir.checked_new_name(stem)
    with page.changing_embeddings("write to the embeddings folder", [stem]):
        outcome = convert(source, host.embeddings_dir / f"{stem}{extension}", wanted)
    other = embeddings_dir.used_instead(outcome.target)
    warning = f"In prompts, {stem} still means {other.name}: delete or rename one of the two." if other else ""
    return _shown(outcome, link=link) + notice("warning", warning)


def _folder(page: Page, source: Path, wanted: Wanted, *, install: bool) -> Iterator[str]:
    """Convert a folder into one of the runs' folders."""
    if install or wanted.name or wanted.negative or wanted.bundled or wanted.into:
        message = (
            "A name, a negative embedding, LoRAs and Write to the embeddings folder are for one file, not for a folder."
        )
        raise ConfigError(message)
    into = page.host.log_dir / FOLDER / checked_name(source.resolve().name or "all")
    done: list[Outcome] = []
    for outcome in convert_folder(source, into, wanted):
        done.append(outcome)
        if len(done) % 20 == 0:
            yield notice("info", f"{len(done)} files so far.")
    counts = {status: sum(each.status == status for each in done) for status in ("converted", "skipped", "failed")}
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    in_order = sorted(done, key=lambda each: ("failed", "skipped", "converted").index(each.status))
    rows = [(each.source.name, f"{each.status}: {' '.join([each.about, *each.notes])}") for each in in_order[:MAX_SHOWN]]
    more = f" The first {MAX_SHOWN} are listed." if len(done) > MAX_SHOWN else ""
    message = f"{summary}. The new files are in {into.absolute()}.{more}"
    yield (notice("warning", message) if counts["failed"] else notice("good", message)) + facts(rows, names=True)


def _free(path: Path) -> Path:
    """The path, or with a number before its extension if it exists."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def _shown(outcome: Outcome, *, link: bool) -> str:
    """What was written, with a link to download it unless visitors may not, and what it does not hold."""
    notes = "".join(notice("warning", each) for each in outcome.notes)
    file = (
        file_link(outcome.target)
        if link
        else notice("info", f"It is on the computer that shows this page: {outcome.target}")
    )
    return notice("good", f"Converted {outcome.about}.") + file + notes
