"""Lay out all panels on one page and connect them. The caller serves the page, or the host puts it into its own tab."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import gradio as gr

from ti_trainer.ui import api, prompt_fields
from ti_trainer.ui.gradio_compat import blocks, listen
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import (
    caption_editor,
    compare,
    create,
    embeddings,
    form_fill,
    from_prompt,
    generate,
    image_quality,
    mask_brush,
    preflight,
    preprocess,
    queue,
    quick_train,
    report,
    runs,
    status_strip,
    train,
    train_progress,
)
from ti_trainer.ui.panels.shared_folder import SharedFolder
from ti_trainer.ui.polling import poll

# The WebUI counts tokens when a user types, or when it is told to. Its tab may be shown late, and at its end on a phone.
TO_TXT2IMG = """() => {
    window.switch_to_txt2img?.();
    window.recalculate_prompts_txt2img?.();
    const show = (tries) => {
        const prompt = window.gradioApp?.().querySelector('#txt2img_prompt textarea');
        if (prompt?.getClientRects().length) {
            prompt.scrollIntoView({ block: 'nearest' });
        } else if (tries) {
            setTimeout(show, 100, tries - 1);
        }
    };
    show(50);
}"""
REFRESH = "() => { window.tiTrainerRefresh(); }"
# Tabs are found by their labels, since gradio's own ways to select one differ from version to version.
TO_TAB = "() => {{ window.tiTrainerShow('{}'); }}"


def build(page: Page) -> gr.Blocks:
    """The page."""
    with blocks("TI Trainer") as root, gr.Column(elem_classes=["ti-trainer"]):
        strip = status_strip.panel(page)
        with gr.Tabs(elem_id="ti_trainer_tabs", selected="quick"):
            with gr.Tab("Quick train", id="quick"):
                quick = quick_train.panel(page)
            with gr.Tab("Create embedding", id="create"):
                create_panel = create.panel(page)
            with gr.Tab("Preprocess", id="preprocess"), gr.Tabs(elem_id="ti_trainer_preprocess_tabs"):
                with gr.Tab("Create dataset", id="make"):
                    preprocess_panel = preprocess.panel(page)
                with gr.Tab("Edit captions", id="captions") as captions_tab:
                    captions_panel = caption_editor.panel(page)
                with gr.Tab("Image quality", id="quality"):
                    quality_panel = image_quality.panel(page)
                with gr.Tab("Paint masks", id="masks"):
                    masks_panel = mask_brush.panel(page)
            with gr.Tab("Train", id="train"), gr.Row(elem_classes=["ti-columns"]):
                with gr.Column(elem_classes=["ti-form"]), gr.Tabs(elem_id="ti_trainer_train_tabs"):
                    with gr.Tab("From images", id="images"):
                        form = train.panel(page)
                    with gr.Tab("From a prompt", id="prompt"):
                        prompt_form = from_prompt.panel(page)
                with gr.Column(elem_classes=["ti-results"]):
                    queue_parts = queue.panel(page)
                    preflight_part = preflight.panel(form)
                    progress_panel = train_progress.panel(page)
            with gr.Tab("Runs", id="runs") as runs_tab:
                runs_panel = runs.panel(page)
            with gr.Tab("Embeddings", id="embeddings") as embeddings_tab:
                embeddings_panel = embeddings.panel(page)
            if page.txt2img:
                prompts = page.txt2img
            else:
                with gr.Tab("Generate", id="generate"):
                    prompts = generate.panel(page).fields
        report.panel(page)
        live = {
            **strip,
            **progress_panel.components,
            **preprocess_panel.parts,
            **quick.live,
            **embeddings_panel.compare.live,
            **queue_parts,
            "names": form.name,
            "presets": form.presets.preset,
            "runs": runs_panel.chosen,
        }
        poll(lambda state: train_progress.refresh(page, state, list(live)), list(live.values()))
        loaded, filled_first = form_fill.panel(form)
        filled_from_run = form_fill.wire_runs(form, runs_panel, TO_TAB.format("Train"))
        listen(runs_tab.select, partial(runs.opened, page), [runs_panel.chosen], runs_panel.lists)
        api.panel(page)
        create.wire(page, create_panel, form.name)
        for button, prepare in {form.start: None, **form.ways}.items():
            started = listen(button.click, partial(train.start, form, prepare=prepare), form.inputs, form.outputs)
            listen(started.then, lambda: gr.update(visible=False), [], [preflight_part], js=REFRESH)
        for button, prepare in form.queueing.items():
            add = partial(train.start, form, prepare=prepare, queued=True)
            listen(listen(button.click, add, form.inputs, form.outputs).then, None, js=REFRESH)
        for begun in from_prompt.wire(prompt_form):
            listen(begun.then, lambda: gr.update(visible=False), [], [preflight_part], js=REFRESH)
        for continued in runs_panel.continued:
            listen(continued.then, None, js=REFRESH)
        listen(preprocess_panel.started.then, None, js=REFRESH)
        places: dict[str, preprocess.Place] = {
            "Edit captions": (captions_panel.folder, captions_panel.opens_at),
            "Image quality": (quality_panel.folder, quality_panel.checks_at),
            "Paint masks": (masks_panel.folder, masks_panel.opens_at),
        }
        preprocess.wire_next_steps(preprocess_panel, form, places, TO_TAB)
        folders = [*(folder for folder, _ in places.values()), create_panel.images, form.images]
        shared = SharedFolder(page, preprocess_panel.widgets["source"], folders, quick)
        shared.wire()
        shared.share_destination_at(preprocess_panel.started.then, preprocess_panel.widgets["destination"])
        for filled in (filled_first, filled_from_run):
            shared.share_at(filled.then, form.images)
        captions_panel.opens_first_at(captions_tab.select)
        quick_train.wire(quick, form, preprocess_panel, shared)
        embeddings.wire(embeddings_panel, embeddings_tab, prompts, _to_prompt(page))
        for use in (progress_panel["use"], quick.live["quick_use"]):
            _wire_use(page, use, prompts)
        copies = progress_panel["compare_copies"], quick.live["quick_compare"]
        compare.wire(embeddings_panel.compare, runs_panel, loaded, *copies)
        listen(
            progress_panel["open_run"].click,
            lambda: runs.select_current(page),
            [],
            [runs_panel.chosen],
            js=TO_TAB.format("Runs"),
        )
    return root


def _wire_use(page: Page, button: Any, fields: Mapping[str, Any]) -> None:
    """Have the button put the run's embedding into the prompt, and the settings of a DreamArtist run with it."""
    wanted = ("preview_prompt", "preview_negative_prompt", "preview_cfg_scale")
    components = {name: fields[name] for name in wanted if name in fields}
    inserted = gr.State(prompt_fields.NOTHING)  # for each visitor

    def use(values: dict[Any, Any]) -> dict[Any, Any]:
        entered = {name: values[component] for name, component in components.items()}
        now = page.job.snapshot()
        if entered.get("preview_prompt") == generate.default_prompt(page):
            entered["preview_prompt"] = generate.default_prompt(page, now.name)
        new, inserted_now = prompt_fields.replace_embedding(values[inserted], now, entered)
        return {inserted: inserted_now, **{component: new[name] for name, component in components.items()}}

    used = listen(button.click, use, {inserted, *components.values()}, [inserted, *components.values()])
    listen(used.then, None, js=_to_prompt(page))


def _to_prompt(page: Page) -> str:
    """The script that shows the fields with the prompts."""
    return TO_TXT2IMG if page.txt2img else TO_TAB.format("Generate")
