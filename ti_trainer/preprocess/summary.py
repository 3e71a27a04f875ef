"""The result of a preprocessing run, as numbers and as sentences."""

from __future__ import annotations

from dataclasses import dataclass, field

from ti_trainer.wording import counted


@dataclass
class Summary:
    """The result of a run: numbers of source images and of files written, and the files that failed, with reasons."""

    sources: int = 0
    images: int = 0
    captions: int = 0
    copied_captions: int = 0  # existing captions that were copied although there is a captioner
    without_caption: int = 0  # images that no captioner said anything about
    masks: int = 0
    done_before: int = 0
    kept: list[str] = field(default_factory=list)  # files that the user changed, painted or left out
    failed: list[tuple[str, str]] = field(default_factory=list)
    stopped: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The summary as sentences, without the reasons of failures."""
        made = f"Made {counted(self.images, 'image')} from {counted(self.sources, 'source image')} in {self.seconds:.0f} s"
        counts = {"a caption": self.captions, "a mask": self.masks}
        lines = [", ".join([made, *(f"{count} with {what}" for what, count in counts.items() if count)]) + "."]
        if self.copied_captions:
            lines.append(f"{counted(self.copied_captions, 'image')} kept the existing caption instead of a generated one.")
        if self.without_caption:
            lines.append(f"{counted(self.without_caption, 'image')} got no caption: the captioners returned nothing.")
        if self.done_before:
            lines.append(f"Already done with the same options: {counted(self.done_before, 'source image')}.")
        if self.kept:
            more = f" and {len(self.kept) - 5} more" if len(self.kept) > 5 else ""
            lines.append(f"Kept as you changed or left them: {', '.join(self.kept[:5])}{more}.")
        if self.failed:
            lines.append(f"{counted(len(self.failed), 'file')} could not be used.")
        return lines + self.notes
