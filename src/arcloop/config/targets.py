"""Check `_target_` nodes against the signatures of their targets, without importing them.

Importing torch takes seconds; parsing the module of one class takes milliseconds. A definition is
rebuilt as a stub: a function or class with the same parameters, fields and bases, but no code.
Python then computes the inheritance order, the constructor of a dataclass, and the signature.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import difflib
import functools
import importlib.metadata
import importlib.util
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from arcloop.config import value_types
from arcloop.config.value_types import find_mismatches
from arcloop.errors import ConfigError

_RESERVED = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
_NAMESPACE = {**vars(typing), **vars(value_types)}
_WITHOUT_ARGUMENTS = ("ABC", "Generic", "Protocol", "object", "nn.Module", "torch.nn.Module")
"""Base classes that are skipped, because their constructor takes no arguments."""
_Definition = tuple[str, ast.FunctionDef | ast.ClassDef]
"""Name of a module, and a definition in it."""


def find_faults(node: Any, key: str = "") -> Iterator[str]:
    """Yield the faults of all `_target_` nodes in a config.

    Args:
        node: A plain, resolved container of dicts, lists and scalars.
        key: Config key of the node, e.g. "head".

    Yields:
        One sentence per fault: unknown `_target_`, unknown key (with the nearest names), wrong
        type, value out of range, and, unless the node is a partial, a missing required key.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield from _target_faults(node, key)
        for name, child in node.items():
            yield from find_faults(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for number, child in enumerate(node):
            yield from find_faults(child, f"{key}[{number}]")


def _target_faults(node: Mapping[str, Any], key: str) -> Iterator[str]:
    """Yield the faults of one `_target_` node, without those of nested nodes."""
    target = str(node["_target_"])
    try:
        parameters = dict(read_signature(target).parameters)
    except LookupError:
        package = target.partition(".")[0]
        extra = _extra_of(package) if importlib.util.find_spec(package) is None else None
        remedy = f"; pip install 'arcloop[{extra}]'" if extra else ""
        yield f"{key}._target_={target} is not installed{remedy}"
        return
    is_open = parameters.pop("kwargs", None) is not None
    given = {name: value for name, value in node.items() if name not in _RESERVED}
    for name in sorted(given.keys() - parameters.keys()) if not is_open else ():
        near = difflib.get_close_matches(name, parameters, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(parameters)}"
        yield f"{key}.{name} is unknown; {hint}"
    hints = {name: _evaluate(parameter.annotation) for name, parameter in parameters.items()}
    values = {n: v for n, v in given.items() if not (isinstance(v, Mapping) and "_target_" in v)}
    yield from find_mismatches(values, hints, key)
    if not node.get("_partial_"):
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in given:
                yield f"{key}.{name} is required by {target}"


def _evaluate(annotation: Any) -> Any:
    """Evaluate an annotation of builtins, typing names and arcloop's value types; Any otherwise."""
    try:
        return eval(annotation, dict(_NAMESPACE))  # noqa: S307 - annotations of installed code
    except Exception:  # noqa: BLE001 - no annotation, or another name in it
        return Any


@functools.cache
def read_signature(target: str) -> inspect.Signature:
    """Return the signature of a class or function, read from its source.

    Parameters that a constructor passes on with `super().__init__(**kwargs)` are included.

    Args:
        target: Dotted path of the class or function.

    Returns:
        Keyword parameters; annotations are strings, defaults are None. It has `**kwargs`
        if other keywords are accepted or the source cannot be read.

    Raises:
        LookupError: The module or the name does not exist.
    """
    definition = _find(target)
    stub = _unreadable() if definition is None else _stub(definition)
    order = stub.__mro__[:-1] if isinstance(stub, type) else [stub]
    parameters: dict[str, inspect.Parameter] = {}
    passed: set[str] = set()
    for link in order:
        init = vars(link).get("__init__") if isinstance(link, type) else link
        if init is None:
            continue
        own = list(inspect.signature(init).parameters.values())[isinstance(link, type) :]
        for parameter in own:
            is_named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if is_named and parameter.name not in passed | parameters.keys():
                parameters[parameter.name] = parameter.replace(kind=parameter.KEYWORD_ONLY)
        if not own or own[-1].kind is not inspect.Parameter.VAR_KEYWORD:
            break
        if init.passed_to_super is None:
            kwargs = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
            return inspect.Signature([*parameters.values(), kwargs])
        passed |= init.passed_to_super
    return inspect.Signature(list(parameters.values()))


def _find(target: str) -> _Definition | None:
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
        _find(path)  # an attribute of a class is not followed
        return None
    if not (module.origin or "").endswith(".py"):
        return None
    source, body = _parse(str(module.origin))
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == name:
            return module.name, statement
        if isinstance(statement, ast.ImportFrom):
            dots = "." * statement.level
            origin = importlib.util.resolve_name(dots + (statement.module or ""), module.parent)
            for alias in statement.names:
                if (alias.asname or alias.name) == name and f"{origin}.{alias.name}" != target:
                    return _find(f"{origin}.{alias.name}")
    # The name may be assigned, defined conditionally, or come from a star import.
    if re.search(rf"\b{name}\b|import \*", source):
        return None
    raise LookupError(target)


@functools.cache
def _locate(name: str) -> ModuleSpec | None:
    """Locate a module without importing it or the packages that contain it."""
    parts = name.split(".")
    spec = importlib.util.find_spec(parts[0]) if name else None  # does not import it
    for depth in range(2, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join(parts[:depth]), spec.submodule_search_locations)
    return spec


@functools.cache
def _parse(file: str) -> tuple[str, list[ast.stmt]]:
    source = Path(file).read_text(encoding="utf-8")
    return source, ast.parse(source).body


@functools.cache
def _stub(definition: _Definition) -> Any:
    """Return a function or class with the signature of a definition."""
    module, node = definition
    if isinstance(node, ast.FunctionDef):
        return _stub_function(node)
    members: dict[str, Any] = {"__annotations__": {}}
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            members["__init__"] = _stub_function(statement)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotation = ast.unparse(statement.annotation)
            if "ClassVar" not in annotation:
                members["__annotations__"][statement.target.id] = annotation
                if statement.value is not None:
                    members[statement.target.id] = None
    names = [ast.unparse(b.value if isinstance(b, ast.Subscript) else b) for b in node.bases]
    bases = [_stub_base(module, name) for name in names if name not in _WITHOUT_ARGUMENTS]
    stub = type(node.name, tuple(bases), members)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return dataclasses.dataclass(kw_only=True)(stub)
    return stub


def _stub_base(module: str, name: str) -> type:
    try:
        found = _find(f"{module}.{name}")
    except LookupError:
        found = None
    stub = _unreadable() if found is None else _stub(found)
    return stub if isinstance(stub, type) else _unreadable()


def _unreadable() -> type:
    """Return a new class with an unknown constructor."""

    def init(self: object, **kwargs: object) -> None: ...

    init.passed_to_super = None  # type: ignore[attr-defined]
    return type("Unreadable", (), {"__init__": init})


def _stub_function(node: ast.FunctionDef) -> Any:
    """Return a function with these parameters; annotations are strings, defaults are None."""
    arguments = copy.copy(node.args)
    none = ast.Constant(None)
    arguments.defaults = [none for _ in arguments.defaults]
    arguments.kw_defaults = [default and none for default in arguments.kw_defaults]
    namespace: dict[str, Any] = {}
    source = f"from __future__ import annotations\ndef stub({ast.unparse(arguments)}): ..."
    exec(source, namespace)  # noqa: S102 - contains no code of the definition
    stub = namespace["stub"]
    stub.passed_to_super = _passed_to_super(node)
    return stub


def _passed_to_super(init: ast.FunctionDef) -> set[str] | None:
    """Return the names in `super().__init__(name=..., **kwargs)`; None for any other use."""
    keywords = init.args.kwarg.arg if init.args.kwarg else ""
    uses = sum(isinstance(n, ast.Name) and n.id == keywords for n in ast.walk(init))
    for call in (n for n in ast.walk(init) if isinstance(n, ast.Call)):
        forwards = uses == 1 and any(keyword.arg is None for keyword in call.keywords)
        if forwards and ast.unparse(call.func) == "super().__init__":
            return {keyword.arg for keyword in call.keywords if keyword.arg}
    return None


def require_extra(extra: str, *packages: str, where: str) -> None:
    """Check, without importing them, that the packages of an optional extra are installed.

    Args:
        extra: Extra of arcloop that installs the packages.
        *packages: Names of top-level modules.
        where: Part of the config, or command, that needs the packages, for the message.

    Raises:
        ConfigError: A package is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} is not installed",
            where=where,
            remedy=f"pip install 'arcloop[{extra}]', with the constraints that arcloop comes with",
        )


def _extra_of(package: str) -> str | None:
    """Return the extra that installs a package; None if it is in no extra."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for requirement in importlib.metadata.requires("arcloop") or ():
            found = re.match(r"""([\w.-]+).*extra\s*==\s*['"]([\w-]+)""", requirement)
            if found and re.sub(r"[-.]", "_", found[1]) == package and found[2] != "dev":
                return found[2]
    return None
