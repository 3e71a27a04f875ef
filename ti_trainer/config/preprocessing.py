"""Every option of preprocessing, declared once: command line, page and README derive from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ti_trainer.config.options import Option, option, options_of
from ti_trainer.errors import ConfigError

SECTIONS = {
    "size": "Size and crop",
    "focal": "Auto focal point crop",
    "auto_size": "Auto-sized crop",
    "split": "Split oversized images",
    "files": "Files",
    "captions": "Captions",
    "tags": "Tags",
}


@dataclass(frozen=True)
class PreprocessConfig:
    """The options of one preprocessing. An instance is always valid: construction raises ConfigError otherwise."""

    width: int = option(
        512,
        "In pixels, a multiple of 8. SD 1.x was made for 512 x 512.",
        label="Width",
        section="size",
        low=64,
        high=4096,
    )
    height: int = option(512, "In pixels, a multiple of 8.", label="Height", section="size", low=64, high=4096)
    resize: Literal["centre", "focal", "auto-size", "buckets", "keep"] = option(
        "centre",
        "centre: cut out the middle. focal: cut where faces, edges and detail are. auto-size: the best size within limits "
        "for each image. buckets: keep the shape, in sizes of 64 px steps and about width x height pixels; train with "
        "'Use aspect-ratio buckets'. keep: the size stays as it is.",
        label="Resize and crop",
        section="size",
    )
    flip: bool = option(
        False,
        "Also make a mirrored copy of each, with the same caption. Not for what has writing or a side to it.",
        label="Create flipped copies",
        section="size",
    )

    face_weight: float = option(
        0.9, "How much faces draw the crop to themselves.", label="Focal point face weight", section="focal", low=0, high=1
    )
    entropy_weight: float = option(
        0.15,
        "How much the part whose light and dark are most uneven does: what the WebUI calls entropy.",
        label="Focal point entropy weight",
        section="focal",
        low=0,
        high=1,
    )
    edges_weight: float = option(
        0.5, "How much corners and edges do.", label="Focal point edges weight", section="focal", low=0, high=1
    )
    debug_image: bool = option(
        False,
        "Also draw what was found and where the crop went, into the sub-folder 'debug'.",
        label="Create debug image",
        section="focal",
    )

    min_side: int = option(
        384,
        "The shortest side of a result, in pixels.",
        label="Dimension lower bound",
        section="auto_size",
        low=64,
        high=4096,
    )
    max_side: int = option(
        768,
        "The longest side of a result, in pixels.",
        label="Dimension upper bound",
        section="auto_size",
        low=64,
        high=4096,
    )
    min_area: int = option(
        64 * 64,
        "The least width x height of a result.",
        label="Area lower bound",
        section="auto_size",
        low=64 * 64,
        high=4096 * 4096,
    )
    max_area: int = option(
        640 * 640,
        "The most width x height of a result.",
        label="Area upper bound",
        section="auto_size",
        low=64 * 64,
        high=4096 * 4096,
    )
    objective: Literal["maximize area", "minimize error"] = option(
        "maximize area",
        "What the best size is: the largest, or the one whose shape is nearest to the image's.",
        label="Resizing objective",
        section="auto_size",
    )
    max_error: float = option(
        0.1,
        "How far the shape may be from the image's, 0.1: a tenth. An image without such a size is passed over.",
        label="Error threshold",
        section="auto_size",
        low=0,
        high=1,
    )

    split: bool = option(
        False,
        "Cut long images into several parts that overlap, instead of cropping them.",
        label="Split oversized images",
        section="split",
    )
    split_threshold: float = option(
        0.5,
        "Which are split: those of which one part would show no more than this.",
        label="Split image threshold",
        section="split",
        low=0,
        high=1,
    )
    overlap_ratio: float = option(
        0.2,
        "How much of a part is in the next one too.",
        label="Split image overlap ratio",
        section="split",
        low=0,
        high=0.9,
    )

    recursive: bool = option(False, "Take images of sub-folders too.", label="Include sub-folders", section="files")
    keep_alpha: bool = option(
        False,
        "Keep transparency (it can weigh the loss, see Train). Otherwise what is transparent becomes white.",
        label="Keep transparency",
        section="files",
    )
    masks: str = option(
        "",
        "A folder with grey images of the images' names, white where it counts (as kohya's). They are cut as the images "
        "are and written beside them. Masks beside your images (a_att.png, a-masklabel.png) are taken along anyway.",
        label="Mask directory",
        section="files",
    )
    format: Literal["png", "jpg", "webp"] = option(
        "png", "png loses nothing; jpg and webp are smaller, at quality 95.", label="File format", section="files"
    )

    existing_captions: Literal["ignore", "copy", "prepend", "append"] = option(
        "copy",
        "What becomes of captions (.txt, .caption) that lie beside the images: ignored, copied in place of a new one, put "
        "before a new one, or after it.",
        label="Existing Caption txt Action",
        section="captions",
    )
    captioners: str = option(
        "",
        "What writes captions, separated by commas: blip (a sentence), wd14 (tags), in the WebUI its own. Empty: nothing.",
        label="Caption with",
        section="captions",
    )
    blip_model: str = option(
        "Salesforce/blip-image-captioning-base",
        "For blip: a folder with the model as transformers keeps it, or a name; that is downloaded when first used (1 GB).",
        label="BLIP model",
        section="captions",
    )
    tagger: str = option(
        "",
        "For wd14: a folder with model.onnx and selected_tags.csv, as SmilingWolf's taggers on Hugging Face have them.",
        label="Tagger folder",
        section="tags",
    )
    general_threshold: float = option(
        0.35, "Tags less sure than this are left out.", label="General threshold", section="tags", low=0, high=1
    )
    character_threshold: float = option(
        0.85,
        "Names of characters less sure than this are left out.",
        label="Character threshold",
        section="tags",
        low=0,
        high=1,
    )
    tag_order: Literal["score", "alphabetical"] = option(
        "score", "The surest first, or by the alphabet.", label="Sort tags by", section="tags"
    )
    tag_spaces: bool = option(
        True,
        "long_hair becomes long hair; faces such as ^_^ stay.",
        label="Use spaces instead of underscore",
        section="tags",
    )
    tag_escape: bool = option(
        True, "Brackets become \\( and \\), else prompts read them as emphasis.", label="Escape brackets", section="tags"
    )
    tag_exclude: str = option("", "Tags never to write, separated by commas.", label="Exclude tags", section="tags")

    def __post_init__(self) -> None:
        """Check every option by itself, then those that depend on each other."""
        for each in options():
            each.check(getattr(self, each.name))
        for name in ("width", "height"):
            if getattr(self, name) % 8:
                message = f"{name}: found {getattr(self, name)}, expected a multiple of 8."
                raise ConfigError(message, name)
        if self.keep_alpha and self.format == "jpg":
            message = "File format: found jpg, which cannot keep transparency; expected png or webp."
            raise ConfigError(message, "format")
        for low, high in (("min_side", "max_side"), ("min_area", "max_area")):
            if getattr(self, low) > getattr(self, high):
                message = f"{high}: found {getattr(self, high)}, expected at least the lower bound, {getattr(self, low)}."
                raise ConfigError(message, high)

    def to_dict(self) -> dict[str, Any]:
        """By name, as plain values."""
        return dataclasses.asdict(self)


def options() -> Iterator[Option]:
    """Every option in the order of its declaration."""
    return options_of(PreprocessConfig)
