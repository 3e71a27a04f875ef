"""The tab in the WebUI and the section of its settings. Imported only inside the WebUI.

This module stays imported when the user clicks Reload UI, so a run continues and the new page shows it.
"""

from __future__ import annotations

from typing import Any

from modules import shared

from ti_trainer.hosts.webui import cards, console
from ti_trainer.hosts.webui.host import WebuiHost
from ti_trainer.hosts.webui.settings import is_started_public
from ti_trainer.preprocess import job as preprocess
from ti_trainer.runs.job import Job
from ti_trainer.ui.layout import build
from ti_trainer.ui.page import Page
from ti_trainer.ui.status import ROUTE, StatusCache

TXT2IMG = {  # our option -> the component of the WebUI's txt2img tab for the same value
    "preview_prompt": "txt2img_prompt",
    "preview_negative_prompt": "txt2img_neg_prompt",
    "preview_sampling_steps": "txt2img_steps",
    "preview_sampler": "txt2img_sampling",
    "preview_cfg_scale": "txt2img_cfg_scale",
    "preview_seed": "txt2img_seed",
    "preview_width": "txt2img_width",
    "preview_height": "txt2img_height",
}
SECTION = ("ti_trainer", "TI Trainer")
JOB, PREPROCESSING = Job(bar=console.bar), preprocess.Job()
_components: dict[str, Any] = {}
_boards: list[StatusCache] = []  # of the page that was made last


def note_component(component: Any, **options: Any) -> None:
    """Remember the components of the current page's txt2img tab, which is created before ours."""
    elem_id = options.get("elem_id") or getattr(component, "elem_id", None)
    if elem_id is not None and elem_id in TXT2IMG.values():
        _components[elem_id] = component


def add_settings() -> None:
    """Add the settings of the installation, which are not those of a run."""
    about = "relative to the WebUI's data folder; empty: textual_inversion"
    folder = shared.OptionInfo("", "Folder for training runs", component_args=shared.hide_dirs, section=SECTION).info(about)
    shared.opts.add_option("ti_trainer_log_dir", folder)
    restricted: set[str] = getattr(shared.opts, "restricted_opts", set())
    restricted.add("ti_trainer_log_dir")  # visitors cannot set it


def tabs() -> list[tuple[Any, str, str]]:
    """For on_ui_tabs: the page, the tab's label and its id."""
    console.listen()
    txt2img = {option: _components[elem_id] for option, elem_id in TXT2IMG.items() if elem_id in _components}
    host = WebuiHost(is_public=is_started_public())
    page = Page(host, JOB, txt2img=txt2img, preprocessing=PREPROCESSING, changes=cards.written)
    _boards[:] = [StatusCache(page)]
    return [(build(page), "Textual Inversion", "ti_trainer")]


def add_route(_page: Any, app: Any) -> None:
    """For on_app_started: the endpoint that tells our page whether something changed, and no more: it needs no password."""
    if _boards:
        app.add_api_route(ROUTE, _boards[0].version, methods=["GET"], include_in_schema=False)
