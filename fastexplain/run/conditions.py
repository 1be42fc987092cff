"""Conditions on neurons, such as `lookup_score < 0.3 and kurtosis > 10`.

Python's own parser reads them, but nothing is ever run as Python: only names, numbers,
comparisons, `and`, `or`, `not`, `+`, `-`, `*` and `/` are understood, over NumPy arrays.
"""

from __future__ import annotations

import ast
import operator
import sys
import warnings
from collections.abc import Callable, Collection, Mapping

import numpy as np

from fastexplain.errors import UsageError

# Far more than anyone writes; the parser and what walks its tree recurse.
_LONGEST = 1000

_COMPARISONS: dict[type[ast.cmpop], Callable[..., np.ndarray]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type[ast.operator], Callable[..., np.ndarray]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: left / np.where(right == 0, np.nan, right),
}


class Condition:
    """A condition, parsed and checked.

    Undefined values are NaN. All comparisons with them are false, `!=` too; so is what is divided
    by 0. A flag is 0 or 1, and may stand where a comparison may.

    Args:
        text: the condition.
        known: the names that it may use.
        flags: those of them that are flags.

    Attributes:
        text: as given.
        names: those that it uses.

    Raises:
        UsageError: it can't be read, or uses an unknown name.
    """

    def __init__(self, text: str, known: Collection[str], flags: Collection[str] = ()) -> None:
        self.text = text
        self.names: set[str] = set()
        self._known = known
        self._flags = flags
        self._tree = self._parse()
        self._check_truth(self._tree)

    def select(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Where the condition holds, bool `[neurons]`.

        Args:
            values: float64 `[neurons]` for each of `names`.
        """
        with np.errstate(all="ignore"):
            return _truth(self._tree, values)

    def _parse(self) -> ast.expr:
        if len(self.text) > _LONGEST:
            raise UsageError(f"the condition is longer than {_LONGEST} characters")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the parser's, about Python that nobody will run
                return ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._error("can't be read", "==" if "=" in self.text else "") from error

    def _check_truth(self, node: ast.expr) -> None:
        match node:
            case ast.BoolOp(values=parts):
                for part in parts:
                    self._check_truth(part)
            case ast.UnaryOp(op=ast.Not(), operand=part):
                self._check_truth(part)
            case ast.Compare(left=left, ops=operators, comparators=others):
                if any(type(each) not in _COMPARISONS for each in operators):
                    raise self._error(f"has '{ast.unparse(node)}', which is not understood")
                for part in (left, *others):
                    self._check_number(part)
            case ast.Name(id=name) if name in self._flags:
                self.names.add(name)
            case _:
                self._check_number(node)
                raise self._error(
                    f"has '{ast.unparse(node)}', a number where a comparison has to be"
                )

    def _check_number(self, node: ast.expr) -> None:
        match node:
            case ast.Name(id=name) if name in self._known:
                self.names.add(name)
            case ast.Name(id=name):
                raise UsageError(
                    f"'{self.text}' has '{name}', which is not known; what is: "
                    f"{', '.join(self._known)}"
                )
            case ast.Constant(value=bool() | complex()):
                raise self._error(f"has '{ast.unparse(node)}', which is not understood")
            case ast.Constant(value=int() | float() as value) if abs(value) <= sys.float_info.max:
                pass
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=part):
                self._check_number(part)
            case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _ARITHMETIC:
                self._check_number(left)
                self._check_number(right)
            case _:
                raise self._error(f"has '{ast.unparse(node)}', which is not understood")

    def _error(self, what: str, instead: str = "") -> UsageError:
        equal = "; equal is written ==" if instead else ""
        return UsageError(
            f"the condition '{self.text}' {what}; write comparisons, as in "
            f"lookup_score < 0.3 and kurtosis > 10{equal}"
        )


def _truth(node: ast.expr, values: Mapping[str, np.ndarray]) -> np.ndarray:
    match node:
        case ast.BoolOp(op=ast.And(), values=parts):
            return np.logical_and.reduce(np.broadcast_arrays(*(_truth(p, values) for p in parts)))
        case ast.BoolOp(values=parts):
            return np.logical_or.reduce(np.broadcast_arrays(*(_truth(p, values) for p in parts)))
        case ast.UnaryOp(operand=part):
            return ~_truth(part, values)
        case ast.Compare(left=left, ops=operators, comparators=others):
            sides = [_number(part, values) for part in (left, *others)]
            result = ~np.isnan(sides[0])
            for each, one, other in zip(operators, sides[:-1], sides[1:], strict=True):
                result = result & ~np.isnan(other) & _COMPARISONS[type(each)](one, other)
            return result
    return _number(node, values) == 1


def _number(node: ast.expr, values: Mapping[str, np.ndarray]) -> np.ndarray:
    match node:
        case ast.Name(id=name):
            return values[name]
        case ast.Constant(value=int() | float() as value):
            return np.asarray(value, dtype=np.float64)
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -_number(part, values)
        case ast.UnaryOp(operand=part):
            return _number(part, values)
        case ast.BinOp(left=left, op=operation, right=right):
            return _ARITHMETIC[type(operation)](_number(left, values), _number(right, values))
    raise AssertionError(node)  # `Condition` let nothing else through
