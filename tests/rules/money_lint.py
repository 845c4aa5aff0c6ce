"""Where a float could touch money: a reading of the source that finds it.

Types do the larger part: every amount is annotated ``int``, and the type checker lets no ``float`` become an ``int``. What it
would let pass is found here, by names and by place:

* anywhere in the product, something named as money (``amount``, ``cost``, ``price``, ``budget`` …) that is annotated with
  ``float``, turned into one, rounded, truly divided, or put into one sum with a number that has a point;
* in the modules that handle money (they import the amounts, or are a part of the payment domain), every ``float(…)``,
  ``round(…)`` and ``/`` at all, whatever it is named, but for what is a time by its name, for paths, and for a division by
  1000 or 3600, which turns one unit of time into another. The few other places are listed in the test, with their reasons.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MONEY = re.compile(
    "amounts?|balance|bills?|billed|budget|claimed|costs?|credit|deposit|due|fees?|funds|hourly|invoiced"
    "|owed|paid|payout|prices?|remaining|reserved|settled|spent|units|voucher|wei"
)
OTHER_UNIT = re.compile(r"_(s|ms|sec|hours|at|bytes|blocks|ratio|words|re)$", re.IGNORECASE)
"""A name that ends so is a time, a size or a text, whatever it starts with (``settle_wait_s``)."""
SOURCES_OF_MONEY = ("shem.terms.amounts", "shem.terms.budgets", "shem.terms.pricing", "shem.node.payment")
TIME = re.compile(r"(^|_)(s|ms|sec|seconds|milliseconds|at|until|now|monotonic|started|begun)$")
UNITS_OF_TIME = {1000, 3600}
PATH = re.compile(r"(^|_)(dir|directory|path|root|home|work)$", re.IGNORECASE)


class Find(NamedTuple):
    """One place. ``text`` is the expression."""

    line: int
    text: str
    why: str


def names_money(name: str) -> bool:
    """Whether an identifier says that it is money."""
    if OTHER_UNIT.search(name) or name.isupper():  # a constant's name tells no type; its value has one
        return False
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("_").split("_")
    first, last = MONEY.fullmatch(words[0]), MONEY.fullmatch(words[-1])
    return bool(last or (first and words[-1] in ("total", "sum", "limit", "left")))


def handles_money(tree: ast.AST, path: Path) -> bool:
    """Whether this module has amounts in its hands."""
    if "node/payment" in path.as_posix() or path.as_posix().endswith(
        ("terms/amounts.py", "terms/budgets.py", "terms/pricing.py")
    ):
        return True
    imported = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    imported += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
    return any(module.startswith(SOURCES_OF_MONEY) for module in imported)


def floats_near_money(source: str, path: Path) -> list[Find]:
    """Every place in one module, in the order of lines."""
    tree = ast.parse(source)
    found = {(find.line, find.text): find for find in _by_name(tree)}
    if handles_money(tree, path):
        found = {(find.line, find.text): find for find in _by_place(tree)} | found
    return sorted(found.values())


def _money_in(node: ast.AST | None) -> str:
    """The first name of money in an expression. What a call or an index is given says nothing of what it returns."""
    if node is None:
        return ""
    if isinstance(node, ast.Name):
        return node.id if names_money(node.id) else ""
    if isinstance(node, ast.Attribute):
        return node.attr if names_money(node.attr) else ""
    if isinstance(node, ast.Call):
        inside = _money_in(node.func)
        if (
            not inside
            and isinstance(node.func, ast.Name)
            and node.func.id in ("sum", "min", "max", "abs", "int", "Decimal")
        ):
            inside = next((m for a in node.args if (m := _money_in(a))), "")
        return inside
    if isinstance(node, ast.Subscript):
        return _money_in(node.value)
    if isinstance(node, ast.Constant | ast.JoinedStr | ast.Compare):
        return ""
    return next((m for child in ast.iter_child_nodes(node) if (m := _money_in(child))), "")


def _leaves(node: ast.AST) -> set[str]:
    """The last names of an expression: ``until`` of ``self.until``, ``monotonic`` of ``time.monotonic()``."""
    if isinstance(node, ast.Attribute):
        return {node.attr}
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, ast.Call):
        return _leaves(node.func)
    return {leaf for child in ast.iter_child_nodes(node) for leaf in _leaves(child)}


def _is_time(node: ast.AST) -> bool:
    leaves = _leaves(node)
    return bool(leaves) and all(TIME.search(leaf) for leaf in leaves)


def _is_path(node: ast.BinOp) -> bool:
    text = isinstance(node.right, ast.Constant) and isinstance(node.right.value, str)
    return text or any(PATH.search(leaf) for leaf in _leaves(node.left))


def _has_point(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Constant) and isinstance(n.value, float) for n in ast.walk(node))


def _says_float(annotation: ast.AST | None) -> bool:
    """``float``, ``float | None``, ``list[float]`` …; also as text. A function's own floats are its own."""
    if annotation is None:
        return False
    text = ast.unparse(annotation)
    return bool(re.search(r"\bfloat\b", text)) and "Callable" not in text


def _by_name(tree: ast.AST) -> Iterator[Find]:
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.arg) and names_money(node.arg) and _says_float(node.annotation):
            yield Find(line, node.arg, "an amount is a float")
        elif isinstance(node, ast.AnnAssign) and _money_in(node.target) and _says_float(node.annotation):
            yield Find(line, ast.unparse(node.target), "an amount is a float")
        elif (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and names_money(node.name)
            and _says_float(node.returns)
        ):
            yield Find(line, node.name, "an amount is a float")
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            plain = isinstance(node.value, ast.Constant | ast.BinOp) and _has_point(node.value)
            if plain and any(_money_in(target) for target in targets):
                yield Find(line, ast.unparse(node)[:100], "an amount with a point")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("float", "round"):
            if any(_money_in(a) for a in node.args):
                yield Find(line, ast.unparse(node)[:100], "an amount becomes a float, or is rounded")
        elif isinstance(node, ast.BinOp) and (_money_in(node.left) or _money_in(node.right)):
            if isinstance(node.op, ast.Div):
                yield Find(line, ast.unparse(node)[:100], "true division")
            elif _has_point(node.left) or _has_point(node.right):
                yield Find(line, ast.unparse(node)[:100], "an amount and a number with a point")


def _by_place(tree: ast.AST) -> Iterator[Find]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("float", "round"):
            argument = node.args[0] if node.args else node
            never = isinstance(argument, ast.Constant) and argument.value in ("inf", "-inf")
            if not never and not _is_time(argument):
                yield Find(node.lineno, ast.unparse(node)[:100], "where money is handled")
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            by = node.right if isinstance(node, ast.BinOp) else node.value
            of = node.left if isinstance(node, ast.BinOp) else node.target
            time = isinstance(by, ast.Constant) and by.value in UNITS_OF_TIME and not _money_in(of)
            if not (time or _is_time(of)) and not (isinstance(node, ast.BinOp) and _is_path(node)):
                yield Find(node.lineno, ast.unparse(node)[:100], "where money is handled")
