"""Signatures and docstrings of classes and functions, read from their source without an import.

Importing torch takes seconds; parsing the module of one class takes milliseconds. A definition is
rebuilt as a stub: a function or class with the same parameters, fields, bases and docstrings, but
no code. Python then computes the inheritance order, the constructor of a dataclass, and the
signature.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import inspect
from typing import Any

from arcloop.config.definitions import Definition, evaluate, find

_WITHOUT_ARGUMENTS = (
    "ABC", "BaseModel", "Generic", "Protocol", "object", "nn.Module", "torch.nn.Module",
)  # fmt: skip
"""Base classes that are skipped, because their constructor takes no arguments of their own."""


def read_signature(target: str) -> inspect.Signature:
    """Return the signature of a class or function, read from its source.

    Parameters that a constructor passes on with `super().__init__(**kwargs)` are included.

    Args:
        target: Dotted path of the class or function.

    Returns:
        Keyword parameters. An annotation is a type, or Any if it names a class or is missing; a
        default that is no constant is None. It has `**kwargs` if other keywords are accepted or the
        source cannot be read.

    Raises:
        LookupError: The module or the name does not exist.
    """
    definition = find(target)
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
                parameters[parameter.name] = parameter.replace(
                    kind=parameter.KEYWORD_ONLY, annotation=_type_of(parameter, link)
                )
        if not own or own[-1].kind is not inspect.Parameter.VAR_KEYWORD:
            break
        if init.passed_to_super is None:
            kwargs = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
            return inspect.Signature([*parameters.values(), kwargs])
        passed |= init.passed_to_super
    return inspect.Signature(list(parameters.values()))


def read_docstrings(target: str) -> list[str]:
    """Return the docstring of a function, or those of a class, after those of its bases.

    The docstring of the constructor precedes that of its class.

    Args:
        target: Dotted path of the class or function.

    Raises:
        LookupError: The module or the name does not exist.
    """
    definition = find(target)
    stub = None if definition is None else _stub(definition)
    order = reversed(stub.__mro__[:-1]) if isinstance(stub, type) else [stub]
    found = [text for link in order for text in (vars(link).get("__init__"), link)]
    return [text.__doc__ for text in found if text is not None and text.__doc__]


def _type_of(parameter: inspect.Parameter, link: Any) -> Any:
    """Return the type of a parameter of a stub; Any if it is not annotated with a known type."""
    owners = [o for o in getattr(link, "__mro__", ()) if parameter.name in _own_annotations(o)]
    is_field = owners and dataclasses.is_dataclass(link)
    return evaluate(parameter.annotation, (owners[0] if is_field else link).defined_in)


def _own_annotations(stub: type) -> dict[str, Any]:
    annotations: dict[str, Any] = vars(stub).get("__annotations__", {})
    return annotations


@functools.cache
def _stub(definition: Definition) -> Any:
    """Return a function or class with the signature of a definition."""
    module, node = definition
    if isinstance(node, ast.FunctionDef):
        return _stub_function(node, module)
    names = [ast.unparse(b.value if isinstance(b, ast.Subscript) else b) for b in node.bases]
    bases = [_stub_base(module, name) for name in names if name not in _WITHOUT_ARGUMENTS]
    is_model = "BaseModel" in names or any(getattr(base, "is_model", False) for base in bases)
    members: dict[str, Any] = {
        "__annotations__": {}, "defined_in": module, "__doc__": ast.get_docstring(node),
        "is_model": is_model,
    }  # fmt: skip
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            members["__init__"] = _stub_function(statement, module)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotation = ast.unparse(statement.annotation)
            if "ClassVar" not in annotation:
                members["__annotations__"][statement.target.id] = annotation
                if statement.value is not None:
                    members[statement.target.id] = ast.literal_eval(_constant(statement.value))
    stub = type(node.name, tuple(bases), members)
    if is_model or any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return dataclasses.dataclass(kw_only=True)(stub)
    return stub


def _stub_base(module: str, name: str) -> type:
    try:
        found = find(f"{module}.{name}")
    except LookupError:
        found = None
    stub = _unreadable() if found is None else _stub(found)
    return stub if isinstance(stub, type) else _unreadable()


def _unreadable() -> type:
    """Return a new class with an unknown constructor."""

    def init(self: object, **kwargs: object) -> None: ...

    init.passed_to_super = None  # type: ignore[attr-defined]
    return type("Unreadable", (), {"__init__": init, "defined_in": ""})


def _constant(value: ast.expr) -> ast.expr:
    """Return a default value that is a number, a text or none of them, then None."""
    number = value.operand if isinstance(value, ast.UnaryOp) else value
    return value if isinstance(number, ast.Constant) else ast.Constant(None)


def _stub_function(node: ast.FunctionDef, module: str) -> Any:
    """Return a function with these parameters; annotations are strings."""
    arguments = copy.copy(node.args)
    arguments.defaults = [_constant(default) for default in arguments.defaults]
    arguments.kw_defaults = [default and _constant(default) for default in arguments.kw_defaults]
    namespace: dict[str, Any] = {}
    source = f"from __future__ import annotations\ndef stub({ast.unparse(arguments)}): ..."
    exec(source, namespace)  # noqa: S102 - contains no code of the definition
    stub = namespace["stub"]
    stub.defined_in, stub.__doc__ = module, ast.get_docstring(node)
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
