"""Everything to run on a GPU, in at most 10 minutes: tests, the report of `doctor`, peak memory and speed.

python tests/gpu/run_all.py [--diffusers DIR] [--output FILE]; paste the block at the end into an issue. It has a result for
every part, also for those that fail or take too long. DIR is a checkout of diffusers, whose training script is measured as
well. SDXL needs 16 GB of RAM. `--dry` runs all parts on the CPU with the embedded model: a check of this script.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

ROOT = Path(__file__).parents[2]
TOTAL_S = 600
SHAPES = {"sd15": 512, "sdxl": 1024}
BATCH_SIZES = (1, 4)
STEPS = 30  # of each trainer in a benchmark
SHOWN = 12  # last lines of a part that failed
TESTS = ("tests/gpu", "tests/hosts/webui/test_webui_on_gpu.py")


@dataclass(frozen=True)
class Part:
    """A command line without Python, and the seconds after which it is ended."""

    name: str
    arguments: Sequence[str]
    limit_s: float


@dataclass
class Outcome:
    """What came of a part: why it failed, empty if it did not, and what it printed."""

    part: Part
    seconds: float = 0.0
    problem: str = "not run: the time is over"
    lines: list[str] = field(default_factory=list)


def parts(diffusers: str = "", *, dry: bool = False) -> list[Part]:
    """All parts, the most important ones first. Their limits are those of the whole."""
    pytest = ["-m", "pytest", "-v", "-rs", "--tb=short", "--timeout=80", "-m", "gpu", "-p", "no:cacheprovider", *TESTS]
    found = [Part("tests", pytest, 170)]
    peaks = str(Path(__file__).with_name("peaks.py"))
    if dry:
        embedded = ["--size", "64", "--device", "cpu"]
        found.append(Part("doctor", ["-m", "ti_trainer", "doctor", *embedded], 60))
        found.append(Part("peaks", [peaks, "--dry"], 60))
        found.append(Part("bench", [*_bench(10, 1), *embedded, "--precision", "fp32"], 60))
        return found
    others = ["--compile", "--against", "webui", *([f"diffusers={diffusers}"] if diffusers else [])]  # for SD 1.x only
    shaped = {shape: ["--shape", shape, "--size", str(size_px)] for shape, size_px in SHAPES.items()}
    found.append(Part("doctor sd15", ["-m", "ti_trainer", "doctor", *shaped["sd15"]], 40))
    for shape, further, limits_s in (("sd15", others, (40, 100, 90)), ("sdxl", [], (70, 50, 40))):
        found.append(Part(f"peaks {shape}", [peaks, shape], limits_s[0]))
        for batch_size, limit_s in zip(BATCH_SIZES, limits_s[1:], strict=True):
            command = [*_bench(STEPS, batch_size), *shaped[shape], "--precision", "bf16", *further]
            found.append(Part(f"bench {shape}, batch {batch_size}", command, limit_s))
    return found


def _bench(steps: int, batch_size: int) -> list[str]:
    return ["-m", "ti_trainer", "bench", "--json", "--steps", str(steps), "--batch-sizes", str(batch_size)]


def run(part: Part, limit_s: float, environment: dict[str, str]) -> Outcome:
    """Run a part to its end or to the limit, and print what it prints."""
    outcome, begun = Outcome(part, problem=""), time.monotonic()
    command = [sys.executable, *part.arguments]
    print(f"\n$ python {' '.join(part.arguments)}", flush=True)
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, errors="replace", start_new_session=os.name == "posix", **piped
    ) as process:
        reader = Thread(target=lambda: _read(process, outcome.lines), daemon=True)
        reader.start()
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            outcome.problem = f"ended after {limit_s:.0f} s"
        finally:
            _end(process)
        reader.join(10)
    if process.returncode and not outcome.problem:
        outcome.problem = f"exit code {process.returncode}"
    outcome.seconds = time.monotonic() - begun
    return outcome


def _read(process: subprocess.Popen[str], lines: list[str]) -> None:
    for line in process.stdout or ():
        lines.append(line.rstrip())
        print(line, end="", flush=True)


def _end(process: subprocess.Popen[str]) -> None:
    """With all programs that it has started."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None and os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        elif process.poll() is None:
            process.kill()
    process.wait()


def block(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The result, for an issue."""
    yield "```"
    yield f"tests/gpu/run_all.py, {datetime.datetime.now().astimezone().date()}"
    yield from _about()
    for each in outcomes:
        yield f"== {each.part.name}: {each.problem or 'done'} ({each.seconds:.0f} s)"
        yield from _of_interest(each)
    yield "```"


def _about() -> Iterator[str]:
    try:
        import torch

        from ti_trainer.workbench import diagnosis

        yield from diagnosis.about(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except Exception as error:  # the rest of the block is worth more
        yield f"no versions: {error!r}"


def _of_interest(outcome: Outcome) -> Iterator[str]:
    """A table for a benchmark; of the tests the summary; all lines of what prints a report, and the last of a failure."""
    is_bench = outcome.part.name.startswith("bench")
    facts = next((json.loads(line) for line in outcome.lines if line.startswith('{"')), None) if is_bench else None
    if facts is not None:
        from ti_trainer.benchmark.speed import table

        yield from table(facts).splitlines()
        yield from filter(None, map(pays_from, facts["rows"]))
    elif outcome.problem:
        yield from outcome.lines[-SHOWN:]
    elif outcome.part.name == "tests":
        yield from (line for line in outcome.lines if line.startswith("SKIPPED ["))
        yield from outcome.lines[-1:]
    else:
        yield from (line for line in outcome.lines if line != "```")


def pays_from(row: dict[str, Any]) -> str:
    """From how many steps on compiling saves more time than it takes: MIN_STEPS of offload/compiling.py is such a number."""
    speeds = row["steps_per_second"]
    if "compile_seconds" not in row or "compiled" not in speeds:
        return ""
    saved = 1 / speeds["ours"] - 1 / speeds["compiled"]
    steps = f"from {row['compile_seconds'] / saved:.0f} steps on" if saved > 0 else "never here"
    return f"  batch {row['batch_size']}: compiling pays {steps}; auto compiles from 4000"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all of them, whatever fails; returns how many failed."""
    parser = argparse.ArgumentParser(description="Run all that needs a GPU, and print the result for an issue.")
    parser.add_argument("--diffusers", default="", metavar="DIR", help="a checkout of diffusers, to be measured too")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the result there")
    parser.add_argument("--dry", action="store_true", help="run all parts on the CPU, as a check of this script")
    args = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    import torch

    if not torch.cuda.is_available() and not args.dry:
        print("There is no GPU that this PyTorch can use. `ti-trainer doctor` says why.")
        return 1
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"}
    if args.dry:
        environment["TI_TRAINER_GPU_TESTS"] = "cpu"
    outcomes = [Outcome(each) for each in parts(args.diffusers, dry=args.dry)]
    ends = time.monotonic() + TOTAL_S
    try:
        for number, each in enumerate(outcomes):
            if (left := ends - time.monotonic()) > 5:
                outcomes[number] = run(each.part, min(each.part.limit_s, left), environment)
    except KeyboardInterrupt:
        print("Interrupted.")
    finally:
        text = "\n".join(block(outcomes))
        print(f"\n{text}", flush=True)
        if args.output:
            args.output.write_text(text + "\n", encoding="utf-8")
    return sum(bool(each.problem) for each in outcomes)


if __name__ == "__main__":
    sys.exit(main())
