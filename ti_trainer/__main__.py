"""The command line: `ti-trainer COMMAND`. Exit codes: 0 success, 1 error, 2 usage error, 130 interrupted."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from ti_trainer import __version__
from ti_trainer.commands import INTERRUPTED, PROGRAM
from ti_trainer.errors import TITrainerError, explained

COMMANDS = (
    "preprocess",
    "spread",
    "suggest",
    "create",
    "train",
    "queue",
    "quick",
    "distill",
    "generate",
    "compare",
    "evaluate",
    "quality",
    "merge",
    "convert",
    "share",
    "info",
    "inspect",
    "library",
    "bench",
    "doctor",
    "demo",
    "page",
)
FAILED = 1


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser with all commands, or, to start faster, with the arguments of this command only."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Train Textual Inversion embeddings for Stable Diffusion. Without a command, the page opens.",
    )
    parser.add_argument("--version", action="version", version=f"TI Trainer {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        if command not in (None, name):
            commands.add_parser(name)
            continue
        try:
            module = importlib.import_module(f"ti_trainer.commands.{name}")
        except ModuleNotFoundError:  # --help and --version work without the packages
            if command:
                raise
            commands.add_parser(name)
            continue
        each = commands.add_parser(name, help=module.HELP, description=module.HELP[0].upper() + module.HELP[1:] + ".")
        module.add_arguments(each)
        each.add_argument("--debug", action="store_true", help="print the traceback of an error")
        each.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; expected errors are printed as one line."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["page"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # the encoding of a console may lack characters of a name
    try:
        args = build_parser(arguments[0] if arguments[0] in COMMANDS else None).parse_args(arguments)
        return _run(args)
    except ModuleNotFoundError as error:
        if (error.name or "ti_trainer").partition(".")[0] == "ti_trainer":
            raise
        message = (
            f"This Python ({sys.executable}) does not have the package {error.name}. "
            f"Run `python install.py run {arguments[0]} ...`, which installs what is needed."
        )
        return _failed(message, debug="--debug" in arguments)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("ti_trainer").setLevel(logging.DEBUG if args.debug else logging.NOTSET)
    logging.captureWarnings(True)
    try:
        return args.run(args)
    except ModuleNotFoundError:
        raise
    except TITrainerError as error:
        return _failed(str(error), debug=args.debug)
    except OSError as error:
        return _failed(explained(error), debug=args.debug)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # of torch, which may not be imported
            message = "Out of GPU memory: reduce the batch size, width and height, or close other programs."
        else:
            message = f"Unexpected {type(error).__name__}: {error} (pass --debug for the traceback)."
        return _failed(message, debug=args.debug)
    finally:
        logging.captureWarnings(False)


def _failed(message: str, *, debug: bool) -> int:
    if debug:
        logging.getLogger(__name__).exception("Failed:")
    print("Error: " + " ".join(message.splitlines()), file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
