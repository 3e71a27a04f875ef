"""A real WebUI with a data folder of its own: started, spoken to, stopped. The checkout itself is left as it is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hosts

REPOSITORY = Path(__file__).parents[2]
STARTER = Path(__file__).with_name("start_host.py")
SETTINGS = {"samples_save": False, "grid_save": False, "show_progress_type": "Approx cheap"}


@dataclass
class Server:
    """A running WebUI. `data` holds models, embeddings, extensions and outputs; `log` what it printed."""

    kind: hosts.Kind
    url: str
    data: Path
    log: Path
    process: subprocess.Popen[bytes]
    timeout_s: float

    @property
    def embeddings(self) -> Path:
        return self.data / "embeddings"

    @property
    def extension(self) -> Path:
        return self.data / "extensions" / "ti-trainer"

    def api(self, path: str, body: Any = None, timeout_s: float | None = None) -> Any:
        """Its JSON API: GET without a body, POST with one. RuntimeError with the answer if it is refused."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})  # noqa: S310 - ours
        try:
            with urllib.request.urlopen(request, timeout=timeout_s or self.timeout_s) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error}: {error.read().decode(errors='replace')[:2000]}") from error
        except OSError as error:
            raise RuntimeError(f"{path}: {error} (exit status {self.process.poll()}):\n{self.tail()}") from error

    def endpoint(self, name: str, *given: Any) -> list[Any]:
        """What a named endpoint of the page returns; works for those that do not queue."""
        return self.api(f"/run/{name}", {"data": list(given)})["data"]

    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.printed().splitlines()[-lines:])

    def wait_for(self, words: str, after: int = 0) -> None:
        """Until the log has the words beyond its first `after` characters; RuntimeError with its end if it never does."""
        end = time.monotonic() + self.timeout_s
        while words not in self.printed()[after:]:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"The WebUI never said {words!r} (exit status {self.process.poll()}):\n{self.tail()}")
            time.sleep(0.2)


def install_extension(data: Path, webui: Path, python: Path) -> None:
    """Copy this repository's files as they are now, committed or not, but nothing that git ignores; run its installer.

    The latter as the WebUI's launcher does, in its environment, and whether it goes well or not.
    """
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=REPOSITORY, check=True, capture_output=True).stdout.decode().split("\0")
    for name in names:
        source, target = REPOSITORY / name, data / "extensions" / "ti-trainer" / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    environment = {**os.environ, "PYTHONPATH": f"{webui}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([python, data / "extensions" / "ti-trainer" / "install.py"], cwd=webui, env=environment, check=False)


@contextmanager
def running(
    webui: Path, python: Path, data: Path, options: Sequence[str] = (), *, threads: int = 1, timeout_s: float = 240
) -> Iterator[Server]:
    """The WebUI on a free port; A1111 and reForge have loaded a model then. Models are in `data`/models/Stable-diffusion."""
    kind = hosts.kind_of(webui)
    if not python.is_file():
        raise RuntimeError(f"There is no Python at {python}: name the WebUI's own with --webui-python.")
    for folder in ("embeddings", "extensions"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    settings = data / "config.json"
    if not settings.exists():
        settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
    port, log = _free_port(), data / "log.txt"
    command = [str(python), "-u", str(STARTER), *kind.options, f"--port={port}", f"--data-dir={data}", *options]
    if kind.is_gradio4:
        command.append(f"--gradio-allowed-path={webui}")  # or its own scripts are refused, with the data elsewhere
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=webui, env=_environment(threads), stdout=output, stderr=subprocess.STDOUT)
    server = Server(kind, f"http://127.0.0.1:{port}", data, log, process, timeout_s)
    try:
        server.wait_for("Startup time:")  # a request before that kills it
        if kind.loaded:
            server.wait_for(kind.loaded)
        yield server
    finally:
        _stop(process)


def _environment(threads: int) -> dict[str, str]:
    quiet = {name: value for name, value in os.environ.items() if name not in ("COMMANDLINE_ARGS", "PYTHONPATH")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    # With more threads than free cores small models are many times slower.
    return {**quiet, **offline, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGINT, signal.SIGKILL):
        process.send_signal(sign)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            continue
        return
