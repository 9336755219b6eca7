"""Small changes to a module's syntax tree, one at a time: what a slip of the keyboard or of thought would do.

Left alone: annotations, decorators, docstrings, assertions, log calls and the text of messages.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Final, NamedTuple


class Alteration(NamedTuple):
    """One change to a module."""

    module: str
    function: str
    """Qualified name of the function or class it is in; empty at module level."""
    line: int
    before: str
    after: str
    occurrence: int
    """Which of the changes with the same texts in the same function this is, from 0."""

    @property
    def identity(self) -> str:
        """What names the change across edits elsewhere in the module."""
        number = f" #{self.occurrence}" if self.occurrence else ""
        return f"{self.module}:{self.function}: {self.before} -> {self.after}{number}"


class _Place(NamedTuple):
    """Where a node hangs in the tree."""

    parent: ast.AST
    field: str
    position: int | None

    def put(self, node: ast.AST) -> None:
        if self.position is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.position] = node


class _Change(NamedTuple):
    place: _Place
    node: ast.AST
    replacement: ast.AST
    function: str


_COMPARE: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_OTHER_NAME: Final = {
    "min": "max", "max": "min", "any": "all", "all": "any", "argmin": "argmax", "argmax": "argmin",
    "floor": "ceil", "ceil": "floor", "zeros": "ones", "ones": "zeros", "sorted": "list", "reversed": "list",
}  # fmt: skip
_OTHER_WORD: Final = {"left": "right", "right": "left"}
_NOT_DECIDING: Final = frozenset({"strict", "non_blocking", "maxsize", "encoding", "device", "indent", "stacklevel"})
"""Keyword arguments that guard our own code, tune speed, or have no effect on the machine that runs the tests."""
_LOGS: Final = frozenset({"logger", "logging", "warnings"})


def alterations_of(module: str, source: str) -> list[Alteration]:
    """List every change of a module, in the order of its text."""
    seen: dict[tuple[str, str, str], int] = {}
    found = []
    for change in _changes(ast.parse(source)):
        before, after = _text(change.node), _text(change.replacement)
        key = (change.function, before, after)
        seen[key] = seen.get(key, -1) + 1
        line = getattr(change.node, "lineno", 0)
        found.append(Alteration(module, change.function, line, before, after, seen[key]))
    return found


def altered_code(source: str, path: str, number: int) -> CodeType:
    """Compile a module with its change `number` of `alterations_of` made."""
    tree = ast.parse(source)
    change = list(_changes(tree))[number]
    change.place.put(change.replacement)
    return compile(ast.fix_missing_locations(tree), path, "exec")


def _text(node: ast.AST) -> str:
    lines = ast.unparse(node).splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0]} ..."


def _changes(tree: ast.Module) -> Iterator[_Change]:
    yield from _walk(tree, "")


def _walk(node: ast.AST, function: str) -> Iterator[_Change]:
    for place, child in _children(node):
        if _is_left_alone(place, child):
            continue
        inner = function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{function}.{child.name}" if function else child.name
        for replacement in _replacements(place, child):
            ast.copy_location(replacement, child)
            yield _Change(place, child, replacement, inner)
        if not isinstance(child, ast.Raise):  # its text is a message; that it is raised can be taken away
            yield from _walk(child, inner)


def _children(node: ast.AST) -> Iterator[tuple[_Place, ast.AST]]:
    for field, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            yield _Place(node, field, None), value
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, ast.AST):
                    yield _Place(node, field, index), item


def _is_left_alone(place: _Place, node: ast.AST) -> bool:
    if place.field in ("annotation", "returns", "decorator_list", "bases", "type_params"):
        return True
    if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr | ast.expr_context):
        return True
    if isinstance(node, ast.Expr) and (isinstance(node.value, ast.Constant) or _is_log(node.value)):
        return True
    if isinstance(node, ast.keyword) and node.arg in _NOT_DECIDING:
        return True
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cast":
        return True
    return isinstance(node, ast.Assign | ast.AnnAssign) and _is_type_alias(node)


def _is_log(node: ast.AST) -> bool:
    while isinstance(node, ast.Call | ast.Attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return isinstance(node, ast.Name) and node.id in _LOGS


def _is_type_alias(node: ast.Assign | ast.AnnAssign) -> bool:
    """Recognise `Name = Callable[...]` and the like: a capitalised name that is given a type."""
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    value = node.value
    if not isinstance(target, ast.Name) or target.id.isupper() or not target.id[:1].isupper():
        return False
    return isinstance(value, ast.Subscript | ast.BinOp)


def _replacements(place: _Place, node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.stmt):
        yield from _of_statement(node)
    elif isinstance(node, ast.expr):
        make = _OF_EXPRESSION.get(type(node))
        if make is not None:
            yield from make(node)
        if place.field == "test" and not isinstance(node, ast.Compare | ast.BoolOp | ast.UnaryOp):
            yield ast.UnaryOp(ast.Not(), node)


def _of_statement(node: ast.stmt) -> Iterator[ast.AST]:
    if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()
    elif isinstance(node, ast.AugAssign):
        yield ast.Pass()
        other = _ARITHMETIC.get(type(node.op))
        if other is not None:
            yield ast.AugAssign(node.target, other(), node.value)
    elif isinstance(node, ast.Continue):
        yield ast.Break()
    elif isinstance(node, ast.Break):
        yield ast.Continue()


def _of_compare(node: ast.Compare) -> Iterator[ast.AST]:
    for index, operator in enumerate(node.ops):
        for other in _COMPARE[type(operator)]:
            yield ast.Compare(node.left, [*node.ops[:index], other(), *node.ops[index + 1 :]], node.comparators)


def _of_arithmetic(node: ast.BinOp) -> Iterator[ast.AST]:
    other = _ARITHMETIC.get(type(node.op))
    if other is not None and not isinstance(node.left, ast.JoinedStr) and not isinstance(node.right, ast.JoinedStr):
        yield ast.BinOp(node.left, other(), node.right)


def _of_logic(node: ast.BoolOp) -> Iterator[ast.AST]:
    yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)


def _of_unary(node: ast.UnaryOp) -> Iterator[ast.AST]:
    if isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield node.operand


def _of_constant(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int | float):
        yield ast.Constant(value + 1)
    elif isinstance(value, str) and value:
        yield ast.Constant(_OTHER_WORD.get(value, f"{value}~"))


def _of_slice(node: ast.Slice) -> Iterator[ast.AST]:
    if node.lower is not None:
        yield ast.Slice(None, node.upper, node.step)
    if node.upper is not None:
        yield ast.Slice(node.lower, None, node.step)


def _of_call(node: ast.Call) -> Iterator[ast.AST]:
    function = copy.copy(node.func)
    if node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0:
        return  # `zeros(0)` holds nothing
    if isinstance(function, ast.Name) and function.id in _OTHER_NAME:
        function.id = _OTHER_NAME[function.id]
    elif isinstance(function, ast.Attribute) and function.attr in _OTHER_NAME:
        function.attr = _OTHER_NAME[function.attr]
    else:
        return
    yield ast.Call(function, node.args, [] if _becomes_list(function) else node.keywords)


def _becomes_list(function: ast.expr) -> bool:
    """Whether a call was changed into one of `list`, which takes no keywords."""
    return isinstance(function, ast.Name) and function.id == "list"


def _of_list(node: ast.List) -> Iterator[ast.AST]:
    if isinstance(node.ctx, ast.Load) and len(node.elts) > 1:
        for index in range(len(node.elts)):
            yield ast.List([*node.elts[:index], *node.elts[index + 1 :]], node.ctx)


_OF_EXPRESSION: Final[dict[type[ast.expr], Callable[..., Iterator[ast.AST]]]] = {
    ast.Compare: _of_compare,
    ast.BinOp: _of_arithmetic,
    ast.BoolOp: _of_logic,
    ast.UnaryOp: _of_unary,
    ast.Constant: _of_constant,
    ast.Slice: _of_slice,
    ast.Call: _of_call,
    ast.List: _of_list,
}
