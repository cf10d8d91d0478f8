"""Find classes and functions in installed source by their dotted path, without importing them."""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Module:
    """A module's file and what is written in it."""

    name: str
    file: Path
    is_package: bool

    @functools.cached_property
    def body(self) -> list[ast.stmt]:
        """Its statements."""
        return ast.parse(self.file.read_text(encoding="utf-8")).body


Definition = tuple[Module, ast.FunctionDef | ast.ClassDef]


def find(target: str) -> Definition | None:
    """Follow a dotted path through packages and re-exports to a definition.

    Returns:
        None where only running the code would tell.

    Raises:
        LookupError: There is no such module or name.
    """
    parts = target.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module = _module(".".join(parts[:split]))
        if module is None:
            continue
        if module.file.suffix != ".py":
            return None
        rest = parts[split:]
        return find_in(module, rest[0]) if len(rest) == 1 else None
    raise LookupError(target)


@functools.cache
def _module(name: str) -> Module | None:
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
    return Module(name, Path(spec.origin), spec.submodule_search_locations is not None)


def find_in(module: Module, name: str) -> Definition | None:
    """Find what a name means in a module; as `find`."""
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == name:
            return module, statement
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return find(f"{_absolute(module, statement)}.{alias.name}")
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.If | ast.Try):
            names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
            imported = {a.name for n in ast.walk(statement) if isinstance(n, ast.ImportFrom)
                        for a in n.names}  # fmt: skip
            if name in names | imported:
                return None  # defined in a way that only running it would tell
    if any(isinstance(s, ast.ImportFrom) and s.names[0].name == "*" for s in module.body):
        return None
    raise LookupError(f"{module.name}.{name}")


def _absolute(module: Module, statement: ast.ImportFrom) -> str:
    if statement.level == 0:
        return statement.module or ""
    package = module.name.split(".")
    up = statement.level - (1 if module.is_package else 0)
    base = package[: len(package) - up]
    return ".".join([*base, *([statement.module] if statement.module else [])])


def resolution_order(module: Module, node: ast.ClassDef) -> list[Definition | None]:
    """Order in which Python looks for a method: the class, then its bases by C3 linearisation.

    Returns:
        Definitions of classes; the list ends with None where a base cannot be read.
    """
    known: dict[tuple[str, str], Definition] = {}
    return [known.get(key) for key in _linear(module, node, known)]


_Key = tuple[str, str]
_UNKNOWN: _Key = ("", "")


def _linear(module: Module, node: ast.ClassDef, known: dict[_Key, Definition]) -> list[_Key]:
    key = module.name, node.name
    known[key] = module, node
    orders: list[list[_Key]] = []
    for base in node.bases:
        found = None
        if isinstance(base, ast.Name):
            if base.id == "object":
                continue
            try:
                found = find_in(module, base.id)
            except LookupError:
                found = None
        if found is not None and isinstance(found[1], ast.ClassDef):
            orders.append(_linear(found[0], found[1], known))
        else:
            orders.append([_UNKNOWN])
    return [key, *_merged([*orders, [order[0] for order in orders]])]


def _merged(orders: list[list[_Key]]) -> list[_Key]:
    merged: list[_Key] = []
    while orders := [order for order in orders if order]:
        heads = [order[0] for order in orders if not any(order[0] in o[1:] for o in orders)]
        if not heads or heads[0] == _UNKNOWN:
            # What an unknown base's own bases are, nobody can say.
            return [*merged, _UNKNOWN]
        merged.append(heads[0])
        orders = [order[1:] if order[0] == heads[0] else order for order in orders]
    return merged


def extra_for(package: str) -> str | None:
    """Name the extra of arcloop that installs a package which is missing; None if there is none.

    Args:
        package: Top-level name that would be imported.
    """
    if importlib.util.find_spec(package) is not None:
        return None
    try:
        requirements = importlib.metadata.requires("arcloop") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", requirement)
        if name and extra and re.sub(r"[-.]", "_", name[0]) == package and extra[1] != "dev":
            return extra[1]
    return None
