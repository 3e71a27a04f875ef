"""Every option of a training run, declared once: command line, page, settings file and README derive from it.

Knows nothing of any of them.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ti_trainer.config import patterns
from ti_trainer.config.learning import LearningOptions
from ti_trainer.config.options import Option, options_of
from ti_trainer.config.output import OutputOptions
from ti_trainer.config.trials import LISTS, trials_of
from ti_trainer.errors import ConfigError
from ti_trainer.functional.guidance import GuidanceScale
from ti_trainer.functional.schedule import Schedule

SECTIONS = {
    "training": "Training",
    "images": "Images",
    "prompts": "Prompts",
    "optimizer": "Optimizer",
    "trials": "Trials",
    "dreamartist": "DreamArtist",
    "pixels": "Pixel loss",
    "previews": "Previews and copies",
    "advanced": "Advanced",
}
SIDES = ("width", "height", "preview_width", "preview_height")
CLOSE = 0.75  # of difflib: maxsteps is like max_steps, momentum like nothing


@dataclass(frozen=True)
class TrainConfig(OutputOptions, LearningOptions):
    """The options of one run. An instance is always valid: construction raises ConfigError otherwise.

    Options are declared in its two parts, in the order in which people see them.
    """

    def __post_init__(self) -> None:
        """Check every option by itself, then those that depend on each other."""
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
        self._check_schedule("learning_rate", "rate")
        if self.clip_grad != "disabled":
            self._check_schedule("clip_grad_limit", "limit")
        if self.ema_every and not self.ema_rate:
            message = "EMA interval: found one without an EMA rate; expected a rate such as 0.97, or 0 for the interval."
            raise ConfigError(message, "ema_every")
        trials_of(self)
        if self.negative:
            GuidanceScale.parse(self.train_cfg_scale)

    def _check_schedule(self, name: str, what: str) -> None:
        label = next(each.label for each in options() if each.name == name)
        try:
            Schedule.parse(getattr(self, name), self.max_steps).check_teaches(what)
        except ConfigError as error:
            message = f"{label} ({name}): {error}"
            raise ConfigError(message, name) from error

    def to_dict(self) -> dict[str, Any]:
        """For the settings file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Read what `to_dict` wrote; options that are not there have their defaults, unknown ones raise ConfigError."""
        if not isinstance(values, Mapping):
            message = f"The options are a {type(values).__name__}, expected an object such as {{'max_steps': 300}}."
            raise ConfigError(message)
        check_known(values, {each.name for each in options()})
        known = {each.name: each for each in options()}
        return cls(**{name: known[name].read(value) for name, value in values.items()})


def check_known(values: Iterable[str], known: Collection[str]) -> None:
    """ConfigError if there are options that are not known, with the names that may be meant."""
    unknown = sorted(set(values) - set(known))
    if not unknown:
        return
    near = {each: difflib.get_close_matches(each.lower().replace("-", "_"), known, 1, CLOSE) for each in unknown}
    named = ", ".join(f"{each} (did you mean {''.join(near[each])}?)" if near[each] else each for each in unknown)
    newer = "" if all(near.values()) else " Were these settings saved by a newer version?"
    message = f"Unknown options: {named}.{newer} Correct or remove them to go on."
    raise ConfigError(message)


def problems(values: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each option, by its name, others being at their defaults: for a form that shows all at once."""
    found: dict[str, str] = {}
    for name, value in sorted(values.items(), key=lambda item: item[0] != "max_steps"):  # schedules depend on it
        context = {} if name == "max_steps" or "max_steps" in found else {"max_steps": values.get("max_steps", 1000)}
        if name == "clip_grad_limit":
            context["clip_grad"] = values.get("clip_grad", "disabled")
        if name == "train_cfg_scale":
            context["negative"] = values.get("negative", False)
        if name == "ema_every":
            context["ema_rate"] = values.get("ema_rate", 0.0)
        if name in LISTS:
            context["trials"] = values.get("trials", 1)
        if name == "buckets":
            context["do_not_resize"] = values.get("do_not_resize", False)
        try:
            TrainConfig.from_dict({**context, name: value})
        except ConfigError as error:
            if error.option in ("", name):
                found[name] = str(error)
    return found


def options() -> Iterator[Option]:
    """Every option in the order of its declaration."""
    return options_of(TrainConfig)
