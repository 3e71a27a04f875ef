"""A second extension, for tests: lets them ask the WebUI's process to compare numbers. Put into its data folder."""

from pathlib import Path

SCRIPT = """
import sys
from modules import call_queue, script_callbacks

def add(_, app):
    def compare(clip_skip: int):
        sys.path.append({folder!r})  # not earlier: the host takes back what scripts add to it
        from check_in_webui import compare
        from modules import shared
        before = shared.opts.CLIP_stop_at_last_layers
        with call_queue.queue_lock:
            shared.opts.data["CLIP_stop_at_last_layers"] = clip_skip
            try:
                return compare(clip_skip)
            finally:
                shared.opts.data["CLIP_stop_at_last_layers"] = before
    app.add_api_route("/ti-check/compare", compare, methods=["GET"])

script_callbacks.on_app_started(add)
"""


def install(data: Path) -> None:
    """Write it, pointing at the comparison among our tests."""
    script = data / "extensions" / "ti-check" / "scripts" / "check.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(__file__).parents[1] / "hosts" / "webui"
    script.write_text(SCRIPT.format(folder=str(folder)), encoding="utf-8")
