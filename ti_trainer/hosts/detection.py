"""Choose the Host for the WebUI that loaded this extension, and explain why if there is none.

WebUIs are told apart by the packages that they have. Nothing of a WebUI is imported here at the top, so a module that one
of them lacks becomes a message on the page.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import pkgutil
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from ti_trainer.errors import ModelError, TITrainerError
from ti_trainer.host import Host

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

WEBUI_HOST = "ti_trainer.hosts.webui.host:WebuiHost"
FORGE_HOST = "ti_trainer.hosts.forge.host:ForgeHost"
IS_STARTED_PUBLIC = "ti_trainer.hosts.webui.settings:is_started_public"
# What a version of a WebUI raises that lacks something, or has it in another form.
MISMATCHES = (ImportError, AttributeError, TypeError, KeyError)
SUPPORTED = "AUTOMATIC1111's WebUI, Forge, reForge, ersatzForge, Forge Neo and Forge Classic"
ALTERNATIVE = (
    "You can train on the same checkpoint file without a WebUI, on the standalone page or the command line (see README), "
    "and put the finished embedding into this WebUI's folder of embeddings."
)


@dataclass(frozen=True)
class Program:
    """A WebUI, or several that share their code: the modules that identify it, and its Host if there is one."""

    name: str
    modules: tuple[str, ...]
    host: str = ""


# The first of which all modules exist. Forge and its relatives still have most modules of AUTOMATIC1111's WebUI.
PROGRAMS = (
    Program("SD.Next", ("modules.processing_diffusers",)),
    Program("Forge", ("modules_forge", "backend"), FORGE_HOST),  # also ersatzForge and Forge Neo
    Program("reForge or Forge Classic", ("modules_forge", "ldm_patched"), WEBUI_HOST),
    Program("AUTOMATIC1111's WebUI", ("modules.sd_hijack", "modules.lowvram", "modules.sd_models"), WEBUI_HOST),
)
UNKNOWN = Program("an unknown WebUI", ())


def detect(exists: Callable[[str], bool] | None = None, programs: Sequence[Program] = PROGRAMS) -> Program:
    """The program that this process is; `exists` says whether a module can be found."""
    exists = exists or _exists
    return next((each for each in programs if all(map(exists, each.modules))), UNKNOWN)


def find_host(program: Program | None = None) -> Host:
    """Make the Host. ModelError with the message for the page if there is none, or a module that it needs is missing."""
    program = program or detect()
    if not program.host:
        message = f"This host is not supported yet: found {program.name}, expected one of {SUPPORTED}. {ALTERNATIVE}"
        _log_once(message)
        raise ModelError(message)
    try:
        host: Host = pkgutil.resolve_name(program.host)(is_public=pkgutil.resolve_name(IS_STARTED_PUBLIC)())
    except Exception as error:
        raise ModelError(explain(error, program)) from error
    return host


def explain(error: Exception, program: Program | None = None) -> str:
    """The message for the page about an unexpected error. Logs it on one line, each only once."""
    program, found = program or detect(), _one_line(error)
    message = f"This version of {program.name} is not supported yet ({found}). Update it and this extension. {ALTERNATIVE}"
    if not isinstance(error, MISMATCHES):
        message = f"An error occurred in {program.name}: {found}. The console says where."
    _log_once(f"{program.name}: {found} ({_place(error)})")
    return message


def reports_failures(method: Callable[P, T]) -> Callable[P, T]:
    """Decorate a method of a Host that the page calls often: an unexpected error becomes a ModelError, which is shown."""

    @functools.wraps(method)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except TITrainerError:
            raise
        except Exception as error:
            raise ModelError(explain(error)) from error

    return reporting


@functools.lru_cache(100)
def _log_once(message: str) -> None:
    log.error("%s", message)


def _exists(name: str) -> bool:
    """Whether a module can be found. A package that contains it is imported for that, the module itself is not."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(": ")


def _place(error: Exception) -> str:
    """File, line and function in which it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return ", ".join(f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in frames[-1:]) or "an unknown place"
