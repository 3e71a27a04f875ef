"""A second extension, for tests, put into the data folder: adds the routes of `in_host` and teaches `small_models`."""

from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from modules import script_callbacks

sys.path.append({tests!r})
import in_host
import small_models

small_models.teach(Path({data!r}))
script_callbacks.on_app_started(lambda _, app: in_host.add_routes(app))
"""


def install(data: Path) -> None:
    """Write it, pointing at the modules among our tests."""
    script = data / "extensions" / "ti-check" / "scripts" / "check.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), data=str(data)), encoding="utf-8")
