"""Check `_target_` nodes against the constructors they name, without importing them.

Importing torch takes seconds; reading the source of one class takes milliseconds. So a misspelt key
or a value of the wrong type under any node is refused at once, `+head.margn=1` and partials too.
"""

from __future__ import annotations

import ast
import difflib
import functools
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from arcloop.config import value_types
from arcloop.config.definitions import Module, extra_for, find, find_in, resolution_order
from arcloop.config.value_types import complaint

_RESERVED = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
_NAMESPACE = {**vars(typing), **vars(value_types)}


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
        extra = extra_for(target.partition(".")[0])
        remedy = f"; pip install 'arcloop[{extra}]'" if extra else ""
        yield f"{key}._target_={target} names nothing that is installed{remedy}"
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
    found = find(target)
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, skip_first=False)
    return _of_class(module, node)


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


def _of_class(module: Module, node: ast.ClassDef) -> Signature | None:
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            own = _of_function(statement, skip_first=True)
            return (_with_inherited(module, node) if own.open else None) or own
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


def _with_inherited(module: Module, node: ast.ClassDef) -> Signature | None:
    """Follow `super().__init__(**kwargs)` from class to class to one that takes no more keywords.

    Returns:
        All that is taken on the way; None if anything else is done with the keywords, or where a
        class cannot be read.
    """
    parameters: dict[str, Parameter] = {}
    filled: set[str] = set()
    for definition in resolution_order(module, node):
        if definition is None:
            return None
        init = _init(definition[1])
        if init is None:
            continue
        signature = _of_function(init, skip_first=True)
        for name, parameter in signature.parameters.items():
            if name not in filled:
                parameters.setdefault(name, parameter)
        if not signature.open:
            return Signature(parameters, open=False)
        passed = _passed_on(init)
        if passed is None:
            return None
        filled |= passed
    return Signature(parameters, open=False)


def _init(node: ast.AST) -> ast.FunctionDef | None:
    inits = (n for n in ast.iter_child_nodes(node) if isinstance(n, ast.FunctionDef))
    return next((n for n in inits if n.name == "__init__"), None)


def _passed_on(init: ast.FunctionDef) -> set[str] | None:
    """Names given to `super().__init__(name=..., **kwargs)`; None if kwargs go anywhere else."""
    assert init.args.kwarg is not None
    keywords = init.args.kwarg.arg
    uses = [n for n in ast.walk(init) if isinstance(n, ast.Name) and n.id == keywords]
    for call in (n for n in ast.walk(init) if isinstance(n, ast.Call)):
        forwards = any(k.arg is None and ast.unparse(k.value) == keywords for k in call.keywords)
        # A config gives no positional arguments: *args is empty.
        positional = [a for a in call.args if not isinstance(a, ast.Starred)]
        if forwards and ast.unparse(call.func) == "super().__init__" and not positional:
            return {k.arg for k in call.keywords if k.arg} if len(uses) == 1 else None
    return None


def _base_signature(module: Module, name: str) -> Signature | None:
    if name in ("ABC", "Protocol", "object", "Generic"):
        return Signature({}, open=False)
    try:
        found = find_in(module, name)
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
