"""page: the page in a browser, on this computer (what happens without a command)."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ti_trainer import tiny_model
from ti_trainer.commands.common import add_host_arguments, add_torchscript_argument, host_of
from ti_trainer.commands.demo import CONFIG, INIT_TEXT, NAME
from ti_trainer.commands.terminal import end_signals, number_of
from ti_trainer.formats import embeddings_dir
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.runs.job import Job

if TYPE_CHECKING:
    from ti_trainer.ui.page import Prefilled

HELP = "open the page in a browser: everything by mouse (what happens without a command)"
LOCAL = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument("--address", default="127.0.0.1", help="who may reach it; 0.0.0.0: everyone on the network, without "
                        "a password (default: %(default)s)")  # fmt: skip
    parser.add_argument("--port", type=number_of(int), metavar="N", help="(default: the first free one from 7860 on)")
    parser.add_argument(
        "--allow-host",
        type=_name,
        action="append",
        default=[],
        metavar="NAME",
        help="another name under which browsers reach the page, such as my-pc.lan or that of a proxy (NAME or NAME:PORT); "
        "may be given several times. Requests under other names, and from other web pages, are refused",
    )
    parser.add_argument("--no-browser", action="store_true", help="only say where it is")
    parser.add_argument(
        "--images-dir",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="with --address: where datasets may lie; may be given several times (default: the folder it is started in)",
    )
    add_torchscript_argument(parser, "whoever uses the page")
    add_host_arguments(parser, logs=True)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, a kill or the terminal's end; a run that is going on then is stopped and kept."""
    from ti_trainer.ui.app import own_images, serve
    from ti_trainer.ui.layout import build
    from ti_trainer.ui.page import Page
    from ti_trainer.ui.status import StatusCache

    host = host_of(args)
    if args.address not in LOCAL:
        host.folders = [tiny_model.DEMO, *(args.images_dir or [Path.cwd()])]
    print(f"Loading the model {args.model!r}.", flush=True)
    host.open_model()
    job = Job()
    page = Page(host, job, prefilled(host))
    # What ended the server, uvicorn raises again: a signal must not end us before what was learned is kept.
    before = {number: signal.signal(number, signal.default_int_handler) for number in end_signals()}
    if hasattr(signal, "SIGHUP") and signal.SIGHUP in before:  # of which uvicorn knows nothing
        signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    try:
        with own_images():
            serve(
                build(page),
                address=args.address,
                port=args.port,
                allow_hosts=args.allow_host,
                status=StatusCache(page).status,
                open_browser=not args.no_browser,
                ready=lambda url: print(f"The page is at {url} - Ctrl-C here ends it.", flush=True),
            )
    finally:
        if job.snapshot().active:
            with suppress(OSError):  # a terminal that is closed
                print("Stopping the training; what was learned is kept.", file=sys.stderr, flush=True)
            job.stop()
            job.wait()
        page.preprocessing.stop()
        page.preprocessing.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _name(text: str) -> str:
    from ti_trainer.ui.guard import checked_allowed

    try:
        return checked_allowed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def prefilled(host: StandaloneHost) -> Prefilled | None:
    """On the embedded model the demonstration's word, created if need be, and its images."""
    from ti_trainer.ui.page import Prefilled

    if host.model != "embedded":
        return None
    if embeddings_dir.find(host.embeddings_dir, NAME) is None:
        embeddings_dir.create(host.embeddings_dir, host.open_model(), NAME, INIT_TEXT, 2)
    return Prefilled(NAME, INIT_TEXT, tiny_model.DEMO, CONFIG)
