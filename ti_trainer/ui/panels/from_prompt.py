"""The Train panel's form for an embedding that learns from a prompt or a LoRA: one button does everything."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ti_trainer.config.training import TrainConfig, problems
from ti_trainer.errors import BusyError, ConfigError, TITrainerError
from ti_trainer.formats.naming import name_warnings
from ti_trainer.prompts import CHUNK
from ti_trainer.runs.distill import DEFAULTS, UNFITTED_DEFAULTS, Distillation
from ti_trainer.runs.queue_entry import Entry
from ti_trainer.runs.teacher_lora import lora_names
from ti_trainer.ui.form import Form, starting_values, typed
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import queue
from ti_trainer.ui.panels.create import check_name
from ti_trainer.ui.panels.train import HIGHLIGHTED
from ti_trainer.ui.render import notice, refusal
from ti_trainer.ui.widgets import error_slot, error_update, whole
from ti_trainer.wording import counted

ABOUT = (
    "Teach an embedding to mean the same as a prompt, without images: quality tags, a character's description, or what to "
    "avoid in the negative prompt. Or teach it what a LoRA does. The model generates a few images first."
)
ALWAYS, MORE = ("max_steps", "preview_prompt"), ("learning_rate", "batch_size", "seed", "memory", "preview_every")
PREFIX = "ti_trainer_prompt_"
ASK = PREFIX + "ask"  # a hidden text box: what a button of a refusal asks for
QUEUED, REPLACE = "queue", "replace"
Values = Mapping[Any, Any]  # of components, as gradio passes them


@dataclass
class PromptForm:
    """The form, for the handler of its button. `fields` are the widgets that are no options of a run, by name."""

    page: Page
    form: Form
    fields: Mapping[str, Any]
    field_slots: Mapping[str, Any]
    message: Any
    start: Any
    add: Any
    ask: Any

    @property
    def inputs(self) -> set[Any]:
        """The components whose values `start` gets."""
        return {*self.fields.values(), *self.form.widgets.values()}

    @property
    def slots(self) -> dict[str, Any]:
        """The error slots by field."""
        return {**self.form.slots, **self.field_slots}

    @property
    def outputs(self) -> list[Any]:
        """What `start` updates."""
        return [self.message, *self.slots.values()]

    def wanted(self, values: Values) -> Distillation:
        """What the embedding is to mean, as entered."""
        entered = {name: values[field] for name, field in self.fields.items()}
        return Distillation(
            (entered["name"] or "").strip(),
            (entered["teacher_prompt"] or "").strip(),
            (entered["opposite_prompt"] or "").strip(),
            tuple(filter(None, map(str.strip, (entered["contexts"] or "").splitlines()))),
            bool(entered["for_negative"]),
            (entered["teacher_lora"] or "").strip(),
            float(1 if entered["teacher_lora_weight"] is None else entered["teacher_lora_weight"]),
            (entered["teacher_negative_prompt"] or "").strip(),
        )

    def options(self, values: Values) -> dict[str, Any]:
        """The options of the run that are in the form."""
        return typed({name: values[widget] for name, widget in self.form.widgets.items()})

    def updates(self, message: str, wrong: Mapping[str, str]) -> dict[Any, Any]:
        """Show the message, and what is wrong beside each field."""
        return {self.message: message, **{slot: error_update(wrong.get(name)) for name, slot in self.slots.items()}}


def panel(page: Page) -> PromptForm:
    """Add the form."""
    form = Form(page.host, {**starting_values(page.host, None), **DEFAULTS}, {}, elem_prefix=PREFIX)
    gr.HTML(f'<div class="ti-subdued">{ABOUT}</div>')
    fields: dict[str, Any] = {}
    slots: dict[str, Any] = {}

    def put(name: str, label: str, info: str, lines: int = 1, placeholder: str = "") -> None:
        fields[name] = gr.Textbox(
            label=label, info=info, lines=lines, max_lines=max(lines, 1), placeholder=placeholder, elem_id=PREFIX + name
        )
        slots[name] = error_slot()

    put("name", "Name", "The word to use in prompts, and the file name.", placeholder="my-style")
    about_name = gr.HTML(elem_id=PREFIX + "about_name")
    put("teacher_prompt", "Prompt", "What the embedding is to mean.", 3, "masterpiece, best quality, soft light, film grain")
    about_prompt = gr.HTML(elem_id=PREFIX + "about_prompt")
    info = (
        "Optional: NAME-neg is trained too, and learns to mean this, with half as many vectors as it has tokens. Takes "
        "twice as long."
    )
    put("teacher_negative_prompt", "Negative prompt", info, 2, "blurry, low quality, bad anatomy, watermark")
    with gr.Row():
        fields["teacher_lora"] = lora_field(page)
        fields["teacher_lora_weight"] = gr.Number(
            value=1, label="LoRA weight", info="Usually 0.5 to 1.", elem_id=PREFIX + "teacher_lora_weight"
        )
    slots["teacher_lora"], slots["teacher_lora_weight"] = error_slot(), error_slot()
    with gr.Row():
        form.put("max_steps")
        fields["num_vectors"] = gr.Number(
            value=0,
            label="Number of vectors",
            info="0: half as many as the prompt has tokens, 2 to 16; for a LoRA, 8.",
            elem_id=PREFIX + "num_vectors",
        )
    slots["num_vectors"] = error_slot()
    fields["for_negative"] = gr.Checkbox(
        value=False,
        label="For the negative prompt",
        info="Previews show the preview prompt with the embedding in the negative prompt.",
        elem_id=PREFIX + "for_negative",
    )
    form.put("preview_prompt")
    with gr.Accordion("Slider and contexts", open=False):
        put(
            "opposite_prompt",
            "Opposite prompt",
            "For a slider: (NAME:1) means the prompt above, and (NAME:-1) means this prompt.",
        )
        info = "Prompts to train it in, one in each line, with [name]. Empty: by itself. A slider needs some."
        put("contexts", "Contexts", info, 4, "a photo of a [name] house\na photo of a [name] car")
    with gr.Accordion("More options", open=False):
        form.put(*MORE)
    overwrite = "Replace an existing embedding of this name. Its training is lost."
    fields["overwrite"] = gr.Checkbox(
        value=False,
        label="Overwrite Old Embedding",
        info=overwrite,
        visible=not page.is_public,
        elem_id=PREFIX + "overwrite",
    )
    message = gr.HTML(elem_id=PREFIX + "message")
    with gr.Row(elem_classes=["ti-side-by-side"]):
        add = gr.Button("Add to queue", elem_id=PREFIX + "queue")
        start = gr.Button("Learn", variant="primary", elem_id=PREFIX + "start")
    with gr.Row(elem_classes=["ti-hidden"]):
        ask = unsaved(gr.Textbox(value="", elem_id=ASK))
    for each in fields.values():
        unsaved(each)
    for name in ("name", "overwrite"):
        listen(fields[name].change, partial(check_name, page), [fields["name"], fields["overwrite"]], [about_name])
    prompts = [fields["teacher_prompt"], fields["opposite_prompt"], fields["teacher_lora"]]
    for each in prompts:
        listen(each.change, partial(check_prompt, page), prompts, [about_prompt])
    usual = [form.widgets[name] for name in UNFITTED_DEFAULTS]
    learned = [fields["teacher_lora"], fields["opposite_prompt"]]
    for each in learned:
        listen(each.change, follow_defaults, [*learned, *usual], usual)
    return PromptForm(page, form, fields, slots, message, start, add, ask)


def lora_field(page: Page) -> Any:
    """The field for a LoRA: one in the host's folder, or a file, which visitors of a public page may not name."""
    names, label, elem_id = lora_names(page.host), "LoRA", PREFIX + "teacher_lora"
    of_prompt = "The prompt is then its trigger words, or empty."
    if page.is_public:
        info = f"Learn what it does. {of_prompt}" if names else "There are no LoRAs on this server."
        return gr.Dropdown(["", *names], value="", label=label, info=info, elem_id=elem_id)
    if names:
        info = f"Learn what it does: its name, or a .safetensors file. {of_prompt}"
        return gr.Dropdown(["", *names], value="", label=label, info=info, allow_custom_value=True, elem_id=elem_id)
    info = f"Learn what it does: a .safetensors file. {of_prompt}"
    return gr.Textbox(
        label=label, info=info, lines=1, max_lines=1, placeholder="loras/my-style.safetensors", elem_id=elem_id
    )


