"""Signatures of installed classes and functions, read from their source without importing them.

Importing torch takes seconds; parsing the module of one class takes milliseconds.
"""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import importlib.util
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcloop.config import value_types
from arcloop.config.value_types import resolve_annotation

_NAMESPACE = {**vars(typing), **vars(value_types)}
_WITHOUT_ARGUMENTS = ("ABC", "Generic", "Protocol", "object", "nn.Module", "torch.nn.Module")
"""Base classes that are skipped, because their constructor takes no arguments."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a callable: its annotation and whether it has no default."""

    annotation: Any
    required: bool


@dataclass(frozen=True)
class Signature:
    """The named parameters of a callable; `open`: it accepts any other keyword (**kwargs)."""

    parameters: Mapping[str, Parameter]
    open: bool


@dataclass(frozen=True)
class _Module:
    """Source of a module; `body` contains its parsed statements."""

    name: str
    file: Path
    is_package: bool

    @functools.cached_property
    def body(self) -> list[ast.stmt]:
        return ast.parse(self.file.read_text(encoding="utf-8")).body


_Definition = tuple[_Module, ast.FunctionDef | ast.ClassDef]


@functools.cache
def read_signature(target: str) -> Signature | None:
    """Return the signature of the class or function with this dotted path.

    Returns:
        None if it cannot be read from source (a compiled or generated callable).

    Raises:
        LookupError: The module or the name does not exist.
    """
    found = _find(target)
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return _of_function(node)
    order: Sequence[Any] = _shadow_class(module, node).__mro__[:-2]  # without _Shadow and object
    return _of_class([shadow.definition for shadow in order])


def _find(target: str) -> _Definition | None:
    """Follow a dotted path through packages and re-exports to a definition."""
    parts = target.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module = _locate(".".join(parts[:split]))
        if module is not None:
            is_source = module.file.suffix == ".py"
            return _find_in(module, parts[-1]) if is_source and split == len(parts) - 1 else None
    raise LookupError(target)


@functools.cache
def _locate(name: str) -> _Module | None:
    """Locate a module without importing it or the packages that contain it."""
    parts = name.split(".")
    spec = importlib.util.find_spec(parts[0])  # does not import a top-level module
    for depth in range(2, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(
            ".".join(parts[:depth]), spec.submodule_search_locations
        )
    if spec is None or spec.origin is None:
        return None
    return _Module(name, Path(spec.origin), spec.submodule_search_locations is not None)


def _find_in(module: _Module, name: str) -> _Definition | None:
    """Find the definition of a name in a module.

    Returns:
        None if the name is assigned or defined conditionally.

    Raises:
        LookupError: The module does not define or import it.
    """
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == name:
            return module, statement
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return _find(f"{_absolute(module, statement)}.{alias.name}")
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.If | ast.Try):
            nodes = list(ast.walk(statement))
            names = {node.id for node in nodes if isinstance(node, ast.Name)}
            names |= {a.name for node in nodes if isinstance(node, ast.ImportFrom)
                      for a in node.names}  # fmt: skip
            if name in names:
                return None
    if any(isinstance(s, ast.ImportFrom) and s.names[0].name == "*" for s in module.body):
        return None
    raise LookupError(f"{module.name}.{name}")


def _absolute(module: _Module, statement: ast.ImportFrom) -> str:
    """Return the absolute name of the module that a `from ... import` statement refers to."""
    if statement.level == 0:
        return statement.module or ""
    package = module.name.split(".")
    base = package[: len(package) - statement.level + module.is_package]
    return ".".join([*base, *([statement.module] if statement.module else [])])


class _Shadow:
    """Base of the classes that mirror inheritance in source code; `definition` is the source.

    Attributes:
        definition: Module and class definition; None if the class cannot be read.
    """

    definition: tuple[_Module, ast.ClassDef] | None = None


