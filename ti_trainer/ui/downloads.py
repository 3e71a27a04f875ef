"""Links that download a file with the page itself, so that no file has to be served."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

LARGEST_BYTES = 2**20  # it is part of the page; 16 vectors of SDXL are 128 KB


def file_link(path: Path) -> str:
    """The path of a file, and a link that downloads it if it is not too large."""
    link = ""
    try:
        if path.stat().st_size <= LARGEST_BYTES:
            content = base64.b64encode(path.read_bytes()).decode()
            link = f'<a download="{escape(path.name)}" href="data:application/octet-stream;base64,{content}">Download</a>'
    except OSError:  # moved since
        link = "not found"
    return f'<div class="ti-file"><code>{escape(str(path.absolute()))}</code> {link}</div>'
