"""The panel that shows a prompt as the model sees it."""

from __future__ import annotations

from functools import partial

import gradio as gr

from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import inspect_view
from ti_trainer.ui.panels.generate import default_prompt
from ti_trainer.ui.render import refusal
from ti_trainer.wording import encodable
from ti_trainer.workbench.prompt_view import view

PREFIX = "ti_trainer_tokens_"
LONGEST = 20_000  # characters: each token is an element of the page


def panel(page: Page) -> None:
    """Add the prompt, and its tokens below."""
    prompt = gr.Textbox(
        label="Prompt",
        info="Shown as the model gets it: tokens with their ids and weights, in chunks of 75, and the embeddings in it.",
        value=default_prompt(page),
        lines=3,
        elem_id=PREFIX + "prompt",
    )
    button = gr.Button("Show tokens", variant="primary", elem_id=PREFIX + "show")
    tokens = gr.HTML(elem_id=PREFIX + "tokens")
    unsaved(prompt)
    listen(button.click, partial(tokens_of, page), [prompt], [tokens], show_progress="minimal")


def tokens_of(page: Page, prompt: str | None) -> str:
    """The prompt's tokens; the reason if they cannot be shown."""
    try:
        if len(prompt or "") > LONGEST:
            message = f"The prompt has {len(prompt or '')} characters; expected at most {LONGEST}."
            raise ConfigError(message)
        model = page.host.open_model()
        seen = view(model, prompt or "", *embeddings_dir.usable(page.host.embeddings_dir, model))
        return encodable(inspect_view.prompt(seen))
    except (TITrainerError, OSError) as error:
        return refusal(error)
