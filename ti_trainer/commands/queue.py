"""queue: runs that are trained one after the other. The page shows and changes the same queue, also at the same time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti_trainer.commands import INTERRUPTED, PROGRAM
from ti_trainer.commands import train as training
from ti_trainer.commands.common import add_host_arguments, add_torchscript_argument, host_of, naming_overwrite
from ti_trainer.commands.terminal import above_bars, interruptible
from ti_trainer.errors import ConfigError
from ti_trainer.hosts.diffusers import defaults
from ti_trainer.wording import counted, printable

if TYPE_CHECKING:
    from ti_trainer.host import Host, ModelReference
    from ti_trainer.runs.job import Job
    from ti_trainer.runs.queue import Queue
    from ti_trainer.runs.queue_entry import Entry
    from ti_trainer.runs.queue_file import QueueFile

HELP = "list, change and train the queue of runs, which the page shows too"
LOOK_S = 0.5  # between looks at the queue while it is trained
ENTRY = "its number in the list, or its id"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions, each with arguments of its own; without one, the queue is listed."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")

    parser.set_defaults(log_dir=defaults.LOG_DIR)
    _add_log_dir(action("list", "list the runs that wait, are trained or have failed"))
    training.add_arguments(action("add", "add a run, with the arguments of train; it is trained by run, or by an open page"))
    _add_runs(action("remove", "remove runs"))
    retry = action("retry", "have runs that failed wait again")
    _add_runs(retry)
    text = "train them with this model instead of the one that they were added with: a path, or 'embedded'"
    retry.add_argument("--model", metavar="MODEL", help=text)
    retry.add_argument(
        "--overwrite", action="store_true", help="replace the embedding that exists, or continue though it was changed"
    )
    move = action("move", "move a run to another place")
    move.add_argument("moved", metavar="RUN", help=f"the run: {ENTRY}")
    move.add_argument("place", metavar="PLACE", help="its new number in the list")
    _add_log_dir(move)
    _add_log_dir(
        action(
            "pause",
            "start no more runs, in any program, until it is resumed with run or on the page; the current one continues",
        )
    )
    text = "train the runs that wait, one after the other, each with its model; a failed one does not stop the next"
    run_them = action("run", text)
    add_torchscript_argument(run_them, "a run in the queue")
    add_host_arguments(run_them, logs=True)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"a run: {ENTRY}")
    _add_log_dir(parser)


def _add_log_dir(parser: argparse.ArgumentParser) -> None:
    text = f"folder with the training runs, which has the queue (default: {defaults.LOG_DIR})"
    parser.add_argument("--log-dir", type=Path, default=defaults.LOG_DIR, metavar="DIR", help=text)


def run(args: argparse.Namespace) -> int:
    """Do what was asked for."""
    return ACTIONS[args.action or "list"](args)


def show(args: argparse.Namespace) -> int:
    """Print the queue."""
    file = _file(args)
    file.recover()
    entries = file.read()
    for number, entry in enumerate(entries, 1):
        print(f"{number}. {printable(_line(entry))}")
        if entry.message:
            print(f"   {printable(entry.message)}")
    for line in filter(None, (file.warning, "" if entries else f"The queue in {args.log_dir} is empty.")):
        print(line)
    if file.held:
        print(f"The queue is held: resume it with `{PROGRAM} queue run`, or on the page.")
    return 0


def add(args: argparse.Namespace) -> int:
    """Add a run, after creating its embedding where that is asked for."""
    from ti_trainer.training.distributed import ALONE

    defaults.existing_model(args.model)
    with naming_overwrite():
        session = training.session_of(args, ALONE)
        place = queue_of(session.host).add(session)
    print(added(session.name, place))
    return 0


def added(name: str, place: int) -> str:
    """What is said of a run that was added."""
    return f"Added to the queue: {name}, number {place}. Train it with `{PROGRAM} queue run`, or on the page."


def remove(args: argparse.Namespace) -> int:
    """Remove runs."""
    return _change(args, "Removed", lambda file, entry: file.remove(entry.id))


def retry(args: argparse.Namespace) -> int:
    """Have failed runs wait again, on request with another model, or overwriting what exists."""
    changes: dict[str, Any] = {"overwrite": True} if args.overwrite else {}
    if args.model is not None:
        changes["model"] = defaults.existing_model(args.model)
    return _change(args, "Waits again", lambda file, entry: file.try_again(entry.id, **changes))


def _change(args: argparse.Namespace, done: str, change: Callable[[QueueFile, Entry], None]) -> int:
    file = _file(args)
    for entry in _entries(file, args.runs):
        change(file, entry)
        print(f"{done}: {printable(entry.name)} ({entry.id}).")
    return 0


def move(args: argparse.Namespace) -> int:
    """Move a run."""
    file = _file(args)
    (entry,) = _entries(file, [args.moved])
    if not args.place.isdecimal():
        message = f"PLACE: found {args.place!r}, expected a number from 1."
        raise ConfigError(message)
    file.move(entry.id, int(args.place) - 1 - file.read().index(entry))
    return show(args)


def pause(args: argparse.Namespace) -> int:
    """Hold the queue."""
    file = _file(args)
    file.change(held=True)
    if not file.held:
        print(f"No run waits in the queue in {args.log_dir}: there is nothing to hold.")
        return 0
    now = next((each.name for each in file.read() if each.state == "running"), "")
    print(f"No further run is started{f' after {now}, which is trained to its end' if now else ''}.")
    print(f"Resume it with `{PROGRAM} queue run`, or on the page.")
    return 0


def train(args: argparse.Namespace) -> int:
    """Train until no run waits. Ctrl-C stops the current run after its step, saves it, and leaves the others waiting."""
    from tqdm import tqdm

    from ti_trainer.runs.job import Job

    host = host_of(args)
    queue = queue_of(host, Job(bar=tqdm), lambda model: host.use_model(model.path or model.name if model else args.model))
    before = {each.id for each in queue.snapshot().entries if each.state == "failed"}
    message = "Stopping after this step; press Ctrl-C again to stop immediately. The other runs stay in the queue."
    with interruptible(message) as stop, above_bars():
        queue.start()
        while queue.snapshot().going and not stop.wait(LOOK_S):
            pass
        queue.close()
    return _ended(queue, before, interrupted=stop.is_set())


def queue_of(
    host: Host,
    job: Job | None = None,
    load_model: Callable[[ModelReference | None], object] | None = None,
) -> Queue:
    """The queue of a host."""
    from ti_trainer.preprocess import job as preprocess
    from ti_trainer.runs.job import Job
    from ti_trainer.runs.queue import Queue
    from ti_trainer.runs.quick_job import QuickJob

    queue = Queue()
    queue.attach(host, job or Job(), QuickJob(), preprocess.Job(), load_model)
    return queue


def _ended(queue: Queue, failed_before: set[str], *, interrupted: bool) -> int:
    """Print what is left; the exit code."""
    now = queue.snapshot()
    failed = [each for each in now.entries if each.state == "failed" and each.id not in failed_before]
    if now.message:
        raise ConfigError(now.message)
    if failed:
        names = ", ".join(each.name for each in failed)
        print(
            f"Failed: {names}. `{PROGRAM} queue` says why, and `{PROGRAM} queue retry` has it wait again.", file=sys.stderr
        )
    if now.waiting:
        print(f"{counted(now.waiting, 'run')} left in the queue: resume with `{PROGRAM} queue run`.")
    return INTERRUPTED if interrupted else 1 if failed else 0


def _file(args: argparse.Namespace) -> QueueFile:
    from ti_trainer.runs.queue_file import FILE, QueueFile

    return QueueFile(args.log_dir / FILE)


def _entries(file: QueueFile, wanted: list[str]) -> list[Entry]:
    """The entries that are meant; ConfigError if there is none of such a number or id."""
    entries = file.read()
    named = {**{str(number): each for number, each in enumerate(entries, 1)}, **{each.id: each for each in entries}}
    for each in wanted:
        if each not in named:
            found = f"{counted(len(entries), 'run')} in the queue" if entries else "an empty queue"
            message = f"RUN: found {each!r} and {found}, expected {ENTRY}; `{PROGRAM} queue` lists them."
            raise ConfigError(message)
    return [named[each] for each in dict.fromkeys(wanted)]


def _line(entry: Entry) -> str:
    """An entry in one line."""
    what = "from a prompt" if entry.prompt else f"{'quick training ' if entry.quick else ''}on {entry.images}"
    parts = [
        f"{entry.name} ({entry.id})",
        {"waiting": "waits", "running": "is trained now", "failed": "failed"}[entry.state],
        *([f"to step {entry.max_steps}"] if entry.max_steps else []),
        f"continues {entry.resume}" if entry.resume else what,
        f"model {entry.model.path or entry.model}" if entry.model else "model not stored",
    ]
    return ", ".join(parts)


ACTIONS = {
    "list": show,
    "add": add,
    "remove": remove,
    "retry": retry,
    "move": move,
    "pause": pause,
    "run": train,
}
