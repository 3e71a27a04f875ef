"""Learn an embedding from prompts or a LoRA: the options of the run, the generated images, and the new embedding."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.image_files import CONTEXTS
from ti_trainer.data.prompts import NAME, load_template
from ti_trainer.embedding import negative_name
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.files import short_hash, write_bytes
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import name_warnings
from ti_trainer.host import Host
from ti_trainer.model import DiffusionModel
from ti_trainer.prompts import NO_TEXT, content_words, weighted_parts
from ti_trainer.runs import locks
from ti_trainer.runs.builders import SLIDER_WEIGHTS, model_options, prompter_of
from ti_trainer.runs.checks import check_options
from ti_trainer.runs.generated import IMAGES, GeneratedImages
from ti_trainer.runs.session import Session
from ti_trainer.runs.teacher_lora import lora_file, lora_of
from ti_trainer.training.teacher import Teacher
from ti_trainer.wording import counted

log = logging.getLogger(__name__)
DEFAULTS: Mapping[str, Any] = {  # others than for images
    "max_steps": 300,
    "learning_rate": "0.001",  # the vectors have been fitted to the prompt's cross-attention before; 0.005 spoils that
    "lr_scheduler": "linear",
    "template": "none",
    "prompt_preservation": 0.0,
    "preview_prompt": NAME,
}
UNFITTED_DEFAULTS: Mapping[str, Any] = {"max_steps": 450, "learning_rate": "0.005"}  # not fitted before
FEWEST, MOST = 2, 16  # vectors, where no number is given
LORA_VECTORS, LORA_INIT_TEXT = 8, NO_TEXT  # from a LoRA; its initial text is the prompt, if there is one
MOST_PROMPTS = 8  # that images are generated of


@dataclass(frozen=True)
class Distillation:
    """What a new embedding is to mean: `prompt`, or as a slider the way from `opposite` to `prompt`.

    `contexts` are the prompts it is trained in, each with [name]; none: by itself. `for_negative_prompt`: its previews show
    what it does in the negative prompt. With a `lora`, a file or a name, it is to mean what this LoRA does; the prompt is
    empty then, or has the LoRA's trigger words. With a `negative_prompt`, NAME-neg is made as well and is to mean that.
    """

    name: str
    prompt: str
    opposite: str = ""
    contexts: tuple[str, ...] = ()
    for_negative_prompt: bool = False
    lora: str = ""
    lora_weight: float = 1.0
    negative_prompt: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the new embeddings."""
        return (self.name, negative_name(self.name)) if self.negative_prompt else (self.name,)

    def config(self, options: Mapping[str, Any]) -> TrainConfig:
        """The options of the run; ConfigError, with the field's name, if something is missing or wrong."""
        if not self.prompt.strip() and not self.lora:
            message = "Prompt: found an empty text, expected the prompt that the embedding is to mean, or a LoRA."
            raise ConfigError(message, "teacher_prompt")
        for each in self.contexts:
            if NAME not in each:
                message = f"Contexts: found {each!r}, expected a prompt with {NAME}, such as 'a picture of a cat, {NAME}'."
                raise ConfigError(message, "contexts")
            weighted_parts(each)
        unfitted = self.lora or self.opposite or options.get("optimizer") == "sphere"
        values = {**DEFAULTS, **(UNFITTED_DEFAULTS if unfitted else {}), **options}
        values |= {"teacher_prompt": self.prompt, "opposite_prompt": self.opposite}
        values |= {"teacher_lora": self.lora, "teacher_lora_weight": self.lora_weight}
        values["teacher_negative_prompt"] = self.negative_prompt
        if self.negative_prompt and self.for_negative_prompt:
            message = (
                "Negative prompt to learn from: found one for an embedding that is itself for the negative prompt, expected "
                "one of them: the negative prompt is learned by NAME-neg."
            )
            raise ConfigError(message, "teacher_negative_prompt")
        if self.for_negative_prompt:
            values["preview_negative_prompt"] = values.get("preview_negative_prompt") or NAME
            if NAME in (preview := str(values["preview_prompt"]).strip()) or not preview:
                found = repr(preview) if preview else "an empty text"
                message = f"Preview prompt: found {found}, expected a prompt without {NAME} to try the embedding with."
                raise ConfigError(message, "preview_prompt")
        return TrainConfig.from_dict(values)

    def start(self, model: DiffusionModel, num_vectors: int | None = None) -> tuple[str, int]:
        """The initial text and the number of vectors; None: half of the longer prompt's tokens, or LORA_VECTORS.

        ConfigError if the vectors could be the prompt's own tokens, so that there is nothing to learn.
        """
        if self.lora:
            return content_words(self.prompt) if self.prompt.strip() else LORA_INIT_TEXT, num_vectors or LORA_VECTORS
        tokens = max(len(next(iter(model.token_embeddings(each).values()))) for each in (self.prompt, self.opposite))
        most = MOST if self.opposite else min(tokens - 1, MOST)
        count = num_vectors or max(min(max(math.ceil(tokens / 2), FEWEST), most), 1)
        if not self.opposite and count >= tokens:
            message = (
                f"Number of vectors: found {count} for a prompt of {counted(tokens, 'token')}, expected fewer than tokens: "
                "otherwise the embedding would be the prompt itself. Use fewer vectors or a longer prompt."
            )
            raise ConfigError(message, "num_vectors")
        return content_words(self.prompt), count

    def negative_start(self, model: DiffusionModel) -> tuple[str, int] | None:
        """The initial text and the number of vectors of NAME-neg; None if there is none to be."""
        if not self.negative_prompt:
            return None
        try:
            return Distillation(negative_name(self.name), self.negative_prompt).start(model)
        except ConfigError as error:
            message = (
                f"Negative prompt to learn from: found {self.negative_prompt!r}, a single token, expected several: NAME-neg "
                "would be the prompt itself."
            )
            raise ConfigError(message, "teacher_negative_prompt") from error

    def session(
        self, host: Host, config: TrainConfig, images: Path | None = None, say: Callable[[str], None] | None = None
    ) -> Session:
        """The run, on these images or on those that the model generates; writes the contexts to a file beside them."""
        generated = None
        if images is None:
            generated = self._generated(host, config)
            images = generated.folder
        if self.contexts:
            file = host.log_dir.resolve() / "contexts" / f"{self.name}.txt" if generated is None else images / CONTEXTS
            write_bytes(file, "\n".join(self.contexts).encode())
            config = TrainConfig.from_dict({**config.to_dict(), "template": str(file)})
        session = Session(host, self.name, images, config, generated=generated)
        if say is not None:
            session.say = say
        return session

    def create(
        self, host: Host, config: TrainConfig, num_vectors: int | None, *, overwrite: bool, warn: Callable[[str], None]
    ) -> list[Path]:
        """Create the embedding, or both; ConfigError if they cannot be created, or not trained with these options."""
        self.check(host, config, overwrite=overwrite)
        with host.lock(), locks.embeddings_held(host.embeddings_dir, self.names):
            model = host.open_model(model_options(config))
            check_lora(host, config, model)
            for warning in name_warnings(model, host.embeddings_dir, self.name):
                warn(warning)
            word, negative = (self.name, *self.start(model, num_vectors)), self.negative_start(model)
            folder, create, create_pair = host.embeddings_dir, embeddings_dir.create, embeddings_dir.create_pair
            if negative is None:
                paths = [create(folder, model, *word, overwrite=overwrite, warn=warn)]
            else:
                paths = [*create_pair(folder, model, word, negative, overwrite=overwrite, warn=warn)]
            host.embeddings_changed()
        return paths

    def begin(
        self,
        host: Host,
        config: TrainConfig,
        num_vectors: int | None,
        start: Callable[[Session], object],
        *,
        overwrite: bool,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        """Create the embedding and `start` its run, on generated images; if that raises, no new embedding is left."""
        paths = self.create(host, config, num_vectors, overwrite=overwrite, warn=warn)
        try:
            start(self.session(host, config))
        except (TITrainerError, OSError):
            for path in () if overwrite else paths:
                path.unlink(missing_ok=True)
            host.embeddings_changed()
            raise

    def check(self, host: Host, config: TrainConfig, *, overwrite: bool) -> None:
        """Raise now what `begin` would raise, as far as that is possible without a model."""
        for name in self.names:
            embeddings_dir.free_file(host.embeddings_dir, name, overwrite=overwrite)
        check_options(host, self.name, config)

    def _generated(self, host: Host, config: TrainConfig) -> GeneratedImages:
        """Images of the prompts that the teacher is given: at most MOST_PROMPTS, spread over the contexts."""
        lines = self.contexts or load_template(config.template, host.template_dirs)
        sides = len(SLIDER_WEIGHTS) if self.opposite else len(self.names)
        lines = lines[:: math.ceil(len(lines) * sides / MOST_PROMPTS)]
        prompts = prompter_of(config, self.name, lines, ()).first(len(lines) * sides)
        teacher = Teacher(self.name, self.prompt, self.opposite, negative_prompt=self.negative_prompt)
        in_full = dict.fromkeys(map(teacher.in_full, prompts))
        file = lora_file(host, config)
        lora = () if file is None else (short_hash(file), self.lora_weight)
        return GeneratedImages.of(host, self.name, tuple(in_full), max(1, IMAGES * len(self.names) // len(in_full)), lora)


def check_lora(host: Host, config: TrainConfig, model: DiffusionModel) -> None:
    """ConfigError for a LoRA to learn from that cannot be used with this model."""
    if (lora := lora_of(host, config)) is not None:
        model.fit_lora(lora)
