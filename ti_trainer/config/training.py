"""Every option of a training run: the command line, the page, settings files and the docs are built from it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ti_trainer.config import patterns
from ti_trainer.config.learning import LearningOptions
from ti_trainer.config.options import Option, options_of
from ti_trainer.config.output import MAX_PREVIEW_PROMPTS, OutputOptions
from ti_trainer.config.trials import LISTS, Trial, trials_of
from ti_trainer.errors import ConfigError
from ti_trainer.functional.guidance import GuidanceScale
from ti_trainer.functional.lr_scheduler import LearningRate, auto_rate, parse_rate
from ti_trainer.functional.schedule import Schedule

SECTIONS = {
    "training": "Training",
    "images": "Images",
    "prompts": "Prompts",
    "optimizer": "Optimizer and loss",
    "trials": "Trials",
    "teacher": "Learn from prompts",
    "dreamartist": "DreamArtist",
    "pixels": "Pixel loss",
    "previews": "Previews and copies",
    "advanced": "Advanced",
}
SIDES = ("width", "height", "preview_width", "preview_height")
SIMILARITY = 0.75  # as difflib measures it: enough for maxsteps and max_steps, but not for momentum
CONTEXT = {  # by option: the other options that its check depends on, besides max_steps
    "clip_grad_limit": ("clip_grad",),
    "train_cfg_scale": ("negative",),
    "ema_every": ("ema_rate",),
    "buckets": ("do_not_resize",),
    "lr_warmup_steps": ("learning_rate",),
    **dict.fromkeys(LISTS, ("trials",)),
}


@dataclass(frozen=True)
class TrainConfig(OutputOptions, LearningOptions):
    """The options of one run. An instance is always valid: construction raises ConfigError otherwise.

    Options that are texts with numbers are parsed once, by the properties.
    """

    def __post_init__(self) -> None:
        """Check each option by itself, then those that depend on others."""
        for each in options():
            each.check(getattr(self, each.name))
            if each.name in SIDES and getattr(self, each.name) % 8:
                found = f"{each.label} ({each.name}): found {getattr(self, each.name)}"
                message = f"{found}, expected a multiple of 8, since the VAE works on blocks of 8 px."
                raise ConfigError(message, each.name)
        if self.buckets and self.do_not_resize:
            message = "Use aspect-ratio buckets: found on, expected off together with Do not resize images: buckets resize."
            raise ConfigError(message, "buckets")
        patterns.compiled(self.filename_word_regex, *patterns.WORD_REGEX)
        self._check_schedule("learning_rate", parse_rate)
        if self.clip_grad != "disabled":
            self._check_schedule("clip_grad_limit", parse_limit)
        if self.ema_every and not self.ema_rate:
            message = "EMA interval: found one without an EMA rate; expected a rate such as 0.97, or 0 for the interval."
            raise ConfigError(message, "ema_every")
        if self.last_step and self.lr_warmup_steps >= self.last_step:  # 0: the trainer says that there is nothing to train
            message = f"LR warmup steps: found {self.lr_warmup_steps}, expected fewer than the {self.last_step} of the run."
            raise ConfigError(message, "lr_warmup_steps")
        if self.negative:
            _ = self.guidance_scale
        self._check_teacher()
        if len(self.preview_prompts) > MAX_PREVIEW_PROMPTS:
            found = f"Preview prompt (preview_prompt): found {len(self.preview_prompts)} lines"
            message = f"{found}, expected at most {MAX_PREVIEW_PROMPTS} prompts, one in each line."
            raise ConfigError(message, "preview_prompt")

    def _check_teacher(self) -> None:
        """What learning from prompts cannot be combined with."""
        if self.opposite_prompt and not self.teacher_prompt:
            message = "Opposite prompt: found one without a prompt to learn from; expected both, or neither."
            raise ConfigError(message, "opposite_prompt")
        if self.opposite_prompt and self.opposite_prompt.strip() == self.teacher_prompt.strip():
            message = f"Opposite prompt: found {self.opposite_prompt!r}, which is the prompt itself; expected its opposite."
            raise ConfigError(message, "opposite_prompt")
        if self.opposite_prompt and self.teacher_lora:
            message = "Opposite prompt: found a LoRA to learn from as well; expected one of them: a slider has no LoRA."
            raise ConfigError(message, "opposite_prompt")
        if self.teacher_negative_prompt and not self.teacher_prompt:
            message = "Negative prompt to learn from: found one without a prompt to learn from; expected both, or neither."
            raise ConfigError(message, "teacher_negative_prompt")
        if self.teacher_negative_prompt and (self.opposite_prompt or self.teacher_lora):
            also = "an opposite prompt" if self.opposite_prompt else "a LoRA to learn from"
            message = f"Negative prompt to learn from: found {also} as well; expected one of them."
            raise ConfigError(message, "teacher_negative_prompt")
        others = {"negative": "DreamArtist", "reconstruction_weight": "a pixel loss", "discriminator": "a discriminator"}
        found = [what for name, what in others.items() if getattr(self, name)]
        if self.has_teacher and found:
            label, name = ("a LoRA", "teacher_lora") if self.teacher_lora else ("a prompt", "teacher_prompt")
            message = f"Learn from {label}: found {found[0]} as well, expected one of them: both say what is to be learned."
            raise ConfigError(message, name)

    @property
    def has_teacher(self) -> bool:
        """Whether the embedding learns from a prompt or a LoRA instead of images."""
        return bool(self.teacher_prompt or self.teacher_lora)

    @property
    def phrase_share(self) -> float:
        """The share of samples for prompt preservation, which is for plain Textual Inversion from images only."""
        return 0.0 if self.trains_negative or self.has_teacher else self.prompt_preservation

    @property
    def trains_negative(self) -> bool:
        """Whether NAME-neg is trained as well, by DreamArtist or from a prompt of its own."""
        return self.negative or bool(self.teacher_negative_prompt)

    @property
    def preview_prompts(self) -> tuple[str, ...]:
        """The prompts of a preview, one from each line; empty for the last prompt that was trained on."""
        return tuple(filter(None, map(str.strip, self.preview_prompt.splitlines())))

    @cached_property
    def trial_list(self) -> tuple[Trial, ...]:
        """The trials, at least one."""
        return trials_of(self)

    @cached_property
    def last_step(self) -> int:
        """The step after which the run ends: the end of its longest schedule, at most max_steps."""
        return min(self.max_steps, max(each.learning_rate.last_step for each in self.trial_list))

    @cached_property
    def clip_limit(self) -> Schedule:
        """The limit of gradient clipping; meaningless where that is disabled."""
        return Schedule.parse("0" if self.clip_grad == "disabled" else self.clip_grad_limit, self.max_steps)

    @cached_property
    def guidance_scale(self) -> GuidanceScale:
        """The CFG scale of DreamArtist's training; ConfigError if it is invalid, which is allowed without DreamArtist."""
        return GuidanceScale.parse(self.train_cfg_scale)

    def learning_rate_of(self, trial: Trial, spread: float = 1.0) -> LearningRate:
        """The learning rate of a trial, with warmup and decay; `auto` decays linearly if no decay was chosen.

        `spread` is the standard deviation of the elements of the model's vocabulary, which only `auto` depends on.
        """
        schedule, decay, unit = trial.learning_rate, self.lr_scheduler, 1.0
        if schedule.relative:
            decay, unit = "linear" if decay == "constant" else decay, auto_rate(self.optimizer, spread)
        return LearningRate(schedule, decay, self.lr_warmup_steps, self.last_step, unit)

    def schedule_notes(self) -> list[str]:
        """Messages for the user about the schedules: an early end, and stages that are never reached."""
        schedules = {each.learning_rate.text: ("learning rate", each.learning_rate) for each in self.trial_list}
        clipping = [] if self.clip_grad == "disabled" else [("gradient clipping limit", self.clip_limit)]
        notes = [
            f"The stage {unused!r} of the {what} schedule is never reached."
            for what, schedule in [*schedules.values(), *clipping]
            for unused in schedule.unused
        ]
        highest = max(rate for each in self.trial_list for rate, _ in each.learning_rate.stages)  # of auto 1
        if self.optimizer == "prodigy" and highest < 0.1:
            notes.append("Prodigy multiplies its own step size by the learning rate: use a learning rate of about 1.")
        if self.optimizer == "sphere" and highest < 0.01:
            notes.append("Sphere turns the vectors by the learning rate, in radians: use auto, or a rate of about 0.03.")
        if self.last_step < self.max_steps:
            end = f"The learning rate schedule ends at step {self.last_step} of {self.max_steps}, and the run ends there."
            notes.insert(0, end)
        return notes

    def _check_schedule(self, name: str, parse: Callable[[str, int], Schedule]) -> None:
        label = next(each.label for each in options() if each.name == name)
        try:
            parse(getattr(self, name), self.max_steps)
        except ConfigError as error:
            message = f"{label} ({name}): {error}"
            raise ConfigError(message, name) from error

    def to_dict(self) -> dict[str, Any]:
        """The options by name, as a settings file has them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Read what `to_dict` wrote. A missing option has its default; an unknown one raises ConfigError."""
        if not isinstance(values, Mapping):
            message = f"The options are a {type(values).__name__}, expected an object such as {{'max_steps': 300}}."
            raise ConfigError(message)
        known = {each.name: each for each in options()}
        check_known(values, known)
        return cls(**{name: known[name].read(value) for name, value in values.items()})


