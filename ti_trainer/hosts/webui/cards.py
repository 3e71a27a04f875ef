"""Which embeddings were written since the WebUI started, so that open pages update their cards. Imported only inside it.

javascript/ti_trainer_updates.js updates the cards one by one: Refresh of the WebUI also lists the checkpoints again, and
hides all cards for a moment.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from modules import ui_extra_networks

_started = time.time()
_written: dict[str, float] = {}
_announced: dict[str, float] = {}


def update(embeddings: Mapping[str, Any]) -> None:
    """To be called after the WebUI has read its embeddings again, with what it found."""
    found = {}
    for name, embedding in list(embeddings.items()):
        with suppress(OSError, TypeError):  # an embedding without a file belongs to another extension
            found[name] = Path(embedding.filename).stat().st_mtime
    _written.clear()
    _written.update({name: when for name, when in found.items() if when > _started})


def written() -> Mapping[str, float]:
    """The names of these embeddings and when they were written; the WebUI looks up their previews again from now on."""
    if _announced != _written:
        _announced.clear()
        _announced.update(_written)
        for page in ui_extra_networks.extra_pages:
            if lister := getattr(page, "lister", None):  # caches which previews there are
                lister.reset()
    return dict(_written)
