"""The warnings of preflight: pure functions from what was found to sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ti_trainer.data.images import Frame
from ti_trainer.data.plan import Planned
from ti_trainer.data.prompts import FILEWORDS, NAME, Prompter, has_filewords
from ti_trainer.formats.naming import STRANDED
from ti_trainer.prompts import CHUNK, TokenizedPrompt
from ti_trainer.wording import counted

FEW, MANY = 3, 200  # images; outside this range there is a warning
NOTICED = 0.02  # cropped fraction of an image that is worth a warning
MUCH = 0.25  # the same with buckets, which always crop a little
Size = tuple[int, int]


def about_unreadable(unreadable: Sequence[tuple[str, str]]) -> list[str]:
    """Images that cannot be opened, by name and reason."""
    found = [f"{name} cannot be read and will be skipped ({reason})." for name, reason in unreadable[:5]]
    return found + ([f"{len(unreadable) - 5} more images cannot be read."] if len(unreadable) > 5 else [])


def about_same_files(same: Sequence[Sequence[str]]) -> list[str]:
    """Images with the same content."""
    found = [f"These files are the same image: {', '.join(names)}. Delete all but one." for names in same[:5]]
    return found + ([f"{len(same) - 5} more images have copies."] if len(same) > 5 else [])


def about_transparency(transparent: Sequence[Planned], frame: Frame, most: int) -> list[str]:
    """Images with transparent pixels, where alpha is not the loss weight; at most `most` images were checked."""
    count = sum(not (frame.use_alpha and each.mask is None) for each in transparent)
    if not count:
        return []
    at_least = "At least " if len(transparent) == most else ""
    return [
        f"{at_least}{_have(count)} transparent areas, which become white, and the white will be learned. To avoid that, use "
        "the alpha channel as loss weight, or paint masks."
    ]


def about_sizes(sizes: Counter[Size], frame: Frame) -> list[str]:
    """Images that will be upscaled or cropped."""
    if frame.size is None:
        return []
    small = cropped = 0
    for size, number in sizes.items():
        width, height = frame.size_for(size) or size
        small += number * (size[0] < width or size[1] < height)
        ratio = size[0] / size[1] / (width / height)
        cropped += number * (max(ratio, 1 / ratio) - 1 > (MUCH if frame.buckets else NOTICED))
    wanted, found = f"{frame.size[0]} x {frame.size[1]} px", []
    if small:
        than = f"their buckets of about {wanted}" if frame.buckets else wanted
        found.append(f"{_are(small)} smaller than {than} and will be upscaled; the embedding may learn the blur.")
    if cropped and frame.buckets:
        found.append(f"{_have(cropped)} a more extreme aspect ratio than any bucket and will be cropped to the center.")
    elif cropped:
        found.append(f"{_have(cropped)} another aspect ratio than {wanted} and will be cropped to the center.")
    return found


def about_numbers(images: int, samples: Sequence[tuple[Size, int]], frame: Frame, batch_size: int) -> list[str]:
    """The number of images of the concept; `samples` are the size and the repeats of each image."""
    total, found = sum(repeats for _, repeats in samples), []
    if 0 < images < FEW:
        found.append(f"Only {counted(images, 'image')}: with fewer than {FEW} the embedding learns the background as well.")
    if images > MANY:
        found.append(f"{images} images: 5 to 30 good ones usually work better.")
    if batch_size > total > 0:
        found.append(f"The batch size {batch_size} is larger than the dataset: some images are twice in a batch.")
    elif frame.buckets:
        found += _about_buckets(samples, frame, batch_size)
    return found


def _about_buckets(samples: Sequence[tuple[Size, int]], frame: Frame, batch_size: int) -> list[str]:
    by_bucket: Counter[Size | None] = Counter()
    for size, repeats in samples:
        by_bucket[frame.size_for(size)] += repeats
    few = [f"{number} of {size[0]} x {size[1]}" for size, number in by_bucket.items() if size and number < batch_size]
    if not few:
        return []
    return [
        f"Some buckets have fewer images than the batch size {batch_size} ({', '.join(few)}). These images are used less "
        "often: each waits for later epochs to fill its batch."
    ]


def about_captions(concept: Sequence[Planned], prompter: Prompter, plain: str, *, has_regex: bool) -> list[str]:
    """Images of the concept without a caption, and captions that are not used or contain the embedding's name.

    `plain` is the template for images without a caption, if any; `has_regex`: Filename word regex is set.
    """
    with_files = sum(each.caption_file is not None for each in concept)
    if not has_filewords(prompter.template):
        message = f"{_have(with_files)} a caption, but captions are not used: the template has no [filewords]."
        return [message] if with_files else []
    uncaptioned = [each for each in concept if each.caption is None]
    by_name = [
        each for each in concept if each.caption is not None and each.caption_file is None and not each.subset.class_tokens
    ]
    found = []
    if uncaptioned:
        they_use = "it uses" if len(uncaptioned) == 1 else "they use"
        instead = f"the template {plain!r}" if prompter.plain else "prompts without [filewords]"
        advice = "" if has_regex else " To use file names as captions, set Filename word regex (.+ for the whole name)."
        found.append(f"{_have(len(uncaptioned))} no {_endings(uncaptioned)} file; {they_use} {instead}.{advice}")
    if by_name:
        advice = "" if has_regex else " If file names do not describe the images, use a template without [filewords]."
        found.append(
            f"{_have(len(by_name))} no {_endings(by_name)} file; the file name is the caption, for example "
            f"{by_name[0].caption!r}.{advice}"
        )
    return found + _about_the_name(concept, prompter)


def _about_the_name(concept: Sequence[Planned], prompter: Prompter) -> list[str]:
    """Captions that contain the embedding's name, where the template adds it as well."""
    having = [each.caption for each in concept if each.caption and prompter.has_word(each.caption)]
    if not having or not any(NAME in line and FILEWORDS in line for line in prompter.template):
        return []
    return [
        f"{len(having)} of {len(concept)} captions contain {prompter.name} ({having[0][:60]!r}), and the template adds it "
        "again, so it is twice in their prompts. Use a template whose only line is [filewords], or remove "
        f"{prompter.name} from the captions."
    ]


def about_prompts(prompts: Sequence[tuple[str, TokenizedPrompt]]) -> list[str]:
    """Prompts of more than one chunk, or without the embedding."""
    found = []
    if long := [prompt for prompt, each in prompts if len(each.chunks) > 1]:
        found.append(f"A prompt is longer than {CHUNK} tokens and will be encoded in chunks: {long[0]!r}.")
    stranded = dict.fromkeys(name for _, each in prompts for name in each.stranded)
    found += [STRANDED.format(name, "prompt") for name in stranded]
    if any(not each.splices for _, each in prompts):
        found.append("A prompt does not contain the embedding. Its name may be part of another embedding's name: rename it.")
    return found


def _endings(images: Sequence[Planned]) -> str:
    return " or ".join(dict.fromkeys(each.subset.caption_extension for each in images))


def _are(count: int) -> str:
    return f"{counted(count, 'image')} {'is' if count == 1 else 'are'}"


def _have(count: int) -> str:
    return f"{counted(count, 'image')} {'has' if count == 1 else 'have'}"
