"""A stack machine that interprets pickles of tensors without importing or calling what they name.

It supports the instructions of protocols 2 to 5 that tensors need. Its work is bounded: the bytes that are read, the
instructions and the values that each of them visits, and the values of the result, since nested references to the same few
tuples can describe a result of exponential size.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, islice
from typing import IO, Any, NoReturn, cast

from ti_trainer.errors import EmbeddingFormatError

Builder = Callable[..., Any]

_MAX_DEPTH = 50  # deeper values would exceed Python's recursion limit when they are copied


class Global(str):
    """The name of a class or function instead of the object itself, so that nothing on the stack can be called."""


class Object(dict[str, Any]):
    """The attributes of an object instead of the object itself."""


class BoundedReader:
    """A file from which at most a given number of bytes can be read."""

    def __init__(self, file: IO[bytes], limit: int, what: str) -> None:
        """`what` names the content in errors."""
        self._file, self._left, self._limit, self._what = file, limit, limit, what
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Like a file's; EmbeddingFormatError beyond the limit."""
        if size > self._left:
            self._refuse()
        return self._counted(self._file.read(self._left + 1 if size < 0 else size))

    def readline(self) -> bytes:
        """Like a file's; EmbeddingFormatError beyond the limit."""
        return self._counted(self._file.readline(self._left + 1))

    def seekable(self) -> bool:
        """Like a file's."""
        return True

    def _counted(self, found: bytes) -> bytes:
        self._left -= len(found)
        if self._left < 0:
            self._refuse()
        return found

    def _refuse(self) -> None:
        message = f"its {self._what} has more than {self._limit} bytes. Choose another file."
        raise EmbeddingFormatError(message)


_OPCODES = {each.code: each for each in pickletools.opcodes}
_PUSHES: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,  # its values are not used
}
_PLAIN = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_PUTS = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"BINGET", "LONG_BINGET"}
_IGNORED = {"PROTO", "FRAME"}
_TAKES_MARKED = {"TUPLE", "APPENDS", "SETITEMS", "ADDITEMS", "FROZENSET"}  # pop everything above the last mark
_TAKES = {
    **dict.fromkeys(("TUPLE1", "APPEND", "BUILD", "BINPERSID", "POP"), 1),
    **dict.fromkeys(("TUPLE2", "SETITEM", "REDUCE", "NEWOBJ", "STACK_GLOBAL"), 2),
    **dict.fromkeys(("TUPLE3", "NEWOBJ_EX"), 3),
}


def set_items(target: dict[Any, Any], taken: list[Any]) -> None:
    """Add alternating keys and values; EmbeddingFormatError for keys that may be slow to hash or to compare."""
    if not isinstance(target, dict) or not all(map(_is_key, taken[::2])):
        message = "it holds a dict whose keys are not names. Choose another file."
        raise EmbeddingFormatError(message)
    dict.update(target, zip(taken[::2], taken[1::2], strict=True))


def _is_key(key: Any) -> bool:
    """Strings and integers, but no large ones, which can be chosen to have the same hash."""
    return isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**60)


def _set_state(target: Any, taken: list[Any]) -> None:
    if isinstance(target, Object) and isinstance(taken[0], dict):  # other states are not needed
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
    """`builders` stand for what a pickle may call, `values` are names that it may use, `persistent` resolves references."""

    def __init__(
        self,
        builders: Mapping[str, Builder],
        values: frozenset[str],
        persistent: Callable[[Any], Any],
        max_instructions: int,
    ) -> None:
        """`max_instructions` is the total for all pickles that the machine runs."""
        self._builders, self._values, self._persistent = builders, values, persistent
        self._max_instructions = self._left = max_instructions
        self._makes: dict[str, Callable[[list[Any]], Any]] = {
            **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), tuple),
            **dict.fromkeys(("REDUCE", "NEWOBJ", "NEWOBJ_EX"), lambda taken: self.built(*taken[:2])),
            "FROZENSET": list,
            "BINPERSID": self._resolved,
            "STACK_GLOBAL": lambda taken: self._known(f"{taken[0]} {taken[1]}") if _are_short(taken) else self._known("?"),
        }

    def run(self, stream: BoundedReader) -> Any:
        """The value of one pickle; EmbeddingFormatError for anything that tensors do not need."""
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
        """Count a step for each instruction and each value that it visits; EmbeddingFormatError beyond the maximum."""
        self._left -= steps
        if self._left < 0:
            message = f"its pickle has more than {self._max_instructions} instructions. Choose another file."
            raise EmbeddingFormatError(message)

    def _refuse_damaged(self) -> NoReturn:
        message = "its pickle is damaged or cut short. Copy or download it again."
        raise EmbeddingFormatError(message)

    def _instruction(self, stream: BoundedReader) -> tuple[str, Any]:
        """The next instruction and its argument, which is read only if the instruction is supported."""
        code = stream.read(1).decode("latin-1")
        opcode = _OPCODES.get(code)
        if opcode is None:
            self._refuse_damaged()
        if opcode.name not in _INSTRUCTIONS:
            message = f"its pickle has the instruction {opcode.name}, which tensors do not need. Choose another file."
            raise EmbeddingFormatError(message)
        return opcode.name, None if opcode.arg is None else opcode.arg.reader(cast("IO[bytes]", stream))

    def _known(self, name: str) -> Global:
        if name in self._builders or name in self._values:
            return Global(name)
        shown = name[:80].replace(" ", ".")
        message = (
            f"it asks to run {shown!r}, which no embedding needs: it may be malicious. Nothing in it was run. "
            "Delete it, or get it as .safetensors from a source that you trust."
        )
        raise EmbeddingFormatError(message)

    def built(self, name: Any, arguments: Any) -> Any:
        """The result of a call; EmbeddingFormatError for one that tensors do not need."""
        if not isinstance(name, Global) or name not in self._builders or not isinstance(arguments, tuple):
            message = "it asks to run something that is not a function. Choose another file."
            raise EmbeddingFormatError(message)
        self._charge(len(arguments))
        self._charge(sum(len(each) for each in arguments if isinstance(each, list | tuple)))
        return self._builders[name](*arguments)

    def _resolved(self, taken: list[Any]) -> Any:
        if isinstance(taken[0], list | tuple):
            self._charge(len(taken[0]))
        return self._persistent(taken[0])

    def _bounded(self, value: Any) -> Any:
        """The value, if it is small enough when every reference is followed; else EmbeddingFormatError."""
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
