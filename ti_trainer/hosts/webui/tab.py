"""The tab in the WebUI and the section of its settings. Imported only inside the WebUI.

This module stays imported when the user clicks Reload UI, so the new page shows the same jobs. Modules that need the
WebUI's are imported in `tabs`: one that cannot be imported becomes a message in the tab.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from modules import shared

from ti_trainer.errors import TITrainerError
from ti_trainer.hosts import detection

if TYPE_CHECKING:
    from ti_trainer.preprocess import job as preprocess
    from ti_trainer.runs.job import Job
    from ti_trainer.runs.queue import Queue
    from ti_trainer.runs.quick_job import QuickJob
    from ti_trainer.ui.status import StatusCache
    from ti_trainer.workbench.compare_job import CompareJob

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
_components: dict[str, Any] = {}
_boards: list[StatusCache] = []  # of the page that was made last


def note_component(component: Any, **options: Any) -> None:
    """Remember the components of the current page's txt2img tab, which is created before ours."""
    elem_id = options.get("elem_id") or getattr(component, "elem_id", None)
    if elem_id is not None and elem_id in TXT2IMG.values():
        _components[elem_id] = component


def add_settings() -> None:
    """Add the settings of the installation, which are not those of a run."""
    if not detection.detect().host:
        return
    about = "relative to the WebUI's data folder; empty: textual_inversion"
    folder = shared.OptionInfo("", "Folder for training runs", component_args=shared.hide_dirs, section=SECTION).info(about)
    shared.opts.add_option("ti_trainer_log_dir", folder)
    restricted: set[str] = getattr(shared.opts, "restricted_opts", set())
    restricted.add("ti_trainer_log_dir")  # visitors cannot set it


def tabs() -> list[tuple[Any, str, str]]:
    """For on_ui_tabs: the page, the tab's label and its id. Never raises: the WebUI would leave the tab out."""
    _boards.clear()
    try:
        page = _page()
    except Exception as error:  # anything that another version of the WebUI may raise
        from ti_trainer.ui import unavailable

        page = unavailable.build(str(error) if isinstance(error, TITrainerError) else detection.explain(error))
    return [(page, "Textual Inversion", "ti_trainer")]


def _page() -> Any:
    host = detection.find_host()
    from ti_trainer.hosts.webui import cards, console
    from ti_trainer.ui.layout import build
    from ti_trainer.ui.page import Page
    from ti_trainer.ui.status import StatusCache

    console.listen()
    job, preprocessing, quick, comparing, queue = _jobs()
    txt2img = {option: _components[elem_id] for option, elem_id in TXT2IMG.items() if elem_id in _components}
    page = Page(host, job, None, txt2img, preprocessing, quick, cards.written, comparing, queue)
    built = build(page)
    _boards.append(StatusCache(page))
    return built


@lru_cache(1)
def _jobs() -> tuple[Job, preprocess.Job, QuickJob, CompareJob, Queue]:
    """The WebUI's one training, preprocessing, quick training, comparison and queue, the same on all pages."""
    from ti_trainer.hosts.webui import console
    from ti_trainer.preprocess import job as preprocess
    from ti_trainer.runs.job import Job
    from ti_trainer.runs.queue import Queue
    from ti_trainer.runs.quick_job import QuickJob
    from ti_trainer.workbench.compare_job import CompareJob

    return Job(bar=console.bar), preprocess.Job(), QuickJob(), CompareJob(), Queue()


def add_route(_page: Any, app: Any) -> None:
    """For on_app_started: the endpoint that tells our page what has changed; without the password, whether something has."""
    if _boards:
        from ti_trainer.ui.status import route

        app.router.routes.insert(0, route(_boards[0], partial(_knows_password, app)))


def _knows_password(app: Any, request: Any) -> bool:
    """Whether gradio would answer this request too."""
    if app.auth is None and getattr(app, "auth_dependency", None) is None:
        return True
    users = [each.endpoint for each in app.routes if getattr(each, "path", "") == "/user"]
    return bool(users) and users[0](request) is not None
