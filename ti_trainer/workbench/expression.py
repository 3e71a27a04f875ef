"""Read expressions over embeddings, such as `0.5 * a + cat("my-cat", b[0:2])`: a tokenizer and a recursive-descent parser.

    expression = product { ("+" | "-") product }
    product    = factor { ("*" | "/") factor }
    factor     = ("-" | "+") factor | primary { "[" index "]" }
    index      = integer | [integer] ":" [integer]
    primary    = number | name | text in quotes | name "(" expression { "," expression } ")" | "(" expression ")"

Nothing is executed here; `evaluation` computes the tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import NoReturn

from ti_trainer.errors import ConfigError

MAX_LENGTH = 4000  # characters
MAX_DEPTH = 40  # nested brackets, signs and slices
SHOWN = 30  # characters before and after an error

_TOKEN = re.compile(
    r"""(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<name>[^\W\d]\w*)
    |(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<sign>[-+*/(),:\[\]])""",
    re.VERBOSE | re.DOTALL,
)
_PLAIN = re.compile(r"[^\W\d]\w*")
_CURLY = "\u201c\u201d\u2018\u2019\u201e\u00ab\u00bb"


class ExpressionError(ConfigError):
    """An expression that cannot be read or computed; `hint` shows where."""

    def __init__(self, message: str, expression: str, start: int, end: int) -> None:
        """Take the span of characters that is wrong; the message does not repeat it."""
        super().__init__(f"Expression, character {start + 1}: {message}", "expression")
        self.hint = _hint(expression, start, end)


@dataclass(frozen=True)
class Node:
    """A part of an expression, from the character `start` up to `end`."""

    start: int
    end: int


@dataclass(frozen=True)
class Number(Node):
    """A number."""

    value: float


@dataclass(frozen=True)
class Name(Node):
    """An embedding's name, or a text in quotes."""

    name: str
    quoted: bool


@dataclass(frozen=True)
class Call(Node):
    """A function with its arguments."""

    function: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True)
class Slice(Node):
    """Some vectors of an embedding: from `first` up to `last`, or only `first` if `single`."""

    of: Node
    first: int | None
    last: int | None
    single: bool


@dataclass(frozen=True)
class Negative(Node):
    """A minus sign."""

    of: Node


@dataclass(frozen=True)
class Sum(Node):
    """Terms with their signs, + or -."""

    terms: tuple[tuple[str, Node], ...]


@dataclass(frozen=True)
class Product(Node):
    """Factors with their signs, * or /."""

    factors: tuple[tuple[str, Node], ...]


@dataclass(frozen=True)
class _Token:
    kind: str  # number, name, text, sign or end
    text: str
    start: int
    end: int

    def __str__(self) -> str:
        shown = self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}..."
        return "the end" if self.kind == "end" else shown


def parse(expression: str) -> Node:
    """The tree of an expression; ExpressionError if it cannot be read."""
    return _Parser(expression).parse()


def quoted(name: str) -> str:
    """An embedding's name as it is written in an expression: in quotes if it is more than letters, digits and _."""
    if _PLAIN.fullmatch(name):
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _hint(expression: str, start: int, end: int) -> str:
    """The expression around the error with ^ below it, as two lines."""
    line = re.sub(r"\s", " ", expression)
    first, last = max(0, start - SHOWN), min(len(line), max(end, start + 1) + SHOWN)
    before, after = "..." if first else "", "..." if last < len(line) else ""
    marks = "^" * max(1, min(end, last) - start)
    return f"{before}{line[first:last]}{after}\n{' ' * (len(before) + start - first)}{marks}"


def _tokens(expression: str) -> Iterator[_Token]:
    """The tokens, at last one of the kind `end`; ExpressionError for a character that cannot begin one."""
    position, length = 0, len(expression.rstrip())
    while position < length:
        if expression[position].isspace():
            position += 1
            continue
        found = _TOKEN.match(expression, position)
        if found is None:
            raise ExpressionError(_about_character(expression[position]), expression, position, position + 1)
        yield _Token(found.lastgroup or "", found[0], position, found.end())
        position = found.end()
    yield _Token("end", "", length, length)


def _about_character(character: str) -> str:
    if character in "\"'":
        return f"found {character} without another one, expected a text in quotes."
    if character in _CURLY:
        return f'found the quotation mark {character}, expected a straight one, ".'
    return f'found {character!r}, expected a number, a name or one of + - * / ( ) [ ] : , "'


