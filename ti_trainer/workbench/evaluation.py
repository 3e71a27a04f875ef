"""Compute expressions over embeddings in float64, each text encoder's vectors by themselves.

V vectors, D width of a text encoder's token embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ti_trainer.embedding import FAMILIES
from ti_trainer.errors import TITrainerError
from ti_trainer.wording import counted
from ti_trainer.workbench.expression import Call, ExpressionError, Name, Negative, Node, Number, Product, Slice, Sum, parse
from ti_trainer.workbench.interpolation import slerp

Array = NDArray[np.float64]
Block = dict[str, Array]  # (V, D) by text encoder
Value = float | Block

MAX_VECTORS = 300  # at a time; a prompt has room for 75
MAX_NUMBERS = 12_000_000  # computed in total: 96 MB
FUNCTIONS = {  # what each is called with, for messages and guides: least and most arguments, as written, what it does
    "cat": (1, None, "cat(a, b, ...)", "the vectors of all, one after the other"),
    "mean": (2, None, "mean(a, b, ...)", "the average of two or more embeddings"),
    "lerp": (3, 3, "lerp(a, b, t)", "linear interpolation: a at t = 0, b at t = 1"),
    "slerp": (
        3,
        3,
        "slerp(a, b, t)",
        "spherical interpolation: the direction turns from a to b, the length is interpolated",
    ),
    "normalize": (
        1,
        2,
        "normalize(a)",
        "each vector scaled to the usual length of the loaded model's tokens; normalize(a, 0.4): to length 0.4",
    ),
    "pad": (2, 2, "pad(a, n)", "n vectors: zeros are appended"),
    "tokens": (1, 1, 'tokens("red hair")', "the loaded model's vectors of a text's tokens"),
    "text": (1, 1, 'text("red hair, (freckles:1.2)")', "the same for a prompt: each token's vector times its weight"),
}


@dataclass(frozen=True)
class Scope:
    """What names and functions mean: an embedding's vectors, those of a text's tokens, and the vocabulary's usual norms."""

    embedding: Callable[[str], Mapping[str, NDArray[np.float32]]]
    tokens: Callable[[str], Mapping[str, NDArray[np.float32]]]
    text: Callable[[str], Mapping[str, NDArray[np.float32]]]
    norms: Callable[[], Mapping[str, float]]


def evaluate(expression: str, scope: Scope) -> Block:
    """The vectors that an expression describes; ExpressionError if it cannot be computed."""
    tree = parse(expression)
    evaluator = _Evaluator(expression, scope)
    with np.errstate(all="ignore"):  # what is not finite is refused
        result = evaluator.block(tree, "the result")
    if any(np.abs(each).max(initial=0) > np.finfo(np.float32).max for each in result.values()):
        evaluator.fail(tree, "the result has numbers that are too large for float32.")
    return result


def described(block: Block) -> str:
    """Family and widths, for messages."""
    widths = {encoder: each.shape[1] for encoder, each in block.items()}
    family = FAMILIES.get(tuple(sorted(widths.items())), "an unknown family")
    return f"{family} ({', '.join(f'{encoder} {width}' for encoder, width in widths.items())})"


