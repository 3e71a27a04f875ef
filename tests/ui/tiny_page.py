"""The whole page over TinyHost, in a process of its own: `python tiny_page.py FOLDER [STEP_SECONDS]`. No network to load.

FOLDER holds `images`; embeddings and runs go there too. STEP_SECONDS makes a step take that long, so that a test can act
in the middle of a run. Under gradio 4 it has Forge's changes to gradio; pages of single panels go without them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import forge_gradio
from fakes import TinyHost, TinyModel

from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.job import Job
from ti_trainer.ui.app import serve
from ti_trainer.ui.gradio_compat import MAJOR
from ti_trainer.ui.layout import build
from ti_trainer.ui.page import Page
from ti_trainer.ui.status import StatusCache


class SlowModel(TinyModel):
    """As slow as wished."""

    step_s = 0.0

    def predict(self, *given: object) -> object:
        time.sleep(self.step_s)
        return super().predict(*given)


def main(folder: Path, step_s: float) -> None:
    """Serve until killed; the address is the first line of the output."""
    model = SlowModel()
    model.step_s = step_s
    host = TinyHost(folder, model, defaults={"stop_when_done": False})  # a test decides when a run ends
    if embeddings_dir.find(host.embeddings_dir, "x-word") is None:
        embeddings_dir.create(host.embeddings_dir, model, "x-word", "red cat", 2)
    if MAJOR == 4:
        forge_gradio.apply()
    page = Page(host, Job())
    serve(build(page), status=StatusCache(page), ready=lambda url: print(url, flush=True))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), float((sys.argv[2:] or ["0"])[0]))
