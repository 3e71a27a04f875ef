"""The options of preprocessing, declared once for the command line, the page and the docs."""

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
    """The options of preprocessing. An instance is always valid: invalid values raise ConfigError."""

    width: int = option(
        512,
        "Width of the results in pixels, a multiple of 8: 512 for SD 1.x, 768 for SD 2.x, 1024 for SDXL.",
        label="Width",
        section="size",
        low=64,
        high=4096,
    )
    height: int = option(
        512, "Height of the results in pixels, as for Width.", label="Height", section="size", low=64, high=4096
    )
    resize: Literal["centre", "focal", "auto-size", "buckets", "keep"] = option(
        "centre",
        "How images get their size. centre: crop to the center. focal: crop around faces, edges and detail. auto-size: the "
        "best size within limits, for each image. buckets: keep the aspect ratio, in steps of 64 px and with about width x "
        "height pixels, for training with aspect-ratio buckets. keep: do not resize.",
        label="Resize and crop",
        section="size",
    )
    flip: bool = option(
        False,
        "Add a mirrored copy of each image with the same caption. Leave off if images have text or are not symmetric.",
        label="Create flipped copies",
        section="size",
    )

    face_weight: float = option(
        0.9, "Weight of faces in the focal point.", label="Focal point face weight", section="focal", low=0, high=1
    )
    entropy_weight: float = option(
        0.15,
        "Weight of the region with the most contrast in the focal point.",
        label="Focal point entropy weight",
        section="focal",
        low=0,
        high=1,
    )
    edges_weight: float = option(
        0.5,
        "Weight of edges in the focal point.",
        label="Focal point edges weight",
        section="focal",
        low=0,
        high=1,
    )
    debug_image: bool = option(
        False,
        "Draw the points found and the crop on a copy of each image, in the subfolder 'debug'.",
        label="Create debug image",
        section="focal",
    )

    min_side: int = option(
        384,
        "Minimum side of a result in pixels.",
        label="Dimension lower bound",
        section="auto_size",
        low=64,
        high=4096,
    )
    max_side: int = option(
        768,
        "Maximum side of a result in pixels.",
        label="Dimension upper bound",
        section="auto_size",
        low=64,
        high=4096,
    )
    min_area: int = option(
        64 * 64,
        "Minimum width x height of a result in pixels.",
        label="Area lower bound",
        section="auto_size",
        low=64 * 64,
        high=4096 * 4096,
    )
    max_area: int = option(
        640 * 640,
        "Maximum width x height of a result in pixels.",
        label="Area upper bound",
        section="auto_size",
        low=64 * 64,
        high=4096 * 4096,
    )
    objective: Literal["maximize area", "minimize error"] = option(
        "maximize area",
        "Choose the largest size, or the size with the closest aspect ratio to the image.",
        label="Resizing objective",
        section="auto_size",
    )
    max_error: float = option(
        0.1,
        "Maximum difference in aspect ratio between image and result: 0.1 is 10%. Others are skipped.",
        label="Error threshold",
        section="auto_size",
        low=0,
        high=1,
    )

    split: bool = option(
        False,
        "Split long images into overlapping parts instead of cropping them.",
        label="Split oversized images",
        section="split",
    )
    split_threshold: float = option(
        0.5,
        "Split an image if one part shows at most this fraction of it.",
        label="Split image threshold",
        section="split",
        low=0,
        high=1,
    )
    overlap_ratio: float = option(
        0.2,
        "The fraction of each part that overlaps the next one.",
        label="Split image overlap ratio",
        section="split",
        low=0,
        high=0.9,
    )

    recursive: bool = option(False, "Include the images in subfolders.", label="Include subfolders", section="files")
    keep_alpha: bool = option(
        False,
        "Keep the alpha channel, which training can use as loss weight. Otherwise transparent areas become white.",
        label="Keep transparency",
        section="files",
    )
    masks: str = option(
        "",
        "A folder with a grey mask for each image, of the same name; white areas are trained on (as in kohya's trainers). "
        "Masks are cropped like their images and saved next to them. Masks next to the images (a_att.png, a-masklabel.png) "
        "are always included.",
        label="Mask directory",
        section="files",
    )
    format: Literal["png", "jpg", "webp"] = option(
        "png", "png is lossless; jpg and webp are smaller, at quality 95.", label="File format", section="files"
    )

    existing_captions: Literal["ignore", "copy", "prepend", "append"] = option(
        "copy",
        "What to do with existing captions (.txt, .caption): ignore them, copy them instead of writing a new one, prepend "
        "them to the new one, or append them.",
        label="Existing Caption txt Action",
        section="captions",
    )
    captioners: str = option(
        "",
        "Captioners, separated by commas: blip (a sentence), wd14 (tags), and those of the WebUI. Empty: no captions.",
        label="Caption with",
        section="captions",
    )
    blip_model: str = option(
        "Salesforce/blip-image-captioning-base",
        "For blip: a folder with the model in the format of transformers, or a name to download at first use (1 GB).",
        label="BLIP model",
        section="captions",
    )
    tagger: str = option(
        "",
        "For wd14: a folder with model.onnx and selected_tags.csv of one of SmilingWolf's taggers on Hugging Face.",
        label="Tagger folder",
        section="tags",
    )
    general_threshold: float = option(
        0.35, "Minimum score of general tags.", label="General threshold", section="tags", low=0, high=1
    )
    character_threshold: float = option(
        0.85,
        "Minimum score of character tags.",
        label="Character threshold",
        section="tags",
        low=0,
        high=1,
    )
    tag_order: Literal["score", "alphabetical"] = option(
        "score", "Order of tags: highest score first, or alphabetical.", label="Sort tags by", section="tags"
    )
    tag_spaces: bool = option(
        True,
        "Write long_hair as long hair; emoticons such as ^_^ are kept.",
        label="Use spaces instead of underscore",
        section="tags",
    )
    tag_escape: bool = option(
        True,
        "Write brackets as \\( and \\), so that they are not read as emphasis.",
        label="Escape brackets",
        section="tags",
    )
    tag_exclude: str = option("", "Tags to leave out, separated by commas.", label="Exclude tags", section="tags")

    def __post_init__(self) -> None:
        """Check each option, then those that depend on each other."""
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
        """Plain values by option name."""
        return dataclasses.asdict(self)


def options() -> Iterator[Option]:
    """All options in the order of declaration."""
    return options_of(PreprocessConfig)
