"""Which tests are slow: those that start programs, and those that slow_tests.txt lists by their measured CPU time.

`pytest --record-slow=0.3` rewrites the list with the tests that take more than 0.3 s of CPU. Only tests that ran are changed
in it. Run it on a quiet machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("slow_tests.txt")
IN = ("ui", "commands", "webui")  # folders of tests where these start a program or a browser:
STARTING_FIXTURES = {"served", "start", "run", "url", "checkout"}
STARTING_FUNCTIONS = {"launch", "serving", "started", "served"}
CPU_S = "cpu_s"


def starts_programs(item: pytest.Item) -> bool:
    """Whether a test starts a program or a browser, by its fixtures and by the functions that it calls."""
    if not isinstance(item, pytest.Function) or item.path.parent.name not in IN:
        return False
    fixtures, functions = set(item.fixturenames), set(item.function.__code__.co_names)
    return bool(fixtures & STARTING_FIXTURES or functions & STARTING_FUNCTIONS)


def mark(items: list[pytest.Item]) -> None:
    """Add the marker `slow`, and put files with slow tests first."""
    listed = set(LIST.read_text(encoding="utf-8").split())
    for item in items:
        if starts_programs(item) or without_parameters(item.nodeid) in listed:
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # at the end, no worker waits for another's slow file


def without_parameters(node: str) -> str:
    """The test function of a node: all its parameters are slow, or none."""
    return node.partition("[")[0]


def _cpu_s() -> float:
    import resource  # Windows has none: the list is recorded elsewhere

    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class Recorder:
    """Measures each test without its fixtures, and writes the list at the end. xdist's workers send what they measured."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s, self.seconds = limit_s, dict[str, float]()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        before = _cpu_s()
        yield
        item.user_properties.append((CPU_S, _cpu_s() - before))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            name = without_parameters(report.nodeid)
            self.seconds[name] = max(self.seconds.get(name, 0.0), dict(report.user_properties).get(CPU_S, 0.0))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            return  # the process that started the workers writes
        listed = set(LIST.read_text(encoding="utf-8").split()) - self.seconds.keys()
        listed |= {name for name, seconds in self.seconds.items() if seconds > self.limit_s}
        LIST.write_text("".join(f"{name}\n" for name in sorted(listed)), encoding="utf-8")
