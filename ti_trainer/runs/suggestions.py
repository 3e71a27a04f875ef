"""Suggest the name and the init text of a new embedding."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ti_trainer.data.caption_text import read_caption
from ti_trainer.errors import DatasetError, TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.host import Host
from ti_trainer.prompts import FUNCTION_WORDS

COMMON = 0.6  # of the captions have a word that is suggested as init text
GENERIC = FUNCTION_WORDS | {"background", "image", "no", "photograph", "some", "there", "this", "white", "black"}


def is_trained(host: Host, name: str) -> bool:
    """Whether there is an embedding of this name that is more than the vectors it was created with."""
    if embeddings_dir.find(host.embeddings_dir, name) is None:
        return False
    try:
        embedding, _ = embeddings_dir.load(host.embeddings_dir, name)
    except (TITrainerError, OSError):
        return True  # it cannot be read: not ours to replace
    return embedding.step > 0 or not isinstance(embedding.info.get("init_text"), str)


def free_name(host: Host, name: str, taken: Collection[str] = ()) -> str:
    """The name, with a number if an embedding of this name is trained, or if it is one of those `taken`."""
    numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(each for each in numbered if each.casefold() not in taken and not is_trained(host, each))


def suggested_text(captions: Sequence[str]) -> str:
    """The word that most captions have in common, as an init text; "" if there is none."""
    words = Counter[str]()
    for caption in captions:
        words.update({word for each in caption.split() if (word := each.strip(".,;:()\"'").lower()).isalpha()} - GENERIC)
    order = {word: place for place, word in enumerate(" ".join(captions).lower().replace(",", " ").split())}
    word, count = max(words.items(), key=lambda item: (item[1], -order.get(item[0], 0)), default=("", 0))
    return word if len(captions) > 1 and count >= COMMON * len(captions) else ""


def read_captions(files: Iterable[Path]) -> list[str]:
    """The texts of caption files, as far as they can be read."""
    found = []
    for path in files:
        try:
            found.append(read_caption(path))
        except (DatasetError, OSError):  # noqa: PERF203 - preprocessing reports it
            continue
    return found
