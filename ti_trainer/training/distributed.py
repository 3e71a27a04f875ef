"""Train one embedding in several processes, which share the micro-batches of each update and exchange gradients.

The number of processes changes nothing but the speed: gradients are added up in the order of the micro-batches, whichever
process computed them. A single process sends nothing and computes nothing extra.
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

START_TIMEOUT = timedelta(minutes=10)  # until all processes have started
WAIT_TIMEOUT = timedelta(days=1)  # for a process that generates a preview on a CPU; a lost one is noticed at once
STOP_TIMEOUT_S = 15.0  # torchrun kills processes 30 s after a stop
MESSAGE_BYTES = 16384  # of a message to the other processes before the first step


class Processes:
    """This process, number `rank` of `size`; process 0 writes the files. Use `joined`, or `ALONE`, to get one."""

    def __init__(self, rank: int = 0, size: int = 1, control: Any = None) -> None:
        """`control` is a gloo group on the CPU, so that agreeing on something does not wait for a GPU."""
        self.rank, self.size = rank, size
        self.spoiled = False  # whether the last updates may be wrong, since sums on a GPU are not waited for
        self.waiting = False  # whether a transfer is unfinished
        self._control, self._sums = control, control

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files, generates previews and reports progress."""
        return self.rank == 0

    def check(self, micro_steps: int) -> None:
        """Raise ConfigError if an update has fewer micro-batches than there are processes."""
        if micro_steps < self.size:
            message = (
                f"Gradient accumulation steps: found {micro_steps} for {self.size} processes, expected {self.size} or more: "
                f"the processes share them. Raise it to {self.size}, with a smaller batch size, or start fewer "
                "processes."
            )
            raise ConfigError(message, "gradient_accumulation_steps")

    def share(self, micro_steps: int) -> range:
        """The micro-batches of this process. The last one, whose prompts are shown and used for previews, is process 0's."""
        return range((micro_steps - 1 - self.rank) % self.size, micro_steps, self.size)

    @contextmanager
    def together(self) -> Iterator[dict[str, str]]:
        """A TITrainerError inside this context is raised in all processes.

        So is a ConfigError if the processes differ in what they put into the dict: names as users know them, and values.
        """
        facts: dict[str, str] = {}
        if self.size == 1:
            yield facts
            return
        try:
            yield facts
        except TITrainerError as error:
            self._exchange({"problem": str(error)[:1000], "stopped": isinstance(error, StoppedError)})
            raise
        messages = self._exchange({"facts": facts})
        for rank, each in enumerate(messages):
            if "problem" in each:
                raise StoppedError(each["problem"]) if each["stopped"] else ConfigError(f"Process {rank}: {each['problem']}")
        for rank, each in enumerate(messages):
            if other := [name for name, fact in each["facts"].items() if messages[0]["facts"].get(name) != fact]:
                message = (
                    f"Process {rank} has another {' and another '.join(other)} than process 0: start all processes with the "
                    "same options and files (in a shared folder, or in copies at the same path)."
                )
                raise ConfigError(message)

    def meet_on(self, device: torch.device) -> None:
        """Exchange gradients on a device of this type from now on: with NCCL on CUDA, where it is available."""
        import torch.distributed as dist

        if self.size > 1 and device.type == "cuda" and dist.is_nccl_available():
            self._sums = dist.new_group(backend="nccl", timeout=WAIT_TIMEOUT)

    def any(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Whether any process should stop, the same answer in all of them; LostProcessError if one of them was lost."""
        stop = should_stop()
        if self.size == 1:
            return stop
        import torch.distributed as dist

        answer = torch.tensor([stop], dtype=torch.uint8)
        self._wait(dist.all_reduce(answer, dist.ReduceOp.MAX, self._control, async_op=True), should_stop)
        return bool(answer)

    def add_up(self, parts: Tensor, should_stop: Callable[[], bool] = lambda: False) -> Tensor:
        """The sum of `parts` over all processes. Each row comes from one process and is zero in the others."""
        import torch.distributed as dist

        if self._sums is self._control:
            self._wait(dist.all_reduce(parts, group=self._sums, async_op=True), should_stop)
        else:
            self.any(should_stop)  # a sum that a process never joins would keep the GPU busy forever
            dist.all_reduce(parts, group=self._sums)  # does not wait
        return parts

    def _exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The messages of all processes, by rank."""
        import torch.distributed as dist

        own = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
        written = json.dumps(message).encode()
        own[: len(written)] = torch.frombuffer(bytearray(written), dtype=torch.uint8)
        messages = [torch.zeros_like(own) for _ in range(self.size)]
        self._wait(dist.all_gather(messages, own, self._control, async_op=True))
        return [json.loads(bytes(each.tolist()).rstrip(b"\0")) for each in messages]

    def _wait(self, work: Any, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Wait without blocking signals; LostProcessError if the transfer fails, or does not finish soon after a stop."""
        self.waiting, pause_s, give_up = True, 1e-4, 0.0
        while not work.is_completed():
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.1, 0.02)
            if should_stop():
                give_up = give_up or time.monotonic() + STOP_TIMEOUT_S
                if time.monotonic() > give_up:
                    self._lost(f"has not answered for {STOP_TIMEOUT_S:.0f} s after a stop")
        self.waiting = False
        try:
            work.wait()
        except RuntimeError as error:
            self._lost("was lost", error)

    def _lost(self, what: str, error: Exception | None = None) -> None:
        if self._sums is not self._control:
            self.spoiled = True
            with suppress(Exception):  # older versions cannot; the GPU then stays busy, and the last saved state is kept
                self._sums.abort()
        message = f"Another process of this training {what}; if it failed, its error is above. Continue with --resume."
        raise LostProcessError(message) from error


ALONE = Processes()


class Sum:
    """Gradients and losses of one update, added up in the order of its micro-batches, bit for bit as in one process."""

    def __init__(self, processes: Processes, parameters: Sequence[Tensor], micro_steps: int, losses: int = 1) -> None:
        """Start an update of `micro_steps` micro-batches with `losses` losses each."""
        self.mine = processes.share(micro_steps)
        self._processes, self._parameters = processes, parameters
        self._losses: list[Tensor] = []
        if processes.size > 1:
            self._sizes = [*(each.numel() for each in parameters), losses]
            # (micro_steps, gradients and losses of a micro-batch)
            self._rows = parameters[0].new_zeros(micro_steps, sum(self._sizes), requires_grad=False)

    def add(self, index: int, loss: Tensor, gradients: Sequence[Tensor]) -> None:
        """Add the losses and gradients of micro-batch `index`; a single process adds them up in the parameters."""
        self._losses.append(loss)
        if self._processes.size > 1:
            self._rows[index] = torch.cat([*(each.flatten() for each in gradients), loss.float().reshape(-1)])
            return
        for each, gradient in zip(self._parameters, gradients, strict=True):
            # Cloned, since a gradient may be an expanded view.
            each.grad = (
                torch.clone(gradient, memory_format=torch.contiguous_format) if each.grad is None else each.grad + gradient
            )

    def total(self, should_stop: Callable[[], bool]) -> Tensor:
        """The losses of the update (losses,). Afterwards the parameters have the gradients of all its micro-batches."""
        if self._processes.size == 1:
            return _added(self._losses)
        total = _added(list(self._processes.add_up(self._rows, should_stop)))
        losses: Tensor
        *gradients, losses = torch.split(total, self._sizes)
        for each, gradient in zip(self._parameters, gradients, strict=True):
            each.grad = gradient.reshape(each.shape).clone()
        return losses


def _added(parts: Sequence[Tensor]) -> Tensor:
    """The sum, in this order."""
    total = parts[0]
    for each in parts[1:]:
        total = total + each
    return total


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Processes]:
    """Join the processes that torchrun started, according to its environment variables; ALONE without them.

    ConfigError if this version of torch has no distributed package, or the other processes do not answer.
    """
    if int(environment.get("WORLD_SIZE", 1)) == 1 or "RANK" not in environment:
        yield ALONE
        return
    import torch.distributed as dist

    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    if not dist.is_available() or not dist.is_gloo_available():
        message = (
            f"Found {size} processes and a PyTorch ({torch.__version__}) without torch.distributed and gloo, expected one "
            "that has them: start a single process, without torchrun, or install another PyTorch."
        )
        raise ConfigError(message)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=size, timeout=START_TIMEOUT)
        processes = Processes(rank, size, dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT))
    except (RuntimeError, ValueError) as error:
        message = f"The {size} processes cannot connect ({str(error).splitlines()[0]}): start them with torchrun."
        raise ConfigError(message) from error
    try:
        yield processes
    finally:
        if not processes.waiting:  # which would be waited for
            with suppress(RuntimeError):
                dist.destroy_process_group()
