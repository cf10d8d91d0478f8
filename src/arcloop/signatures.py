"""Check `_target_` nodes against the constructors they name, without importing them.

Importing torch takes seconds; reading the source of one class takes milliseconds. So a misspelt key
or a value of the wrong type under any node is refused at once, `+head.margn=1` and partials too.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.machinery
import importlib.util
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcloop import quantities
from arcloop.quantities import complaint

_RESERVED = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
_NAMESPACE = {**vars(typing), **vars(quantities)}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a constructor: its annotation, and whether it must be given."""

    annotation: Any
    required: bool


@dataclass(frozen=True)
class Signature:
    """What a callable takes; `open` if it takes any keyword (**kwargs)."""

    parameters: Mapping[str, Parameter]
    open: bool


def faults(node: Any, key: str = "") -> Iterator[str]:
    """Yield what is wrong with a config node and all nodes below it.

    Args:
        node: A plain, resolved container: dicts, lists and scalars.
        key: Where the node is, for the message, e.g. "head".

    Yields:
        One sentence a fault: unknown `_target_`, unknown key (with the nearest names), wrong type,
        value out of its range, and, unless the node is partial, a required key that is missing.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield from _target_faults(node, key)
        for name, child in node.items():
            yield from faults(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for number, child in enumerate(node):
            yield from faults(child, f"{key}[{number}]")


def _target_faults(node: Mapping[str, Any], key: str) -> Iterator[str]:
    target = str(node["_target_"])
    try:
        signature = signature_of(target)
    except LookupError:
        yield f"{key}._target_={target} names nothing that is installed"
        return
    if signature is None:
        return
    given = {name: value for name, value in node.items() if name not in _RESERVED}
    for name, value in given.items():
        fault = _argument_fault(signature, name, value)
        if fault:
            yield f"{key}.{fault}"
    if not node.get("_partial_"):
        for name, parameter in signature.parameters.items():
            if parameter.required and name not in given:
                yield f"{key}.{name} is required by {target}"


def _argument_fault(signature: Signature, name: str, value: Any) -> str | None:
    parameter = signature.parameters.get(name)
    if parameter is None:
        return None if signature.open else f"{name} is unknown; {_nearest(name, signature)}"
    if isinstance(value, Mapping) and "_target_" in value:
        return None
    fault = complaint(value, parameter.annotation)
    return f"{name}={value!r} {fault}" if fault else None


def _nearest(name: str, signature: Signature) -> str:
    near = difflib.get_close_matches(name, signature.parameters, n=3)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "known: " + ", ".join(sorted(signature.parameters))


@functools.cache
def signature_of(target: str) -> Signature | None:
    """Return the signature of the class or function with this dotted path, read from its source.

    Returns:
        None where the source cannot be read (a compiled or generated callable).

    Raises:
        LookupError: There is no such module or name.
    """
    found = _find(target)
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, skip_first=False)
    return _of_class(module, node)


@dataclass(frozen=True)
class _Module:
    name: str
    file: Path
    is_package: bool

    @functools.cached_property
    def body(self) -> list[ast.stmt]:
        return ast.parse(self.file.read_text(encoding="utf-8")).body


def _find(target: str) -> tuple[_Module, ast.FunctionDef | ast.ClassDef] | None:
    """Follow the dotted path through packages and re-exports to a definition."""
    parts = target.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module = _module(".".join(parts[:split]))
        if module is None:
            continue
        if module.file.suffix != ".py":
            return None
        rest = parts[split:]
        return _definition(module, rest[0]) if len(rest) == 1 else None
    raise LookupError(target)


@functools.cache
def _module(name: str) -> _Module | None:
    """Locate a module without importing it or any package above it."""
    search: list[str] | None = None
    spec = None
    for depth, _ in enumerate(parts := name.split("."), start=1):
        partial = ".".join(parts[:depth])
        if depth == 1:
            spec = importlib.util.find_spec(partial)  # a top-level name is found, not imported
        else:
            spec = importlib.machinery.PathFinder.find_spec(partial, search)
        if spec is None or spec.origin is None:
            return None
        search = spec.submodule_search_locations
    assert spec is not None
    assert spec.origin is not None
    return _Module(name, Path(spec.origin), spec.submodule_search_locations is not None)


def _definition(
    module: _Module, name: str
) -> tuple[_Module, ast.FunctionDef | ast.ClassDef] | None:
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == name:
            return module, statement
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return _find(f"{_absolute(module, statement)}.{alias.name}")
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.If | ast.Try):
            names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
            imported = {a.name for n in ast.walk(statement) if isinstance(n, ast.ImportFrom)
                        for a in n.names}  # fmt: skip
            if name in names | imported:
                return None  # defined in a way that only running it would tell
    if any(isinstance(s, ast.ImportFrom) and s.names[0].name == "*" for s in module.body):
        return None
    raise LookupError(f"{module.name}.{name}")


def _absolute(module: _Module, statement: ast.ImportFrom) -> str:
    if statement.level == 0:
        return statement.module or ""
    package = module.name.split(".")
    up = statement.level - (1 if module.is_package else 0)
    base = package[: len(package) - up]
    return ".".join([*base, *([statement.module] if statement.module else [])])


def _of_function(node: ast.FunctionDef, *, skip_first: bool) -> Signature:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    parameters = {
        argument.arg: Parameter(_annotation(argument.annotation), number < first_default)
        for number, argument in enumerate(positional)
        if not (skip_first and number == 0)
    }
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters[argument.arg] = Parameter(_annotation(argument.annotation), default is None)
    return Signature(parameters, open=arguments.kwarg is not None)


def _of_class(module: _Module, node: ast.ClassDef) -> Signature | None:
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _of_function(statement, skip_first=True)
    parameters: dict[str, Parameter] = {}
    is_open = False
    for base in node.bases:
        if not isinstance(base, ast.Name):
            continue
        inherited = _base_signature(module, base.id)
        if inherited is None:
            return None
        parameters |= inherited.parameters
        is_open |= inherited.open
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        parameters |= {
            statement.target.id: Parameter(
                _annotation(statement.annotation), statement.value is None
            )
            for statement in node.body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        }
    return Signature(parameters, is_open)


def _base_signature(module: _Module, name: str) -> Signature | None:
    if name in ("ABC", "Protocol", "object", "Generic"):
        return Signature({}, open=False)
    try:
        found = _definition(module, name)
    except LookupError:
        return None
    if found is None or isinstance(found[1], ast.FunctionDef):
        return None
    return _of_class(found[0], found[1])


def _annotation(node: ast.expr | None) -> Any:
    """Evaluate an annotation made of builtins, typing names and arcloop's quantities, else None."""
    if node is None:
        return Any
    try:
        return eval(ast.unparse(node), dict(_NAMESPACE))  # noqa: S307 - installed code, names only
    except Exception:  # noqa: BLE001 - a type we cannot name is a type we do not judge
        return Any
