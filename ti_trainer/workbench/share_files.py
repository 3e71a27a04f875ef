"""Write the files that an embedding is published with.

    <name>.safetensors  <name>-card.png  <name>.preview.png  <name>.md  <name>.json

The JSON is what AUTOMATIC1111's extra networks read and write beside a model: modules/ui_extra_networks_user_metadata.py of
v1.10.1, and its extension Lora for the keys beyond description and notes. There is no .civitai.info: that is the site's own
answer about a file that is published there, with its numbers.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from ti_trainer import formats
from ti_trainer.errors import ConfigError
from ti_trainer.files import atomic, write_bytes
from ti_trainer.workbench import share_page
from ti_trainer.workbench.share import Shared

FOLDER = "shared"  # within the log folder
SD_VERSIONS = {"SD 1.x": "SD1", "SD 2.x": "SD2", "SDXL": "SDXL"}  # as the WebUI writes them


def contents(shared: Shared) -> dict[str, str]:
    """What each file holds, by its name."""
    found = {f"{each.name}.safetensors": f"{each.name}: vectors, name, step, base model" for each in shared.embeddings}
    what = "its preview" if shared.preview else "a plain image"
    found[f"{shared.name}-card.png"] = f"{what} with the embedding in it, which A1111 and Forge read"
    if shared.preview:
        found[f"{shared.name}.preview.png"] = "the preview, which WebUIs show"
    found[f"{shared.name}.md"] = "a page that says what it is and how to install it"
    found[f"{shared.name}.json"] = "the same in short, for the cards of A1111 and Forge"
    return found


def metadata(shared: Shared) -> dict[str, Any]:
    """For NAME.json."""
    positive = "" if shared.for_negative else shared.name
    negative = shared.name if shared.for_negative else shared.negative.name if shared.negative else ""
    return {
        "description": shared.description or f"Textual Inversion for {shared.embedding.family}",
        "sd version": SD_VERSIONS.get(shared.embedding.family, "Unknown"),
        "activation text": positive,
        **({"preferred weight": shared.weight} if shared.weight else {}),
        **({"negative text": negative} if negative else {}),
        "notes": share_page.notes(shared),
    }


def write(shared: Shared, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the files, all of them or none; ConfigError if one exists, unless it may be overwritten."""
    shared.check()
    wanted = [folder / name for name in contents(shared)]
    existing = [path.name for path in wanted if path.exists()]
    if existing and not overwrite:
        message = f"{folder} has {', '.join(existing)} already: choose another folder, or overwrite them."
        raise ConfigError(message, "overwrite")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder if folder.is_dir() else folder.parent, prefix=f".{shared.name}-") as new:
        try:
            _write(shared, Path(new))
        except OSError as error:  # names a file that no longer exists then
            raise OSError(error.errno, error.strerror or str(error), str(folder)) from error
        folder.mkdir(exist_ok=True)
        for path in wanted:
            (Path(new) / path.name).replace(path)
    return wanted


def _write(shared: Shared, folder: Path) -> None:
    embeddings, image = shared.embeddings, shared.image
    for each in embeddings:
        formats.write(each, folder / f"{each.name}.safetensors")
    shown = image or Image.new("RGB", (512, 512), (52, 58, 72))
    negative = embeddings[1] if len(embeddings) > 1 else None
    formats.write_card(shown, embeddings[0], folder / f"{shared.name}-card.png", negative=negative)
    if image is not None:
        with atomic(folder / f"{shared.name}.preview.png") as new:
            image.save(new, "PNG")
    write_bytes(folder / f"{shared.name}.md", share_page.page(shared).encode())
    text = json.dumps(metadata(shared), indent=4, ensure_ascii=False)
    write_bytes(folder / f"{shared.name}.json", text.encode())
