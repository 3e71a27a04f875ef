"""Measures what open pages cost the server: CPU time of a poll, slowdown of a training, memory over many runs.

python docs/measure_page.py [polls] [slowdown] [memory]; Linux, for /proc. It trains the embedded model on the demo's images.
Figures go to benchmarks.md. "slowdown" needs a machine that has nothing else to do.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
ROUTE = "/ti_trainer/status"
PAGES, POLLS, RUNS = 20, 200, 50
OVER_S = 10
TURNS, TURN_S = 4, 8.0
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """The page in a process of its own."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "ti_trainer", "page", "--no-browser", "--port", "7990"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        said = self.process.stdout or ()
        self.netloc = next(urlsplit(line.split()[4]).netloc for line in said if "http://" in line)
        config = json.loads(self.ask("GET", "/config"))
        self.functions = {each["api_name"]: each["id"] for each in config["dependencies"] if each["api_name"]}
        (poll,) = (each["id"] for each in config["components"] if each["props"].get("elem_id") == "ti_trainer_poll")
        self.poll_id = next(each["id"] for each in config["dependencies"] if each["targets"][0][0] == poll)

    def ask(
        self, method: str, path: str, body: object = None, connection: http.client.HTTPConnection | None = None
    ) -> bytes:
        """The answer to a request."""
        connection = connection or http.client.HTTPConnection(self.netloc, timeout=120)
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        return connection.getresponse().read()

    def call(self, function: int, data: list[Any], session: str = "s") -> list[Any]:
        """Call a function of the page, as a browser does."""
        body = {"data": data, "fn_index": function, "session_hash": session}
        return json.loads(self.ask("POST", "/gradio_api/run/predict", body))["data"]

    def train(self, steps: int) -> None:
        """Start a run of the demo's embedding."""
        options = json.dumps({"max_steps": steps, "preview_every": 0, "stop_when_done": False, "template": "subject"})
        images = str(ROOT / "ti_trainer" / "tiny_model" / "demo")
        self.call(self.functions["ti_trainer_train"], ["my-thing", images, options])

    @property
    def status(self) -> dict[str, Any]:
        """What the route says."""
        return json.loads(self.ask("GET", ROUTE))

    @property
    def cpu_s(self) -> float:
        """CPU time of the process until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    @property
    def memory_mb(self) -> float:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def wait(self) -> None:
        """Wait until a run has ended."""
        while self.status["status"] not in ("done", "stopped", "failed"):
            time.sleep(0.2)

    def close(self) -> None:
        """End the process."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


def polls(server: Server) -> None:
    """CPU time of a request of the route, and of a call of the page that has nothing new and one that has everything."""
    server.train(40)
    server.wait()
    connection = http.client.HTTPConnection(server.netloc, timeout=120)
    answer = server.call(server.poll_id, [""])[0]
    cases: dict[str, Callable[[], object]] = {
        "10 ms without a request": lambda: time.sleep(0.01),
        "route": lambda: server.ask("GET", ROUTE, connection=connection),
        "call of the page, nothing new": lambda: server.call(server.poll_id, [answer]),
        "call of the page, everything new": lambda: server.call(server.poll_id, [""]),
    }
    for name, ask in cases.items():
        ask()
        before = server.cpu_s
        for _ in range(POLLS):
            ask()
        print(f"{name}: {1000 * (server.cpu_s - before) / POLLS:.2f} ms of CPU", flush=True)


def slowdown(server: Server) -> None:
    """Steps per second of a training without pages and with 20, in turns; each page does what the script does."""
    server.train(100_000)
    while server.status["step"] < 20:
        time.sleep(0.5)
    opened = threading.Event()

    def page(number: int) -> None:
        answer, every_s = "", 1.0
        connection = http.client.HTTPConnection(server.netloc, timeout=120)
        time.sleep(number / PAGES)
        with suppress(OSError, http.client.HTTPException):  # the server has ended
            while True:
                opened.wait()
                time.sleep(every_s)
                told = json.loads(server.ask("GET", ROUTE, connection=connection))
                every_s = told["every"]
                if told["version"] not in answer:
                    answer = server.call(server.poll_id, [answer], f"page{number}")[0]

    for number in range(PAGES):
        threading.Thread(target=page, args=(number,), daemon=True).start()
    rates: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * TURNS):
        with_pages = turn % 2 == 1
        (opened.set if with_pages else opened.clear)()
        time.sleep(OVER_S if with_pages else 2)  # until the server has counted the pages
        step, begin, cpu = server.status["step"], time.monotonic(), server.cpu_s
        time.sleep(TURN_S)
        steps, took = server.status["step"] - step, time.monotonic() - begin
        rates[with_pages].append(steps / took)
        print(f"{PAGES * with_pages} pages: {steps / took:.2f} steps/s, {(server.cpu_s - cpu) / took:.2f} CPUs", flush=True)
    alone, together = (statistics.median(rates[each]) for each in (False, True))
    print(f"{PAGES} open pages: {100 * (alone - together) / alone:.1f}% slower", flush=True)


def memory(server: Server) -> None:
    """Growth of the server's memory from the third run on."""
    first = 0.0
    for number in range(1, RUNS + 1):
        server.train(number * 2)
        server.wait()
        server.call(server.poll_id, [""])
        if number == 3:
            first = server.memory_mb
        if number in (3, 10, 25, RUNS):
            print(f"after {number} runs: {server.memory_mb:.0f} MB", flush=True)
    print(f"{RUNS - 3} runs: {server.memory_mb - first:+.0f} MB", flush=True)


def main(wanted: list[str]) -> None:
    """Measure what is wanted, everything by default, each on a fresh server."""
    for each in (polls, slowdown, memory):
        if not wanted or each.__name__ in wanted:
            with tempfile.TemporaryDirectory() as folder:
                server = Server(Path(folder))
                try:
                    each(server)
                finally:
                    server.close()


if __name__ == "__main__":
    main(sys.argv[1:])