def check_prompt(page: Page, prompt: str, opposite: str, lora: str) -> str:
    """How many tokens the prompt has, and how many vectors that makes."""
    if not (prompt or "").strip() or (lora or "").strip():
        return ""
    try:
        model = page.host.open_model()
        _, vectors = Distillation("", prompt, opposite or "").start(model)
        tokens = len(next(iter(model.token_embeddings(prompt).values())))
    except TITrainerError as error:
        return notice("error", str(error))
    return notice("info", f"{counted(tokens, 'token')}: {counted(vectors, 'vector')} by default.")


def follow_defaults(lora: str, opposite: str, *values: Any) -> list[Any]:
    """Updates of the fields that have other defaults for a LoRA or a slider; values that the user gave stay."""
    unfitted = (lora or "").strip() or (opposite or "").strip()
    before, after = (DEFAULTS, UNFITTED_DEFAULTS) if unfitted else (UNFITTED_DEFAULTS, DEFAULTS)
    return [
        after[name] if value == before[name] else gr.update() for name, value in zip(UNFITTED_DEFAULTS, values, strict=True)
    ]


def wire(form: PromptForm) -> list[Any]:
    """Connect the buttons; returns their events, for `.then`."""

    def asked(values: Values) -> dict[Any, Any]:
        wanted = (values[form.ask] or "").split()
        return start(form, values, wanted) if wanted else {form.message: gr.update()}  # gradio 6 clears a new text box

    return [
        listen(form.start.click, partial(start, form), form.inputs, form.outputs),
        listen(form.add.click, partial(start, form, wanted=[QUEUED]), form.inputs, form.outputs),
        listen(form.ask.change, asked, {*form.inputs, form.ask}, form.outputs),
    ]


