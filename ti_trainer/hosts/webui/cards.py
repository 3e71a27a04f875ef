"""Which words of the WebUI were written to since it started: pages have their cards to make anew. Imported only inside it.

One by one, by javascript/ti_trainer_news.js: the WebUI's own Refresh lists the checkpoints anew as well, and whoever looks
for one just then finds none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from modules import ui_extra_networks
from modules.sd_hijack import model_hijack

_started = time.time()
_written: dict[str, float] = {}
_told: dict[str, float] = {}


def look() -> None:
    """Once the host has read its embeddings anew."""
    found = {}
    for name, embedding in list(model_hijack.embedding_db.word_embeddings.items()):
        with suppress(OSError, TypeError):  # one without a file is somebody else's
            found[name] = Path(embedding.filename).stat().st_mtime
    _written.clear()
    _written.update({name: when for name, when in found.items() if when > _started})


def written() -> Mapping[str, float]:
    """These words, and when; what is asked of the host about them from now on, it looks up anew."""
    if _told != _written:
        _told.clear()
        _told.update(_written)
        for page in ui_extra_networks.extra_pages:
            if lister := getattr(page, "lister", None):  # remembers which previews there are
                lister.reset()
    return dict(_written)