def parse_limit(text: str, max_steps: int) -> Schedule:
    """A limit of gradient clipping; ConfigError if it is invalid or 0."""
    limit = Schedule.parse(text, max_steps)
    limit.check_positive("limit")
    return limit


def check_known(values: Iterable[str], known: Collection[str]) -> None:
    """Raise ConfigError if there are unknown options, with the names that may be meant."""
    unknown = sorted(set(values) - set(known))
    if not unknown:
        return
    near = {each: difflib.get_close_matches(each.lower().replace("-", "_"), known, 1, SIMILARITY) for each in unknown}
    named = ", ".join(f"{each} (did you mean {''.join(near[each])}?)" if near[each] else each for each in unknown)
    newer = "" if all(near.values()) else " Were these settings saved by a newer version?"
    message = f"Unknown options: {named}.{newer} Correct or remove them to continue."
    raise ConfigError(message)


def problems(values: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each option, by name, so that a form can show all errors at once."""
    defaults = {each.name: each.default for each in options()}
    found: dict[str, str] = {}
    for name, value in sorted(values.items(), key=lambda item: item[0] != "max_steps"):  # schedules depend on it
        bounded = name != "max_steps" and "max_steps" not in found
        needed = (*(["max_steps"] if bounded else []), *CONTEXT.get(name, ()))
        context = {each: values.get(each, defaults[each]) for each in needed}
        try:
            TrainConfig.from_dict({**context, name: value})
        except ConfigError as error:
            if error.option in ("", name):
                found[name] = str(error)
    return found


def options() -> Iterator[Option]:
    """Every option in the order of its declaration."""
    return options_of(TrainConfig)
