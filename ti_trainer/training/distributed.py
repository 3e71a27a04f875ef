"""Several processes that train one embedding together: who makes which part of an update, and what they tell each other.

How many there are changes nothing but the time: an update is added up in the order of its parts, whoever made them. Knows
no model, no files and no step. Alone, and that is whenever nobody started several, nothing is sent and nothing is computed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from ti_trainer.errors import ConfigError, LostProcessError, StoppedError, TITrainerError

BEGIN_WITHIN = timedelta(minutes=10)  # until all are there
WAIT_AT_MOST = timedelta(days=1)  # for one that draws a preview on a CPU: one that is lost shows at once, not by waiting
ANSWER_WITHIN_S = 15.0  # of a stop: torchrun kills 30 s after it
NOTE_BYTES = 16384  # of what all tell each other before the first step


class Processes:
    """This process, the `rank`th of `size`; process 0 is the one that writes. Made by `joined`, or `ALONE`."""

    def __init__(self, rank: int = 0, size: int = 1, control: Any = None) -> None:
        """`control` is a group of gloo's, on the CPU, so that to agree on something no GPU is waited for."""
        self.rank, self.size = rank, size
        self.spoiled = False  # whether the last updates may be wrong: a GPU's sum is not waited for
        self.waiting = False  # whether something that was sent has not come to its end
        self._control, self._sums = control, control

    @property
    def is_writer(self) -> bool:
        """Whether files, previews and progress are this one's."""
        return self.rank == 0

    def check(self, micro_steps: int) -> None:
        """ConfigError if an update has fewer parts than there are processes."""
        if micro_steps < self.size:
            message = (
                f"Gradient accumulation steps: found {micro_steps} for {self.size} processes, expected {self.size} or more: "
                f"the parts of an update are shared out among them. Raise it to {self.size}, with a smaller batch "
                "size, or start fewer processes."
            )
            raise ConfigError(message, "gradient_accumulation_steps")

    def share(self, micro_steps: int) -> range:
        """Which parts of an update are this one's. The last part, whose prompts are told and drawn, is process 0's."""
        return range((micro_steps - 1 - self.rank) % self.size, micro_steps, self.size)

    @contextmanager
    def together(self) -> Iterator[dict[str, str]]:
        """What ends one process in here ends all, with its message.

        So does a fact that is not the same in all: a name for people, and what stands for it, put into the dict.
        """
        facts: dict[str, str] = {}
        if self.size == 1:
            yield facts
            return
        try:
            yield facts
        except TITrainerError as error:
            self._tell({"problem": str(error)[:1000], "stopped": isinstance(error, StoppedError)})
            raise
        notes = self._tell({"facts": facts})
        for rank, note in enumerate(notes):
            if "problem" in note:
                raise StoppedError(note["problem"]) if note["stopped"] else ConfigError(f"Process {rank}: {note['problem']}")
        for rank, note in enumerate(notes):
            if other := [name for name, fact in note["facts"].items() if notes[0]["facts"].get(name) != fact]:
                message = (
                    f"Process {rank} has another {' and another '.join(other)} than process 0: start all with the "
                    "same options, on the same files (a folder that all machines see, or copies of it at the same place)."
                )
                raise ConfigError(message)

    def meet_on(self, device: torch.device) -> None:
        """Gradients will be on a device of this type, in all: on CUDA they go by NCCL, where there is one."""
        import torch.distributed as dist

        if self.size > 1 and device.type == "cuda" and dist.is_nccl_available():
            self._sums = dist.new_group(backend="nccl", timeout=WAIT_AT_MOST)

    def any(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Whether any of them is to stop; all of them get the same answer. LostProcessError if one is not there any more."""
        stop = should_stop()
        if self.size == 1:
            return stop
        import torch.distributed as dist

        told = torch.tensor([stop], dtype=torch.uint8)
        self._wait(dist.all_reduce(told, dist.ReduceOp.MAX, self._control, async_op=True), should_stop)
        return bool(told)

    def add_up(self, parts: Tensor, should_stop: Callable[[], bool] = lambda: False) -> Tensor:
        """Each row of `parts` from the one that made it; in the others it is zero."""
        import torch.distributed as dist

        if self._sums is self._control:
            self._wait(dist.all_reduce(parts, group=self._sums, async_op=True), should_stop)
        else:
            self.any(should_stop)  # a sum that one is missing from would keep the GPU busy for ever
            dist.all_reduce(parts, group=self._sums)  # this one does not wait
        return parts

    def _tell(self, note: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The notes of all, by rank."""
        import torch.distributed as dist

        own = torch.zeros(NOTE_BYTES, dtype=torch.uint8)
        written = json.dumps(note).encode()
        own[: len(written)] = torch.frombuffer(bytearray(written), dtype=torch.uint8)
        notes = [torch.zeros_like(own) for _ in range(self.size)]
        self._wait(dist.all_gather(notes, own, self._control, async_op=True))
        return [json.loads(bytes(each.tolist()).rstrip(b"\0")) for each in notes]

    def _wait(self, work: Any, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Until it is done, while signals are heard; LostProcessError if it cannot be, or nobody answers after a stop."""
        self.waiting, pause_s, give_up = True, 1e-4, 0.0
        while not work.is_completed():
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.1, 0.02)
            if should_stop():
                give_up = give_up or time.monotonic() + ANSWER_WITHIN_S
                if time.monotonic() > give_up:
                    self._lost(f"does not answer for {ANSWER_WITHIN_S:.0f} s, and this is to stop")
        self.waiting = False
        try:
            work.wait()
        except RuntimeError as error:
            self._lost("was lost", error)

    def _lost(self, what: str, error: Exception | None = None) -> None:
        if self._sums is not self._control:
            self.spoiled = True
            with suppress(Exception):  # older ones cannot; then the GPU stays busy, and the last state is what is kept
                self._sums.abort()
        message = f"Another process of this training {what}; if it failed, it says above why. Go on with --resume."
        raise LostProcessError(message) from error


ALONE = Processes()


class Sum:
    """Gradients and losses of one update, added up in the order of its parts: bit for bit as one process alone does."""

    def __init__(self, processes: Processes, parameters: Sequence[Tensor], micro_steps: int, losses: int = 1) -> None:
        """Begin an update of so many parts, each with so many losses, without gradients."""
        self.mine = processes.share(micro_steps)
        self._processes, self._parameters, self._losses = processes, parameters, []
        if processes.size > 1:
            self._sizes = [*(each.numel() for each in parameters), losses]
            # Gradients and losses of each part.
            self._rows = parameters[0].new_zeros(micro_steps, sum(self._sizes), requires_grad=False)

    def add(self, index: int, loss: Tensor, gradients: Sequence[Tensor]) -> None:
        """Take the losses and the gradients of part `index`; alone these are added up in the parameters."""
        self._losses.append(loss)
        if self._processes.size > 1:
            self._rows[index] = torch.cat([*(each.flatten() for each in gradients), loss.float().reshape(-1)])
            return
        for each, gradient in zip(self._parameters, gradients, strict=True):
            # A gradient may be a view in which many numbers are one.
            each.grad = (
                torch.clone(gradient, memory_format=torch.contiguous_format) if each.grad is None else each.grad + gradient
            )

    def total(self, should_stop: Callable[[], bool]) -> Tensor:
        """The losses of the update, when the gradients of all its parts are in the parameters."""
        if self._processes.size == 1:
            return sum(self._losses[1:], self._losses[0])
        first, *others = self._processes.add_up(self._rows, should_stop)
        total = sum(others, first)
        *gradients, losses = total.split(self._sizes)
        for each, gradient in zip(self._parameters, gradients, strict=True):
            each.grad = gradient.reshape(each.shape).clone()
        return losses


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Processes]:
    """The processes that torchrun started, as its environment says; ALONE if it did not.

    ConfigError if this torch cannot do it, or nobody is there.
    """
    if int(environment.get("WORLD_SIZE", 1)) == 1 or "RANK" not in environment:
        yield ALONE
        return
    import torch.distributed as dist

    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    if not dist.is_available() or not dist.is_gloo_available():
        message = (
            f"Found {size} processes and a PyTorch ({torch.__version__}) that was built without torch.distributed, expected "
            "one with it and its gloo: start one process, without torchrun, or install another PyTorch."
        )
        raise ConfigError(message)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=size, timeout=BEGIN_WITHIN)
        processes = Processes(rank, size, dist.new_group(backend="gloo", timeout=WAIT_AT_MOST))
    except (RuntimeError, ValueError) as error:
        message = f"The {size} processes do not find each other ({str(error).splitlines()[0]}): start them with torchrun."
        raise ConfigError(message) from error
    try:
        yield processes
    finally:
        if not processes.waiting:  # it would wait for that
            with suppress(RuntimeError):
                dist.destroy_process_group()
