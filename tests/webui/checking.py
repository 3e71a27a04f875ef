"""A second extension, for tests, put into the data folder. It lets them ask the WebUI's process to compare numbers.

It also teaches the WebUI's loader small models where it needs to be taught.
"""

from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from modules import call_queue, script_callbacks

sys.path.append({tests!r})
import small_models
small_models.teach(Path({data!r}))

def ours():
    sys.path.append({folder!r})  # not earlier: the host takes back what scripts add to it
    import check_in_webui
    return check_in_webui

def add(_, app):
    def compare(clip_skip: int):
        from modules import shared
        before = shared.opts.CLIP_stop_at_last_layers
        with call_queue.queue_lock:
            shared.opts.data["CLIP_stop_at_last_layers"] = clip_skip
            try:
                return ours().compare(clip_skip)
            finally:
                shared.opts.data["CLIP_stop_at_last_layers"] = before

    def compare_file(name: str):
        with call_queue.queue_lock:
            return ours().compare_file(name)

    def describe():
        from ti_trainer.hosts.webui.host import WebuiHost
        return WebuiHost(is_public=False).describe()

    app.add_api_route("/ti-check/describe", describe, methods=["GET"])
    app.add_api_route("/ti-check/compare", compare, methods=["GET"])
    app.add_api_route("/ti-check/compare-file", compare_file, methods=["GET"])

script_callbacks.on_app_started(add)
"""


def install(data: Path) -> None:
    """Write it, pointing at the comparison among our tests."""
    script = data / "extensions" / "ti-check" / "scripts" / "check.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(__file__).parents[1] / "hosts" / "webui"
    script.write_text(SCRIPT.format(folder=str(folder), tests=str(Path(__file__).parent), data=str(data)), encoding="utf-8")