class _Parser:
    def __init__(self, expression: str) -> None:
        self.expression = expression
        if len(expression) > MAX_LENGTH:
            message = f"found {len(expression)} characters, expected at most {MAX_LENGTH}."
            raise ExpressionError(message, expression, MAX_LENGTH, MAX_LENGTH + 1)
        self.tokens = list(_tokens(expression))
        self.position = self.depth = 0

    def parse(self) -> Node:
        node = self._expression()
        if self._next.kind != "end":
            self._expected("an operator (+ - * /) or the end")
        return node

    @property
    def _next(self) -> _Token:
        return self.tokens[self.position]

    def _take(self) -> _Token:
        token = self._next
        self.position += token.kind != "end"
        return token

    def _is(self, *signs: str) -> bool:
        return self._next.kind == "sign" and self._next.text in signs

    def _expected(self, what: str) -> NoReturn:
        token = self._next
        hint = ""
        if token.kind == "name" and self.position and self.tokens[self.position - 1].kind in ("number", "name"):
            hint = "; names with characters other than letters, digits and _ are written in quotes"
        message = f"found {token}, expected {what}{hint}."
        raise ExpressionError(message, self.expression, token.start, token.end)

    def _close(self, sign: str, what: str) -> _Token:
        if not self._is(sign):
            self._expected(f"{what}{sign}")
        return self._take()

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        """Within brackets, signs and slices: their number is limited, since each takes room on Python's stack."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            token = self._next
            message = f"found more than {MAX_DEPTH} nested brackets or signs, expected fewer."
            raise ExpressionError(message, self.expression, token.start, token.end)
        yield
        self.depth -= 1

    def _expression(self) -> Node:
        terms = [("+", self._product())]
        while self._is("+", "-"):
            terms.append((self._take().text, self._product()))
        return terms[0][1] if len(terms) == 1 else Sum(terms[0][1].start, terms[-1][1].end, tuple(terms))

    def _product(self) -> Node:
        factors = [("*", self._factor())]
        while self._is("*", "/"):
            factors.append((self._take().text, self._factor()))
        return factors[0][1] if len(factors) == 1 else Product(factors[0][1].start, factors[-1][1].end, tuple(factors))

    def _factor(self) -> Node:
        if self._is("-", "+"):
            sign = self._take()
            with self._deeper():
                inner = self._factor()
            return Negative(sign.start, inner.end, inner) if sign.text == "-" else inner
        node, slices = self._primary(), 0
        while self._is("["):
            slices += 1
            if slices + self.depth > MAX_DEPTH:
                self._expected("fewer slices")
            self._take()
            node = self._slice(node)
        return node

    def _slice(self, of: Node) -> Slice:
        first = self._integer()
        if self._is(":"):
            self._take()
            last = self._integer()
            return Slice(of.start, self._close("]", "a whole number or ").end, of, first, last, single=False)
        if first is None:
            self._expected("the number of a vector, as in [0], or a range, as in [0:2]")
        return Slice(of.start, self._close("]", ": or ").end, of, first, None, single=True)

    def _integer(self) -> int | None:
        """A whole number with its sign, if there is one."""
        negative = self._is("-")
        if negative:
            self._take()
        token = self._next
        if token.kind == "number" and token.text.isdecimal() and len(token.text) <= len(str(MAX_LENGTH)):
            self._take()
            return -int(token.text) if negative else int(token.text)
        if negative or token.kind == "number":
            self._expected("a whole number, which counts vectors from 0")
        return None

    def _primary(self) -> Node:
        token = self._take()
        if token.kind == "number":
            if not isfinite(value := float(token.text)):
                message = "found a number that is too large."
                raise ExpressionError(message, self.expression, token.start, token.end)
            return Number(token.start, token.end, value)
        if token.kind == "text":
            text = re.sub(rf"\\([\\{token.text[0]}])", r"\1", token.text[1:-1])
            return Name(token.start, token.end, text, quoted=True)
        if token.kind == "name":
            return self._call(token) if self._is("(") else Name(token.start, token.end, token.text, quoted=False)
        if token.kind == "sign" and token.text == "(":
            with self._deeper():
                node = self._expression()
            self._close(")", "an operator (+ - * /) or ")
            return node
        self.position -= token.kind != "end"
        return self._expected("a number, an embedding's name, a function or (")

    def _call(self, name: _Token) -> Call:
        self._take()
        arguments: list[Node] = []
        with self._deeper():
            while not self._is(")"):
                if arguments:
                    self._close(",", "an operator, ) or ")
                arguments.append(self._expression())
        return Call(name.start, self._take().end, name.text, tuple(arguments))
