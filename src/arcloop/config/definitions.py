"""Definitions of classes, functions and types, found in source files without importing them."""

from __future__ import annotations

import ast
import builtins
import functools
import importlib.util
import re
import typing
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from arcloop.config import restrictions, value_types
from arcloop.errors import ConfigError

_NAMESPACE = {**vars(builtins), **vars(typing), **vars(restrictions), **vars(value_types)}
_TYPES = (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp)
"""Expressions that an alias of a type may be; others could have effects."""
Definition = tuple[str, ast.FunctionDef | ast.ClassDef]
"""Name of a module, and a definition in it."""


def find(target: str) -> Definition | None:
    """Follow a dotted path through packages and re-exports to a definition.

    Returns:
        None if the name is not defined by a plain `def` or `class` in a Python file.

    Raises:
        LookupError: The module or the name does not exist.
    """
    path, _, name = target.rpartition(".")
    module = _locate(path)
    if module is None:
        if not path:
            raise LookupError(target)
        find(path)  # an attribute of a class is not followed
        return None
    source, body = _parse(module)
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == name:
            return module.name, statement
        if isinstance(statement, ast.ImportFrom):
            origin = _origin(module, statement)
            for alias in statement.names:
                if (alias.asname or alias.name) == name and f"{origin}.{alias.name}" != target:
                    return find(f"{origin}.{alias.name}")
    # The name may be assigned, defined conditionally, or come from a star import.
    if source is None or re.search(rf"\b{re.escape(name)}\b|import \*", source):
        return None
    raise LookupError(target)


def _origin(module: ModuleSpec, statement: ast.ImportFrom) -> str:
    dots = "." * statement.level
    return importlib.util.resolve_name(dots + (statement.module or ""), module.parent)


def _locate(name: str) -> ModuleSpec | None:
    """Locate a module without importing it or the packages that contain it."""
    parts = name.split(".")
    # Neither imports it. `find_spec` returns what an earlier import found, which may have moved.
    spec = PathFinder.find_spec(parts[0]) or (importlib.util.find_spec(parts[0]) if name else None)
    for depth in range(2, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join(parts[:depth]), spec.submodule_search_locations)
    return spec


def _parse(module: ModuleSpec | None) -> tuple[str | None, list[ast.stmt]]:
    """Return the source of a module, None without a Python file, and its statements."""
    file = Path((module and module.origin) or "")
    return _parse_version(file, file.stat().st_mtime_ns) if file.suffix == ".py" else (None, [])


@functools.cache
def _parse_version(file: Path, _: int) -> tuple[str, list[ast.stmt]]:
    source = file.read_text(encoding="utf-8")
    try:
        return source, ast.parse(source).body
    except SyntaxError as cause:
        raise ConfigError(
            f"this is not valid Python: {cause.msg}",
            where=f"{file}, line {cause.lineno}",
            remedy="correct the file",
        ) from None


def names_in_module(module: str) -> list[str]:
    """Return the classes and functions that a module defines or imports from others."""
    names = []
    for statement in _parse(_locate(module))[1]:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.append(statement.name)
        elif isinstance(statement, ast.ImportFrom):
            names += [alias.asname or alias.name for alias in statement.names]
    return names


class _Names(dict[str, Any]):
    """The names in annotations of a module: builtins, types of typing and arcloop, own aliases."""

    def __init__(self, module: str) -> None:
        super().__init__(_NAMESPACE)
        self._module = module

    def __missing__(self, name: str) -> Any:
        return _alias(self._module, name)


def evaluate(annotation: Any, module: str) -> Any:
    """Evaluate an annotation; Any if it is missing, or a name in it is not the name of a type."""
    if not isinstance(annotation, str):
        return Any
    try:
        return eval(annotation, {}, _Names(module))  # noqa: S307 - annotations of installed code
    except Exception:  # noqa: BLE001 - another name in it
        node = ast.parse(annotation, mode="eval").body
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated":
        assert isinstance(node.slice, ast.Tuple)
        return evaluate(ast.unparse(node.slice.elts[0]), module)
    return Any


def _alias(module: str, name: str) -> Any:
    """Return the type that a module assigns to a name, or imports from its own package.

    Raises:
        KeyError: The name is something else, for example a class.
    """
    spec = _locate(module)
    for statement in _parse(spec)[1]:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, _TYPES):
            if [ast.unparse(assigned) for assigned in statement.targets] == [name]:
                return evaluate(ast.unparse(statement.value), module)
        elif isinstance(statement, ast.ImportFrom):
            assert spec is not None
            origin = _origin(spec, statement)
            if origin.partition(".")[0] == module.partition(".")[0] and origin != module:
                for alias in statement.names:
                    if (alias.asname or alias.name) == name:
                        return _alias(origin, alias.name)
    raise KeyError(name)