class _Evaluator:
    def __init__(self, expression: str, scope: Scope) -> None:
        self.expression, self.scope = expression, scope
        self.numbers = 0  # computed so far
        self.loaded: dict[str, Block] = {}

    def fail(self, node: Node, message: str) -> NoReturn:
        raise ExpressionError(message, self.expression, node.start, node.end)

    def block(self, node: Node, what: str) -> Block:
        """The vectors of a part; ExpressionError for a number."""
        value = self.value(node)
        if not isinstance(value, dict):
            self.fail(node, f"found the number {value:g}, expected an embedding as {what}.")
        return value

    def number(self, node: Node, what: str) -> float:
        """The number of a part; ExpressionError for an embedding."""
        value = self.value(node)
        if isinstance(value, dict):
            self.fail(node, f"found an embedding, expected a number as {what}.")
        if not np.isfinite(value):
            self.fail(node, "the numbers become too large here.")
        return value

    def value(self, node: Node) -> Value:
        if isinstance(node, Number):
            return node.value
        if isinstance(node, Name):
            return self._named(node)
        if isinstance(node, Negative):
            value = self.value(node.of)
            if isinstance(value, dict):
                return self._kept(node, {encoder: -each for encoder, each in value.items()})
            return -value
        if isinstance(node, Slice):
            return self._slice(node)
        if isinstance(node, Sum):
            return self._sum(node)
        if isinstance(node, Product):
            return self._product(node)
        if isinstance(node, Call):
            return self._call(node)
        raise TypeError(node)

    def _named(self, node: Name) -> Block:
        key = node.name.casefold()
        if key not in self.loaded:
            self.loaded[key] = self._from(node, self.scope.embedding, node.name)
        return self.loaded[key]

    def _from(self, node: Node, source: Callable[[str], Mapping[str, NDArray[np.float32]]], text: str) -> Block:
        """Vectors from the scope; its errors become those of the expression."""
        try:
            found = source(text)
        except ExpressionError:
            raise
        except (TITrainerError, OSError) as error:
            self.fail(node, str(error))
        count = len(next(iter(found.values())))
        if not count:
            self.fail(node, "this text has no tokens, expected at least one.")
        self._check_count(node, count)
        return self._kept(node, {encoder: each.astype(np.float64) for encoder, each in found.items()})

    def _kept(self, node: Node, block: Block) -> Block:
        """The block; ExpressionError if it is not finite, or if more has been computed than is allowed."""
        self.numbers += sum(each.size for each in block.values())
        if self.numbers > MAX_NUMBERS:
            self.fail(node, "this takes more computing than an expression may: use fewer or smaller embeddings.")
        if not all(np.isfinite(each).all() for each in block.values()):
            self.fail(node, "the numbers become too large here.")
        return block

    def _check_count(self, node: Node, count: int) -> None:
        if count > MAX_VECTORS:
            self.fail(node, f"found {count} vectors, expected at most {MAX_VECTORS}; a prompt has room for 75.")

    def _slice(self, node: Slice) -> Block:
        block = self.block(node.of, "what [...] is applied to")
        count = _count(block)
        first = _from_end(node.first, count, 0)
        last = first + 1 if node.single else _from_end(node.last, count, count)
        if not 0 <= first < last <= count:
            found = self.expression[node.of.end : node.end].strip()
            self.fail(
                node, f"found {found} of {counted(count, 'vector')}, which count from 0; expected at most [0:{count}]."
            )
        return self._kept(node, {encoder: each[first:last] for encoder, each in block.items()})

    def _sum(self, node: Sum) -> Value:
        values = [(sign, each, self.value(each)) for sign, each in node.terms]
        blocks = [(sign, each, value) for sign, each, value in values if isinstance(value, dict)]
        numbers = [(sign, each, value) for sign, each, value in values if not isinstance(value, dict)]
        if not blocks:
            return sum(-value if sign == "-" else value for sign, _, value in numbers)
        for _, each, value in numbers:
            self.fail(each, f"found the number {value:g}, expected an embedding: numbers multiply embeddings.")
        self._check_alike([(each, block) for _, each, block in blocks])
        total: Block = {}
        for sign, each, block in blocks:
            total = self._kept(each, {e: _add(total.get(e), block[e], sign) for e in block})
        return total

    def _product(self, node: Product) -> Value:
        factor, block = 1.0, None
        for sign, each in node.factors:
            value = self.value(each)
            if isinstance(value, dict):
                if sign == "/" or block is not None:
                    what = "divisor" if sign == "/" else "factor of an embedding"
                    self.fail(each, f"found an embedding, expected a number as {what}.")
                block = value
            elif sign == "/" and value == 0:
                self.fail(each, "found a division by 0.")
            else:
                factor = factor / value if sign == "/" else factor * value
        if not np.isfinite(factor):
            self.fail(node, "the numbers become too large here.")
        return factor if block is None else self._kept(node, {encoder: factor * each for encoder, each in block.items()})

    def _call(self, node: Call) -> Block:
        name = node.function.lower()
        if name not in FUNCTIONS:
            known = ", ".join(FUNCTIONS)
            self.fail(node, f"found the function {node.function}, expected one of {known}.")
        least, most, form, _ = FUNCTIONS[name]
        if not least <= len(node.arguments) <= (most or len(node.arguments)):
            self.fail(node, f"found {counted(len(node.arguments), 'argument')} of {name}, expected {form}.")
        return getattr(self, f"_call_{name}")(node, node.arguments)

    def _call_cat(self, node: Node, arguments: Sequence[Node]) -> Block:
        blocks = [(each, self.block(each, "an argument of cat")) for each in arguments]
        self._check_families(blocks)
        self._check_count(node, sum(_count(block) for _, block in blocks))
        return self._kept(node, {e: np.concatenate([block[e] for _, block in blocks]) for e in blocks[0][1]})

    def _call_mean(self, node: Node, arguments: Sequence[Node]) -> Block:
        blocks = [(each, self.block(each, "an argument of mean")) for each in arguments]
        self._check_alike(blocks)
        total: Block = {}
        for each, block in blocks:
            total = self._kept(each, {e: _add(total.get(e), block[e], "+") for e in block})
        return self._kept(node, {e: each / len(blocks) for e, each in total.items()})

    def _call_lerp(self, node: Node, arguments: Sequence[Node]) -> Block:
        a, b, t = self._interpolated(arguments)
        return self._kept(node, {e: (1 - t) * a[e] + t * b[e] for e in a})

    def _call_slerp(self, node: Node, arguments: Sequence[Node]) -> Block:
        a, b, t = self._interpolated(arguments)
        try:
            return self._kept(node, {e: slerp(a[e], b[e], t) for e in a})
        except ValueError as error:
            self.fail(node, str(error))

    def _interpolated(self, arguments: Sequence[Node]) -> tuple[Block, Block, float]:
        first, second, position = arguments
        a, b = self.block(first, "the first argument"), self.block(second, "the second argument")
        self._check_alike([(first, a), (second, b)])
        return a, b, self.number(position, "the third argument")

    def _call_normalize(self, node: Node, arguments: Sequence[Node]) -> Block:
        block = self.block(arguments[0], "the argument of normalize")
        if len(arguments) > 1:
            length = self.number(arguments[1], "the length")
            if length <= 0:
                self.fail(arguments[1], f"found the length {length:g}, expected a number above 0.")
            norms: Mapping[str, float] = dict.fromkeys(block, length)
        else:
            norms = self._norms_for(node, block)
        lengths = {e: np.linalg.norm(each, axis=1, keepdims=True) for e, each in block.items()}  # (V, 1)
        if not all(each.all() for each in lengths.values()):
            self.fail(node, "one of the vectors is zero: it has no direction, so it cannot be scaled to a length.")
        return self._kept(node, {e: each * (norms[e] / lengths[e]) for e, each in block.items()})

    def _norms_for(self, node: Node, block: Block) -> Mapping[str, float]:
        """The vocabulary's norms; ExpressionError if the loaded model is of another family."""
        try:
            norms = self.scope.norms()
            sample = self.scope.tokens("a")
        except TITrainerError as error:
            self.fail(node, str(error))
        if {e: each.shape[1] for e, each in sample.items()} != {e: each.shape[1] for e, each in block.items()}:
            model = described({e: each.astype(np.float64) for e, each in sample.items()})
            self.fail(
                node,
                f"the embedding is for {described(block)}, but the loaded model is {model}: load a model of its family, or "
                "write the length, as in normalize(a, 0.4).",
            )
        return norms

    def _call_pad(self, node: Node, arguments: Sequence[Node]) -> Block:
        block, wanted = self.block(arguments[0], "the first argument"), self.number(arguments[1], "the number of vectors")
        count = _count(block)
        if wanted != int(wanted) or not count <= wanted <= MAX_VECTORS:
            self.fail(arguments[1], f"found {wanted:g}, expected a whole number from {count} to {MAX_VECTORS}.")
        missing = int(wanted) - count
        return self._kept(node, {e: np.pad(each, ((0, missing), (0, 0))) for e, each in block.items()})

    def _call_tokens(self, node: Node, arguments: Sequence[Node]) -> Block:
        return self._from(node, self.scope.tokens, self._text(arguments[0]))

    def _call_text(self, node: Node, arguments: Sequence[Node]) -> Block:
        return self._from(node, self.scope.text, self._text(arguments[0]))

    def _text(self, node: Node) -> str:
        if not (isinstance(node, Name) and node.quoted):
            self.fail(node, 'expected a text in quotes, as in tokens("red hair").')
        return node.name

    def _check_families(self, blocks: Sequence[tuple[Node, Block]]) -> None:
        first_node, first = blocks[0]
        for node, block in blocks[1:]:
            if described(block) != described(first):
                one, other = (self.expression[each.start : each.end][:40] for each in (first_node, node))
                self.fail(
                    node,
                    f"{one} is for {described(first)}, but {other} is for {described(block)}: only embeddings of one model "
                    "family can be combined.",
                )

    def _check_alike(self, blocks: Sequence[tuple[Node, Block]]) -> None:
        """ExpressionError unless the numbers of vectors are the same, or one of them is 1."""
        self._check_families(blocks)
        longest = max(_count(block) for _, block in blocks)
        for node, block in blocks:
            if _count(block) not in (1, longest):
                counts = ", ".join(
                    f"{self.expression[each.start : each.end][:40]}: {_count(value)}" for each, value in blocks[:6]
                )
                self.fail(
                    node,
                    f"the numbers of vectors differ ({counts}). Write pad(..., {longest}) to append zeros, "
                    f"...[0:{_count(block)}] to use a part, or cat(...) to join them.",
                )


def _count(block: Block) -> int:
    return len(next(iter(block.values())))


def _from_end(index: int | None, count: int, default: int) -> int:
    return default if index is None else index + count * (index < 0)


def _add(total: Array | None, each: Array, sign: str) -> Array:
    signed = -each if sign == "-" else each
    return signed if total is None else total + signed