def start(form: PromptForm, values: Values, wanted: Collection[str] = ()) -> dict[Any, Any]:
    """Create the embedding and start the run, or queue that; or show beside each field what is wrong with it."""
    learned, options = form.wanted(values), form.options(values)
    wrong, warnings, said = problems(options), list[str](), ""
    if not learned.name:
        wrong["name"] = "Name: found an empty text, expected the name of the new embedding."
    count = 0
    try:
        count = whole(values[form.fields["num_vectors"]], "Number of vectors")
        if not 0 <= count <= CHUNK:
            wrong["num_vectors"] = f"Number of vectors: found {count}, expected 1 to {CHUNK}, or 0."
    except ConfigError as error:
        wrong["num_vectors"] = str(error)
    try:
        overwrite = form.page.overwrite(values[form.fields["overwrite"]] or REPLACE in wanted)
        config = learned.config({**form.page.host.defaults, **DEFAULTS, **options})
        if not wrong and QUEUED in wanted:
            said = _queued(form.page, learned, config, count or None, overwrite=overwrite)
        elif not wrong:
            form.page.refuse_if_busy("learn from a prompt")
            warn = warnings.append
            learned.begin(form.page.host, config, count or None, form.page.job.start, overwrite=overwrite, warn=warn)
    except ConfigError as error:
        if error.option not in form.slots:
            return form.updates(refusal(error, _ways_out(form.page, error, wanted)), wrong)
        wrong.setdefault(error.option, str(error))
    except (TITrainerError, OSError) as error:
        return form.updates(refusal(error), wrong)
    if wrong:
        return form.updates(notice("error", HIGHLIGHTED), wrong)
    return form.updates(notice("good", said) + "".join(notice("warning", each) for each in warnings), {})


def _queued(page: Page, learned: Distillation, config: TrainConfig, count: int | None, *, overwrite: bool) -> str:
    """Add it to the queue; ConfigError for what can be refused without training anything."""
    learned.check(page.host, config, overwrite=overwrite)
    model = page.host.open_model()  # only for its tokenizer
    name_warnings(model, page.host.embeddings_dir, learned.name)
    learned.start(model, count)
    return queue.add(page, Entry.of_prompt(learned, config, count, overwrite=overwrite))


def _ways_out(page: Page, error: ConfigError, wanted: Collection[str]) -> dict[str, str]:
    """The ways out of a refusal."""
    if isinstance(error, BusyError):
        return {"Add to queue": f"ask:{ASK} {' '.join({*wanted, QUEUED})}"}
    if error.option == "overwrite" and not page.is_public:
        return {"Replace the existing embedding": f"ask:{ASK} {' '.join({*wanted, REPLACE})}"}
    return {}
