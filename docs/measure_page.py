"""Measures what open pages cost the server: CPU time of a poll and of 20 open pages, how they slow a training down, memory.

python docs/measure_page.py [polls] [pages] [slowdown] [memory]; Linux, for /proc. Figures go to benchmarks.md. It trains the
embedded model on the demo's images; "pages" a model that only waits, so that the CPU time is that of the pages.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
ROUTE = "/ti_trainer/status"
PAGES, POLLS, RUNS = 20, 200, 50
OVER_S, TURN_S = 12, 20.0
PAIRS, PAIR_TURN_S = 10, 8.0  # of turns without and with pages
WAITING = (str(ROOT / "tests" / "ui" / "tiny_page.py"), ".", "0.1")  # a step takes 0.1 s, and next to no CPU time
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """The page in a process of its own."""

    def __init__(self, folder: Path, program: Sequence[str] = ("-m", "ti_trainer", "page", "--no-browser")) -> None:
        command = [sys.executable, *program]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        said = self.process.stdout or ()
        self.netloc = next(urlsplit(re.findall(r"http://\S+", line)[0]).netloc for line in said if "http://" in line)
        config = json.loads(self.ask("GET", "/config"))
        self.functions = {each["api_name"]: each["id"] for each in config["dependencies"] if each["api_name"]}
        (poll,) = (each["id"] for each in config["components"] if each["props"].get("elem_id") == "ti_trainer_poll")
        self.poll_id = next(each["id"] for each in config["dependencies"] if each["targets"][0][0] == poll)

    def connect(self) -> http.client.HTTPConnection:
        """A connection that is kept open, as browsers do."""
        return http.client.HTTPConnection(self.netloc, timeout=120)

    def ask(
        self, method: str, path: str, body: object = None, connection: http.client.HTTPConnection | None = None
    ) -> bytes:
        """The answer to a request."""
        connection = connection or self.connect()
        text, headers = json.dumps(body) if body else None, {"Content-Type": "application/json"}
        try:
            connection.request(method, path, text, headers)
            return connection.getresponse().read()
        except ConnectionError:  # the server has closed it after a pause; if it has ended, this raises too
            connection.close()
            connection.request(method, path, text, headers)
            return connection.getresponse().read()

    def call(self, function: int, data: list[Any], session: str = "s") -> list[Any]:
        """Call a function of the page, as a browser does."""
        body = {"data": data, "fn_index": function, "session_hash": session}
        return json.loads(self.ask("POST", "/gradio_api/run/predict", body))["data"]

    def train(self, steps: int, name: str = "my-thing") -> None:
        """Start a run of the demo's embedding, or another."""
        options = {"max_steps": steps, "preview_every": 0, "stop_when_done": False, "template": "subject"}
        options["prompt_preservation"] = 0  # so that all steps take the same time
        images = str(ROOT / "ti_trainer" / "tiny_model" / "demo")
        self.call(self.functions["ti_trainer_train"], [name, images, json.dumps(options)])

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
    connection = server.connect()
    at = json.loads(server.ask("GET", f"{ROUTE}?since="))["at"]
    answer = server.call(server.poll_id, [""])[0]
    cases: dict[str, Callable[[], object]] = {
        "10 ms without a request": lambda: time.sleep(0.01),
        "route, nothing new": lambda: server.ask("GET", f"{ROUTE}?since={at}", connection=connection),
        "route, everything new": lambda: server.ask("GET", f"{ROUTE}?since=", connection=connection),
        "call of the page, nothing new": lambda: server.call(server.poll_id, [answer]),
        "call of the page, everything new": lambda: server.call(server.poll_id, [""]),
    }
    for name, ask in cases.items():
        ask()
        before = server.cpu_s
        for _ in range(POLLS):
            ask()
        print(f"{name}: {1000 * (server.cpu_s - before) / POLLS:.2f} ms of CPU", flush=True)