@functools.cache
def _shadow_class(module: _Module, node: ast.ClassDef) -> type[_Shadow]:
    """Build a class with the same bases, to let Python compute the method resolution order."""
    bases: list[type[_Shadow]] = []
    for base in node.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        if name in _WITHOUT_ARGUMENTS:
            continue
        try:
            found = _find_in(module, name)
        except LookupError:
            found = None
        if found is not None and isinstance(found[1], ast.ClassDef):
            bases.append(_shadow_class(found[0], found[1]))
        else:
            bases.append(type("Unknown", (_Shadow,), {}))
    return type(node.name, tuple(bases) or (_Shadow,), {"definition": (module, node)})


def _of_class(order: Sequence[tuple[_Module, ast.ClassDef] | None]) -> Signature | None:
    """Return the signature of the first constructor in a method resolution order."""
    for position, definition in enumerate(order):
        if definition is None:
            return None
        node = definition[1]
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            return _of_dataclass(order[position:])
        if init := _constructor(node):
            own = _of_function(init, skip_first=True)
            return (_with_forwarded(order[position:]) if own.open else None) or own
    return Signature({}, open=False)


def _of_function(node: ast.FunctionDef, *, skip_first: bool = False) -> Signature:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    required = {a.arg: number < first_default for number, a in enumerate(positional)}
    defaults = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    required |= {a.arg: default is None for a, default in defaults}
    parameters = {
        a.arg: Parameter(_annotation(a.annotation), required[a.arg])
        for a in [*positional[skip_first:], *arguments.kwonlyargs]
    }
    return Signature(parameters, open=arguments.kwarg is not None)


def _of_dataclass(order: Sequence[tuple[_Module, ast.ClassDef] | None]) -> Signature | None:
    """Return the signature of a dataclass: the fields of all classes in its resolution order."""
    parameters: dict[str, Parameter] = {}
    for definition in reversed(order):
        if definition is None:
            return None
        for statement in definition[1].body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                parameters[statement.target.id] = Parameter(
                    _annotation(statement.annotation), statement.value is None
                )
    return Signature(parameters, open=False)


def _with_forwarded(order: Sequence[tuple[_Module, ast.ClassDef] | None]) -> Signature | None:
    """Collect the parameters of constructors that call `super().__init__(**kwargs)`.

    Returns:
        All parameters up to the first constructor without **kwargs; None if a constructor uses
        its **kwargs in another way or cannot be read.
    """
    parameters: dict[str, Parameter] = {}
    passed: set[str] = set()
    for definition in order:
        init = _constructor(definition[1]) if definition else None
        if definition is None:
            return None
        if init is None:
            continue
        signature = _of_function(init, skip_first=True)
        parameters = {
            **{n: p for n, p in signature.parameters.items() if n not in passed}, **parameters
        }  # fmt: skip
        if not signature.open:
            break
        given = _passed_to_super(init)
        if given is None:
            return None
        passed |= given
    return Signature(parameters, open=False)


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    functions = (n for n in node.body if isinstance(n, ast.FunctionDef))
    return next((function for function in functions if function.name == "__init__"), None)


def _passed_to_super(init: ast.FunctionDef) -> set[str] | None:
    """Return the names in `super().__init__(name=..., **kwargs)`; None for any other use."""
    assert init.args.kwarg is not None
    keywords = init.args.kwarg.arg
    uses = [n for n in ast.walk(init) if isinstance(n, ast.Name) and n.id == keywords]
    for call in (n for n in ast.walk(init) if isinstance(n, ast.Call)):
        forwards = any(k.arg is None and ast.unparse(k.value) == keywords for k in call.keywords)
        # A config passes no positional arguments, so *args is empty.
        positional = [a for a in call.args if not isinstance(a, ast.Starred)]
        if forwards and ast.unparse(call.func) == "super().__init__" and not positional:
            return {k.arg for k in call.keywords if k.arg} if len(uses) == 1 else None
    return None


def _annotation(node: ast.expr | None) -> Any:
    """Evaluate an annotation of builtins, typing names and arcloop's value types; Any otherwise."""
    return Any if node is None else resolve_annotation(ast.unparse(node), _NAMESPACE)
