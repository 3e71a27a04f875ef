"""The stack machine that a pickle is a program for, as far as tensors need it: nothing is imported or called.

Protocols 2 to 5. What is read is bounded: the bytes, the instructions with what each of them walks through (a list can be
given to thousands), and the values as whoever walks through them meets them, for a tuple of twice the same tuple, 60 times
over, would never end. Knows nothing of files and tensors.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, islice
from typing import Any, BinaryIO, NoReturn

from ti_trainer.errors import EmbeddingFormatError

Builder = Callable[..., Any]

_MAX_DEPTH = 50  # what is nested deeper, nobody could copy: Python's stack ends


class Global(str):
    """The name of a class or function, in place of the thing itself: nothing on the stack can be called."""


class Object(dict[str, Any]):
    """The attributes of an object, in place of it."""


class Rationed:
    """A file of which no more than so many bytes are read."""

    def __init__(self, file: BinaryIO, ration: int, what: str) -> None:
        """`what` names what is read, for the error."""
        self._file, self._left, self._ration, self._what = file, ration, ration, what
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """EmbeddingFormatError instead of more than the ration."""
        if size > self._left:
            self._refuse()
        return self._counted(self._file.read(self._left + 1 if size < 0 else size))

    def readline(self) -> bytes:
        """The same for a line."""
        return self._counted(self._file.readline(self._left + 1))

    def seekable(self) -> bool:
        """It is a file."""
        return True

    def _counted(self, found: bytes) -> bytes:
        self._left -= len(found)
        if self._left < 0:
            self._refuse()
        return found

    def _refuse(self) -> None:
        message = f"its {self._what} has more than {self._ration} bytes. Choose another file."
        raise EmbeddingFormatError(message)


_PUSHES: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,  # nobody looks into one
}
_PLAIN = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_PUTS = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"BINGET", "LONG_BINGET"}
_IGNORED = {"PROTO", "FRAME"}
_TAKES_MARKED = {"TUPLE", "APPENDS", "SETITEMS", "ADDITEMS", "FROZENSET"}  # from the stack, all above the last mark
_TAKES = {
    **dict.fromkeys(("TUPLE1", "APPEND", "BUILD", "BINPERSID", "POP"), 1),
    **dict.fromkeys(("TUPLE2", "SETITEM", "REDUCE", "NEWOBJ", "STACK_GLOBAL"), 2),
    **dict.fromkeys(("TUPLE3", "NEWOBJ_EX"), 3),
}


def set_items(target: dict[Any, Any], taken: list[Any]) -> None:
    """Keys and values in turn; EmbeddingFormatError for keys that may take for ever to hash or to tell apart."""
    if not isinstance(target, dict) or not all(map(_is_key, taken[::2])):
        message = "it holds a dict whose keys are no names. Choose another file."
        raise EmbeddingFormatError(message)
    dict.update(target, zip(taken[::2], taken[1::2], strict=True))


def _is_key(key: Any) -> bool:
    """Larger numbers can all have the same hash."""
    return isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**60)


def _set_state(target: Any, taken: list[Any]) -> None:
    if isinstance(target, Object) and isinstance(taken[0], dict):  # other attributes are of no interest
        target.update(taken[0])


_FILLS: dict[str, Callable[[Any, list[Any]], None]] = {
    "APPEND": list.extend,
    "APPENDS": list.extend,
    "ADDITEMS": list.extend,
    "SETITEM": set_items,
    "SETITEMS": set_items,
    "BUILD": _set_state,
}
_INSTRUCTIONS = frozenset({*_PUSHES, *_PLAIN, *_PUTS, *_GETS, *_IGNORED, *_TAKES_MARKED, *_TAKES, "GLOBAL", "MARK", "STOP"})


class Machine:
    """`builders` makes what a pickle calls by name, `values` it may mention, `persistent` resolves its references."""

    def __init__(
        self,
        builders: Mapping[str, Builder],
        values: frozenset[str],
        persistent: Callable[[Any], Any],
        max_instructions: int,
    ) -> None:
        """One machine may run the several pickles of a file; `max_instructions` is for all of them."""
        self._builders, self._values, self._persistent = builders, values, persistent
        self._max_instructions = self._left = max_instructions
        self._makes: dict[str, Callable[[list[Any]], Any]] = {
            **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), tuple),
            **dict.fromkeys(("REDUCE", "NEWOBJ", "NEWOBJ_EX"), lambda taken: self.built(*taken[:2])),
            "FROZENSET": list,
            "BINPERSID": self._resolved,
            "STACK_GLOBAL": lambda taken: self._known(f"{taken[0]} {taken[1]}") if _are_short(taken) else self._known("?"),
        }

    def run(self, stream: Rationed) -> Any:
        """The value that one pickle describes; EmbeddingFormatError for whatever no tensor needs."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[Any, Any] = {}
        while True:
            name, value = self._instruction(stream)
            self._charge(1)
            if name == "STOP":
                return self._bounded(stack.pop())
            if name == "MARK":
                marks.append(len(stack))
            elif name in _PUTS:
                memo[len(memo) if name == "MEMOIZE" else value] = stack[-1]
            elif name in _GETS:
                stack.append(memo[value])
            elif name not in _IGNORED:
                self._step(name, value, stack, marks)

    def _step(self, name: str, value: Any, stack: list[Any], marks: list[int]) -> None:
        start = marks.pop() if name in _TAKES_MARKED else len(stack) - _TAKES.get(name, 0)
        if start < 0:
            self._refuse_damaged()
        taken, stack[start:] = stack[start:], []
        if name == "POP":
            return
        if name == "GLOBAL":
            stack.append(self._known(value))
        elif name in _PUSHES:
            stack.append(_PUSHES[name]())
        elif name in _PLAIN:
            stack.append(value)
        elif name in self._makes:
            stack.append(self._makes[name](taken))
        else:
            if name == "BUILD" and isinstance(taken[0], dict):
                self._charge(len(taken[0]))
            _FILLS[name](stack[-1], taken)

    def _charge(self, steps: int) -> None:
        """EmbeddingFormatError for more than any file needs: an instruction is one, and each value that it walks through."""
        self._left -= steps
        if self._left < 0:
            message = f"its pickle has more than {self._max_instructions} instructions. Choose another file."
            raise EmbeddingFormatError(message)

    def _refuse_damaged(self) -> NoReturn:
        message = "its pickle is damaged or cut short. Copy or download it again."
        raise EmbeddingFormatError(message)

    def _instruction(self, stream: Rationed) -> tuple[str, Any]:
        """Its name and argument, which is read only if the instruction is one of ours."""
        code = stream.read(1).decode("latin-1")
        opcode = pickletools.code2op.get(code)
        if opcode is None:
            self._refuse_damaged()
        if opcode.name not in _INSTRUCTIONS:
            message = f"its pickle has the instruction {opcode.name}, which no tensor needs. Choose another file."
            raise EmbeddingFormatError(message)
        return opcode.name, None if opcode.arg is None else opcode.arg.reader(stream)

    def _known(self, name: str) -> Global:
        if name in self._builders or name in self._values:
            return Global(name)
        shown = name[:80].replace(" ", ".")
        message = (
            f"it asks to run {shown!r}, which no embedding needs: it may be malicious. Nothing of it was run. "
            "Delete it, or get it as .safetensors from a source that you trust."
        )
        raise EmbeddingFormatError(message)

    def built(self, name: Any, arguments: Any) -> Any:
        """What a call makes; EmbeddingFormatError for one that no tensor needs."""
        if not isinstance(name, Global) or name not in self._builders or not isinstance(arguments, tuple):
            message = "it asks to run what is no function. Choose another file."
            raise EmbeddingFormatError(message)
        self._charge(len(arguments))
        self._charge(sum(len(each) for each in arguments if isinstance(each, list | tuple)))
        return self._builders[name](*arguments)

    def _resolved(self, taken: list[Any]) -> Any:
        if isinstance(taken[0], list | tuple):
            self._charge(len(taken[0]))
        return self._persistent(taken[0])

    def _bounded(self, value: Any) -> Any:
        """The value, if whoever walks through all of it comes to an end; else EmbeddingFormatError."""
        left, level = self._max_instructions, [value]
        for _ in range(_MAX_DEPTH):
            level = list(islice(chain.from_iterable(map(_inside, level)), left + 1))
            left -= len(level)
            if left < 0:
                message = f"its values are nested into more than {self._max_instructions}. Choose another file."
                raise EmbeddingFormatError(message)
            if not level:
                return value
        message = f"its values are nested more than {_MAX_DEPTH} deep. Choose another file."
        raise EmbeddingFormatError(message)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _are_short(taken: list[Any]) -> bool:
    return all(isinstance(each, str) and len(each) < 200 for each in taken)