class Pages:
    """Visible pages, which do as their script does while they are opened; at the rate that the server tells that many."""

    def __init__(self, server: Server) -> None:
        self.server, self.opened, self.asked = server, threading.Event(), {"route": 0, "calls": 0}
        for number in range(PAGES):
            threading.Thread(target=self._page, args=(number,), daemon=True).start()

    def _page(self, number: int) -> None:
        answer, at, busy, every_s, connection = "", "", False, PAGES / 4, self.server.connect()
        with suppress(OSError, http.client.HTTPException):  # the server has ended
            while True:
                self.opened.wait()
                time.sleep((every_s if busy else max(every_s, 5)) * (1 + number / PAGES / 10))
                told = json.loads(self.server.ask("GET", f"{ROUTE}?since={at}", connection=connection))
                self.asked["route"] += 1
                at, every_s = told["at"], max(told["every"], every_s)
                busy = told["status"] in ("loading", "training")
                if told["version"].split("-")[0] not in answer:
                    answer, at = self.server.call(self.server.poll_id, [answer], f"page{number}")[0], ""
                    self.asked["calls"] += 1


def pages(server: Server) -> None:
    """CPU time of the server a second, without and with 20 visible pages, idle and during a run."""
    shown = Pages(server)
    for what in ("idle", "training"):
        if what == "training":
            server.train(100_000, "x-word")
        used = {}
        for with_pages in (False, True):
            (shown.opened.set if with_pages else shown.opened.clear)()
            time.sleep(OVER_S)  # until the server has counted the pages
            shown.asked.update(route=0, calls=0)
            begin, cpu = time.monotonic(), server.cpu_s
            time.sleep(TURN_S)
            took = time.monotonic() - begin
            used[with_pages] = 1000 * (server.cpu_s - cpu) / took
            a_second = ", ".join(f"{count / took:.1f} {name}" for name, count in shown.asked.items())
            print(f"{what}, {PAGES * with_pages} pages: {used[with_pages]:.1f} ms of CPU a second; {a_second}", flush=True)
        print(f"{what}: {PAGES} open pages take {(used[True] - used[False]) / 10:.2f}% of one CPU", flush=True)


def slowdown(server: Server) -> None:
    """How much longer a step of the embedded model takes with 20 visible pages, in pairs of turns without and with them."""
    shown = Pages(server)
    server.train(100_000)
    while server.status["step"] < 5:
        time.sleep(0.5)
    shown.opened.set()
    time.sleep(OVER_S)
    ratios: dict[str, list[float]] = {"time": [], "CPU time": []}
    for pair in range(PAIRS):
        took = {}
        for with_pages in (False, True) if pair % 2 else (True, False):
            (shown.opened.set if with_pages else shown.opened.clear)()
            time.sleep(1)
            step, begin, cpu = server.status["step"], time.monotonic(), server.cpu_s
            time.sleep(PAIR_TURN_S)
            now = server.status["step"]
            took[with_pages] = ((time.monotonic() - begin) / (now - step), (server.cpu_s - cpu) / (now - step))
        for number, name in enumerate(ratios):
            ratios[name].append(100 * (took[True][number] / took[False][number] - 1))
        pair_took = (f"{1000 * took[each][0]:.1f} ms, {1000 * took[each][1]:.1f} ms of CPU" for each in (False, True))
        print(f"a step without and with pages: {'; '.join(pair_took)}", flush=True)
    for name, found in ratios.items():
        low, middle, high = statistics.quantiles(found, n=4)
        print(f"with {PAGES} pages, {name} of a step: {middle:+.2f}% (quartiles {low:+.2f}, {high:+.2f})", flush=True)


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
    for each in (polls, pages, slowdown, memory):
        if not wanted or each.__name__ in wanted:
            with tempfile.TemporaryDirectory() as folder:
                server = Server(Path(folder), WAITING) if each is pages else Server(Path(folder))
                try:
                    each(server)
                finally:
                    server.close()


if __name__ == "__main__":
    main(sys.argv[1:])
