"""Start programs of ours in processes of their own without waiting for an interpreter to import torch each time.

On Linux one process imports the large packages once; `start` forks it for each program. A fork has its own pid, folder,
environment, output and exit status, and receives signals. At its end it waits for its threads and runs the functions of
`atexit`, but frees no memory: for all packages that takes two seconds. Elsewhere `start` is `subprocess.Popen`. Tests of
the start of Python itself use `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

ROOT = Path(__file__).parents[1]
FORKS = sys.platform == "linux"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a process with threads cannot be forked safely
MESSAGE_BYTES = 2**18
LARGE_PACKAGES = (
    *(
        "pytest",
        "torch",
        "numpy",
        "PIL.Image",
        "safetensors.torch",
        "transformers",
        "diffusers",
        "gradio",
    ),
    *("ti_trainer.commands.train", "ti_trainer.ui.layout", "ti_trainer.ui.app", "ti_trainer.hosts.diffusers.loading"),
)


def start(
    program: Sequence[object],
    *,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    stderr: TextIO | None = None,
) -> subprocess.Popen[str] | ForkedProgram:
    """Run Python with these arguments, `-m MODULE ...`, `-c CODE ...` or `FILE ...`; what it writes is read from pipes."""
    arguments = [str(each) for each in program]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    complete = {**os.environ, **ONE_THREAD, **(environment or {}), "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"}
    if FORKS:
        return ForkedProgram(arguments, cwd, complete, stderr)
    pipe, command = subprocess.PIPE, [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=cwd, env=complete, stdout=pipe, stderr=stderr or pipe, text=True, encoding="utf-8")


@contextlib.contextmanager
def serving(
    program: Sequence[object], *, cwd: Path = ROOT, stderr: TextIO | None = None
) -> Iterator[tuple[str, subprocess.Popen[str] | ForkedProgram]]:
    """Run a program whose first line of output is the address it serves; yields the address and the process."""
    with start(program, cwd=cwd, stderr=stderr) as process:
        try:
            assert process.stdout
            url = process.stdout.readline().strip()
            assert url, process.communicate()
            yield url, process
        finally:
            process.kill()


class ForkedProgram:
    """A program that runs in a fork. The part of `subprocess.Popen` that tests use."""

    def __init__(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], stderr: TextIO | None = None
    ) -> None:
        (out, child_out), (err, child_err) = os.pipe(), os.pipe()
        self.stdout, self.stderr = (open(each, encoding="utf-8", errors="replace") for each in (out, err))  # noqa: PTH123, SIM115
        if stderr is not None:
            os.dup2(stderr.fileno(), child_err)
        self.returncode: int | None = None
        self._status = socket.socket(socket.AF_UNIX)
        self._status.connect(_Server.address())
        request = json.dumps([list(arguments), str(cwd), dict(environment)]).encode()
        socket.send_fds(self._status, [len(request).to_bytes(4, "big")], [child_out, child_err])
        self._status.sendall(request)
        for each in (child_out, child_err):
            os.close(each)
        self.pid = int.from_bytes(_received(self._status, 4), "big")

    def __enter__(self) -> ForkedProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self.stdout.close()
        self.stderr.close()
        self._status.close()

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the program runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once the program has ended; TimeoutExpired if it has not ended in time."""
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                self.returncode = os.waitstatus_to_exitcode(int.from_bytes(_received(self._status, 4), "big"))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0) from None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that the program still writes, to stdout and to stderr, until it ends."""
        texts = {}

        def read(name: str, stream: TextIO) -> None:
            texts[name] = stream.read()

        streams = (("out", self.stdout), ("err", self.stderr))
        readers = [threading.Thread(target=read, args=each, daemon=True) for each in streams]
        for each in readers:
            each.start()
        self.wait(timeout)
        for each in readers:
            each.join(timeout)
            if each.is_alive():  # a process that the program started has the pipe still
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return texts["out"], texts["err"]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class _Server:
    """The process that is forked; it starts with the first program and ends with this one."""

    _address = ""
    _process: subprocess.Popen[bytes] | None = None

    @classmethod
    def address(cls) -> str:
        if cls._process is None or cls._process.poll() is not None:
            cls._address = tempfile.mktemp(prefix="ti-forks-", dir=tempfile.gettempdir())  # noqa: S306  # bind makes it
            environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
            command, pipe = [sys.executable, __file__, cls._address], subprocess.PIPE
            cls._process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, cwd=ROOT)
            assert cls._process.stdout
            assert cls._process.stdout.readline() == b"ready\n"
        return cls._address


def _received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError("the process that starts programs has ended")
        data += part
    return data


def _serve(address: str) -> None:
    """Fork for each request until stdin ends. Returns only in a fork, which is to become the program."""
    import importlib

    for name in LARGE_PACKAGES:
        with contextlib.suppress(ImportError):  # each environment has some of them
            importlib.import_module(name)
    gc.freeze()  # a collection in a fork does not touch these objects, which would copy their memory
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
        os.write(1, b"ready\n")
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            if 0 in ready:
                Path(address).unlink()
                os._exit(0)
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _become_program(connection)


def _become_program(connection: socket.socket) -> None:
    """Fork once more: this process reports the pid and the exit status, its child returns and runs the program."""
    head, outputs, _, _ = socket.recv_fds(connection, 4, 2)
    arguments, cwd, environment = json.loads(_received(connection, int.from_bytes(head, "big")))
    pid = os.fork()
    if pid:
        for each in outputs:
            os.close(each)
        connection.sendall(pid.to_bytes(4, "big"))
        ended = os.pidfd_open(pid)
        if ended not in select.select([connection, ended], [], [])[0]:  # the test has ended, or pytest was killed
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            connection.sendall(status.to_bytes(4, "big"))
        os._exit(0)
    connection.close()
    for number, each in zip((1, 2), outputs, strict=True):
        os.dup2(each, number)
        os.close(each)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # the old ones are of other files
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    try:
        _run(arguments)
    except SystemExit as end:
        _end(end.code)
    _end(0)


def _end(code: object) -> NoReturn:
    """What Python does at its end, but for the memory; other exceptions than SystemExit are left to Python itself."""
    if not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit((code or 0) & 0xFF)


def _run(arguments: list[str]) -> None:
    """What Python does with these arguments."""
    sys.path[:] = [*os.environ["PYTHONPATH"].split(os.pathsep), *sys.path[1:]]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102  # as Python does
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _serve(sys.argv[1])
