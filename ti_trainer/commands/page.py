"""page: serve the page and open it in a browser (the default command)."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ti_trainer.commands.common import add_host_arguments, add_torchscript_argument, host_of
from ti_trainer.commands.demo import CONFIG, INIT_TEXT, NAME
from ti_trainer.commands.terminal import end_signals, number_of

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.host import StandaloneHost
    from ti_trainer.ui.page import Prefilled

HELP = "open the page in a browser (the default command)"
LOCAL = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--address", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets everyone on the "
                        "network use the page without a password (default: %(default)s)")  # fmt: skip
    parser.add_argument("--port", type=number_of(int), metavar="N", help="port to listen on (default: from 7860)")
    parser.add_argument(
        "--allow-host",
        type=_name,
        action="append",
        default=[],
        metavar="NAME",
        help="another host name of the page, such as my-pc.lan or that of a proxy (NAME or NAME:PORT); may be given several "
        "times. Requests with other host names, or from other web pages, are refused",
    )
    parser.add_argument(
        "--language",
        choices=("auto", "en", "ja", "zh-cn", "zh-tw"),
        default="auto",
        help="language of the page; auto is that of the browser, and English where there is none (default: %(default)s)",
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument(
        "--images-dir",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="with --address: folder that datasets may be in; may be given several times (default: the current folder)",
    )
    add_torchscript_argument(parser, "users of the page")
    add_host_arguments(parser, logs=True)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, SIGTERM or the end of the terminal; a training that is running then is stopped and saved."""
    from ti_trainer import tiny_model
    from ti_trainer.runs.job import Job
    from ti_trainer.ui.app import own_images, serve
    from ti_trainer.ui.layout import build
    from ti_trainer.ui.page import Page
    from ti_trainer.ui.status import StatusCache

    host = host_of(args)
    if args.address not in LOCAL:
        host.is_public, host.folders = True, [tiny_model.DEMO, *(args.images_dir or [Path.cwd()])]
        print(f"Images are read from {', '.join(map(str, host.folders[1:]))} only; --images-dir adds folders.", flush=True)
    print(f"Loading the model {args.model!r}.", flush=True)
    model, job = host.open_model(), Job()
    page = Page(host, job, prefilled(host), size_px=model.default_size_px)
    # uvicorn raises the signal again that ended the server: it must not end us before the training is saved.
    before = {number: signal.signal(number, signal.default_int_handler) for number in end_signals()}
    if hasattr(signal, "SIGHUP") and signal.SIGHUP in before:  # which uvicorn does not handle
        signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    try:
        with own_images():
            serve(
                build(page),
                address=args.address,
                port=args.port,
                allow_hosts=args.allow_host,
                status=StatusCache(page),
                language=args.language,
                open_browser=not args.no_browser,
                ready=lambda url: print(f"The page is at {url} - press Ctrl-C here to quit.", flush=True),
            )
    finally:
        page.queue.rest()
        page.quick.stop()
        if job.snapshot().active:
            with suppress(OSError):  # the terminal may be closed
                print("Stopping the training; its result is saved.", file=sys.stderr, flush=True)
            job.stop()
            job.wait()
        page.queue.close()
        for other in (page.comparing, page.preprocessing):
            other.stop()
            other.wait()
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
    """For the embedded model: the demo's images and embedding, which is created if it does not exist."""
    from ti_trainer import tiny_model
    from ti_trainer.formats import embeddings_dir
    from ti_trainer.ui.page import Prefilled

    if host.model != "embedded":
        return None
    if embeddings_dir.find(host.embeddings_dir, NAME) is None:
        embeddings_dir.create(host.embeddings_dir, host.open_model(), NAME, INIT_TEXT, 2)
    return Prefilled(NAME, INIT_TEXT, tiny_model.DEMO, CONFIG)
