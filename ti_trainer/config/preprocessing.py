"""Every option of preprocessing: the command line, the page and the docs are built from it."""

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
    """The options of one preprocessing run. An instance is always valid: construction raises ConfigError otherwise."""

    width: int = option(
        512,
        "Width in pixels, a multiple of 8: 512 for SD 1.x, 768 for SD 2.x, 1024 for SDXL.",
        label="Width",
        section="size",
        low=64,
        high=4096,
    )
    height: int = option(512, "Height in pixels, a multiple of 8.", label="Height", section="size", low=64, high=4096)
    resize: Literal["centre", "focal", "auto-size", "buckets", "keep"] = option(
        "centre",
        "How to crop: centre, focal (around faces, edges and detail), auto-size (the best size for each image within "
        "limits), buckets (keep the aspect ratio; train with 'Use aspect-ratio buckets') or keep (no change).",
        label="Resize and crop",
        section="size",
    )
    flip: bool = option(
        False,
        "Also save a mirrored copy of each image with the same caption. Not for subjects with text or an asymmetric shape.",
        label="Create flipped copies",
        section="size",
    )

    face_weight: float = option(
        0.9, "How strongly faces attract the crop, 0 to 1.", label="Focal point face weight", section="focal", low=0, high=1
    )
    entropy_weight: float = option(
        0.15,
        "How strongly the area with the most varied brightness attracts the crop, 0 to 1.",
        label="Focal point entropy weight",
        section="focal",
        low=0,
        high=1,
    )
    edges_weight: float = option(
        0.5,
        "How strongly corners and edges attract the crop, 0 to 1.",
        label="Focal point edges weight",
        section="focal",
        low=0,
        high=1,
    )
    debug_image: bool = option(
        False,
        "Also save images that show the detected points and the crop, in the subfolder 'debug'.",
        label="Create debug image",
        section="focal",
    )

    min_side: int = option(
        384,
        "Shortest side of a result in pixels, at least 64.",
        label="Dimension lower bound",
        section="auto_size",
        low=64,
        high=4096,
    )
    max_side: int = option(
        768,
        "Longest side of a result in pixels, up to 4096.",
        label="Dimension upper bound",
        section="auto_size",
        low=64,
        high=4096,
    )
    min_area: int = option(
        64 * 64,
        "Smallest width x height of a result, in square pixels.",
        label="Area lower bound",
        section="auto_size",
        low=64 * 64,
        high=4096 * 4096,
    )
    max_area: int = option(
        640 * 640,
        "Largest width x height of a result, in square pixels.",
        label="Area upper bound",
        section="auto_size",
        low=64 * 64,
        high=4096 * 4096,
    )
    objective: Literal["maximize area", "minimize error"] = option(
        "maximize area",
        "Which size to choose: the largest, or the one closest to the image's aspect ratio.",
        label="Resizing objective",
        section="auto_size",
    )
    max_error: float = option(
        0.1,
        "Largest change of the aspect ratio, such as 0.1 for 10%. Images that no size fits are skipped.",
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
        "Split an image if a single crop would show no more than this fraction of it.",
        label="Split image threshold",
        section="split",
        low=0,
        high=1,
    )
    overlap_ratio: float = option(
        0.2,
        "Overlap of neighbouring parts, 0 to 0.9.",
        label="Split image overlap ratio",
        section="split",
        low=0,
        high=0.9,
    )

    recursive: bool = option(False, "Also process the images in subfolders.", label="Include sub-folders", section="files")
    keep_alpha: bool = option(
        False,
        "Keep the alpha channel, which training can use as loss weight. When off, transparent areas become white.",
        label="Keep transparency",
        section="files",
    )
    masks: str = option(
        "",
        "Folder of masks: grey images with the names of the images, white where the loss counts. They are cropped with the "
        "images, as are masks beside them (a_att.png, a-masklabel.png).",
        label="Mask directory",
        section="files",
    )
    format: Literal["png", "jpg", "webp"] = option(
        "png",
        "Format of the results. png is lossless; jpg and webp are smaller, at quality 95.",
        label="File format",
        section="files",
    )

    existing_captions: Literal["ignore", "copy", "prepend", "append"] = option(
        "copy",
        "What to do with caption files (.txt, .caption) beside the images: ignore them, copy them instead of writing new "
        "captions, or prepend or append them to new captions.",
        label="Existing Caption txt Action",
        section="captions",
    )
    captioners: str = option(
        "",
        "Captioners, separated by commas: blip (sentences), wd14 (tags), or one of the WebUI's own. Empty writes no "
        "captions.",
        label="Caption with",
        section="captions",
    )
    blip_model: str = option(
        "Salesforce/blip-image-captioning-base",
        "BLIP model: a transformers folder, or a name on Hugging Face, which is downloaded on first use (1 GB).",
        label="BLIP model",
        section="captions",
    )
    tagger: str = option(
        "",
        "Folder with model.onnx and selected_tags.csv of a WD14 tagger, such as SmilingWolf's on Hugging Face.",
        label="Tagger folder",
        section="tags",
    )
    general_threshold: float = option(
        0.35, "Lowest confidence of a tag, usually 0.3 to 0.5.", label="General threshold", section="tags", low=0, high=1
    )
    character_threshold: float = option(
        0.85,
        "Lowest confidence of a character's name, usually 0.7 to 0.9.",
        label="Character threshold",
        section="tags",
        low=0,
        high=1,
    )
    tag_order: Literal["score", "alphabetical"] = option(
        "score", "Order of the tags: by confidence, or alphabetical.", label="Sort tags by", section="tags"
    )
    tag_spaces: bool = option(
        True,
        "Write long hair instead of long_hair. Emoticons such as ^_^ are kept.",
        label="Use spaces instead of underscore",
        section="tags",
    )
    tag_escape: bool = option(
        True,
        "Write brackets as \\( and \\), since prompts read plain brackets as emphasis.",
        label="Escape brackets",
        section="tags",
    )
    tag_exclude: str = option("", "Tags to leave out, separated by commas.", label="Exclude tags", section="tags")

    def __post_init__(self) -> None:
        """Check each option by itself, then those that depend on others."""
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
        """The options by name."""
        return dataclasses.asdict(self)


def options() -> Iterator[Option]:
    """Every option in the order of its declaration."""
    return options_of(PreprocessConfig)
