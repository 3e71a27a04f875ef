"""What to say of a dataset before a run, in sentences: pure functions of what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ti_trainer.data.images import Frame
from ti_trainer.data.plan import Planned
from ti_trainer.data.prompts import FILEWORDS, NAME, Prompter, has_filewords
from ti_trainer.formats.naming import STRANDED
from ti_trainer.prompts import CHUNK, TokenizedPrompt
from ti_trainer.wording import counted

FEW, MANY = 3, 200  # images: fewer teach little, more take long
NOTICED = 0.02  # of an image cut off, as a fraction
MUCH = 0.25  # the same with buckets, which always cut a little
Size = tuple[int, int]


def about_unreadable(unreadable: Sequence[tuple[str, str]]) -> list[str]:
    """Of images that cannot be opened, by name and reason."""
    said = [f"{name} cannot be read and will be left out ({reason})." for name, reason in unreadable[:5]]
    return said + ([f"{len(unreadable) - 5} more images cannot be read."] if len(unreadable) > 5 else [])


def about_same_files(same: Sequence[Sequence[str]]) -> list[str]:
    """Of images with the same content."""
    said = [f"The same image, several times: {', '.join(names)}." for names in same[:5]]
    return said + ([f"{len(same) - 5} more images are there several times."] if len(same) > 5 else [])


def about_transparency(transparent: Sequence[Planned], frame: Frame, most: int) -> list[str]:
    """Of images with transparent parts, where alpha is not the loss weight; `most` were looked for."""
    count = sum(not (frame.use_alpha and each.mask is None) for each in transparent)
    if not count:
        return []
    at_least = "At least " if len(transparent) == most else ""
    return [
        f"{at_least}{_have(count)} transparent areas, which become white. To keep white from being learned, use alpha as "
        "the loss weight or paint masks."
    ]


def about_sizes(sizes: Counter[Size], frame: Frame) -> list[str]:
    """Of what is enlarged, and what is cut off."""
    if frame.size is None:
        return []
    small = cropped = 0
    for size, number in sizes.items():
        width, height = frame.size_for(size) or size
        small += number * (size[0] < width or size[1] < height)
        cut = size[0] / size[1] / (width / height)
        cropped += number * (max(cut, 1 / cut) - 1 > (MUCH if frame.buckets else NOTICED))
    wanted, said = f"{frame.size[0]} x {frame.size[1]} px", []
    if small:
        than = f"their buckets of about {wanted}" if frame.buckets else wanted
        said.append(f"{_are(small)} smaller than {than} and will be upscaled; the embedding may learn the blur.")
    if cropped and frame.buckets:
        said.append(f"{_are(cropped)} of another shape than any bucket of about {wanted}: the middle is trained on.")
    elif cropped:
        said.append(f"{_are(cropped)} of another shape than {wanted}: the middle is trained on.")
    return said


def about_numbers(things: int, fed: Sequence[tuple[Size, int]], frame: Frame, batch_size: int) -> list[str]:
    """Of how many images there are; `fed` is the size of each and how often it comes up in an epoch."""
    samples, said = sum(times for _, times in fed), []
    if 0 < things < FEW:
        said.append(f"Only {counted(things, 'image')}: with fewer than {FEW} the word learns the background as well.")
    if things > MANY:
        said.append(f"{things} images: 5 to 30 good ones usually teach a word better than very many.")
    if batch_size > samples > 0:
        said.append(f"The batch size {batch_size} is more than there are images: some come up twice in a batch.")
    elif frame.buckets:
        said += _about_buckets(fed, frame, batch_size)
    return said


def _about_buckets(fed: Sequence[tuple[Size, int]], frame: Frame, batch_size: int) -> list[str]:
    samples: Counter[Size | None] = Counter()
    for size, times in fed:
        samples[frame.size_for(size)] += times
    few = [f"{number} of {size[0]} x {size[1]}" for size, number in samples.items() if size and number < batch_size]
    if not few:
        return []
    return [
        f"Fewer images in a bucket than the batch size {batch_size} ({', '.join(few)}): they wait, over epochs, "
        "for a full batch."
    ]


def about_captions(things: Sequence[Planned], prompter: Prompter, plain: str, *, named: bool) -> list[str]:
    """Of images of the thing without a caption, and of captions that go unused or have the word already.

    `plain` is the template for those without, if there is one; `named`: a regular expression for file names was given.
    """
    with_files = sum(each.caption_file is not None for each in things)
    if not has_filewords(prompter.template):
        unread = f"{_have(with_files)} a caption, but the template has no [filewords]: captions are not used."
        return [unread] if with_files else []
    nothing = [each for each in things if each.caption is None]
    by_name = [
        each for each in things if each.caption is not None and each.caption_file is None and not each.subset.class_tokens
    ]
    said = []
    if nothing:
        one = len(nothing) == 1
        instead = f"the template {plain!r}" if prompter.plain else "prompts without [filewords]"
        use = "" if named else " To use file names as captions, set Filename word regex (.+ takes the whole name)."
        said.append(f"{_have(len(nothing))} no {_endings(nothing)} file; {'it uses' if one else 'they use'} {instead}.{use}")
    if by_name:
        instead = "" if named else " If file names say nothing, use a template without [filewords]."
        said.append(
            f"{_have(len(by_name))} no {_endings(by_name)} file; the file name is the caption, such as "
            f"{by_name[0].caption!r}.{instead}"
        )
    return said + _about_the_word(things, prompter)


def _about_the_word(things: Sequence[Planned], prompter: Prompter) -> list[str]:
    """Of captions that have the word in them, where the template puts it there as well."""
    having = [each.caption for each in things if each.caption and prompter.has_word(each.caption)]
    if not having or not any(NAME in line and FILEWORDS in line for line in prompter.template):
        return []
    return [
        f"{len(having)} of {len(things)} captions already contain {prompter.name} ({having[0][:60]!r}), and the template "
        "adds it, so that it stands twice in their prompts. Take a template whose only line is [filewords], or remove the "
        "word from the captions."
    ]


def about_prompts(prompts: Sequence[tuple[str, TokenizedPrompt]]) -> list[str]:
    """Of prompts that are longer than a chunk, or have no word."""
    said = []
    if long := [prompt for prompt, each in prompts if len(each.chunks) > 1]:
        said.append(f"Longer than {CHUNK} tokens, so that it is fed in parts: {long[0]!r}.")
    stranded = dict.fromkeys(name for _, each in prompts for name in each.stranded)
    said += [STRANDED.format(name, "prompt") for name in stranded]
    if any(not each.splices for _, each in prompts):
        said.append("The word is not found in a prompt: its name may be a part of another embedding's.")
    return said


def _endings(those: Sequence[Planned]) -> str:
    return " or ".join(dict.fromkeys(each.subset.caption_extension for each in those))


def _are(count: int) -> str:
    return f"{counted(count, 'image')} {'is' if count == 1 else 'are'}"


def _have(count: int) -> str:
    return f"{counted(count, 'image')} {'has' if count == 1 else 'have'}"
