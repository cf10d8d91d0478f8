"""JSON schemas of the files of conf/, with which editors complete and check them.

The schemas are made from `arcloop.config.descriptions` for the files of arcloop, of plug-ins and of
the project of the user, so that they have the project's own groups, choices and classes. Editors
with yaml-language-server read them, for example VS Code with the extension YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcloop.config.descriptions import (
    Key,
    arguments_of,
    cached_keys,
    keys_of_config,
    section_settings,
)
from arcloop.config.docstrings import summary_of
from arcloop.config.files import choices_of, config_groups
from arcloop.config.targets import RESERVED
from arcloop.config.value_types import type_schema
from arcloop.config.yaml_files import GLOBAL, read_choice

_DIALECT = "http://json-schema.org/draft-07/schema#"
_REFERENCE = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}
"""A value that is computed from others, or must be set by the command."""
Schema = dict[str, Any]
_NODE: Schema = {"type": "object", "required": ["_target_"]}
"""An object of a class, such as a callback of the user."""


def all_schemas() -> dict[str, Schema]:
    """Return the schemas by name: "config" for config.yaml, and one for the files of each group."""
    sections = _sections()
    schemas = {"config": _whole("conf/config.yaml", "", sections)}
    for group in config_groups():
        if _is_global(group):
            schemas[group] = _whole(f"conf/{group}/*.yaml", group, sections)
        else:
            schemas[group] = _of_group(group)
    return schemas


def _is_global(group: str) -> bool:
    return group == "experiment" or all(
        read_choice(group, choice).package == GLOBAL for choice in choices_of(group)
    )


def _whole(title: str, group: str, sections: Mapping[str, Schema]) -> Schema:
    """Return the schema of a file whose keys are those of the whole config."""
    properties = dict(sections)
    if group and group in properties:  # a sweep or launcher can have keys of its own
        properties[group] = {**properties[group], "additionalProperties": True}
    properties |= {"defaults": _defaults(group), "hydra": {}}
    return {
        "$schema": _DIALECT, "title": title, "type": "object",
        "properties": properties, "additionalProperties": False,
    }  # fmt: skip


def _sections() -> dict[str, Schema]:
    """Return the schema of each top-level key of the config."""
    keys = keys_of_config()
    sections = {
        key.name: _section(key, keys) if key.is_section else _leaf(key)
        for key in keys if "." not in key.name
    }  # fmt: skip
    for group in config_groups():
        if "/" not in group and group != "experiment":
            found = [_keys_below(group, keys)] if group in sections else []
            found += [_keys_below(group, cached_keys(group, c)) for c in choices_of(group)]
            merged = _union(found)
            if not any("_target_" in read_choice(group, c).node for c in choices_of(group)):
                merged["additionalProperties"] = _NODE
            if settings := section_settings(group):
                merged["properties"] = {**_properties(settings), **merged["properties"]}
            sections[group] = _nullable(merged)
    return sections


def _of_group(group: str) -> Schema:
    """Return the schema of the files of a group.

    The keys of a file with a `_target_` are those of its class. A file without one, which has the
    class of another choice, has those of all choices.
    """
    package = group.replace("/", ".")
    choices = {choice: cached_keys(group, choice) for choice in choices_of(group)}
    union = _union([_keys_below(package, keys) for keys in choices.values()])
    if settings := section_settings(group):
        union["properties"] = {**_properties(settings), **union["properties"]}
    if not section_settings(group):
        union["additionalProperties"] = _NODE
    targets = {str(read_choice(group, c).node.get("_target_", "")): c for c in choices}
    shared = {"defaults": _defaults(group)}
    own: dict[str, Schema] = {name: {} for name in RESERVED}
    cases: list[Schema] = []
    for target, choice in sorted(targets.items()):
        if target:
            exact = _keys_below(package, choices[choice])
            exact["properties"] |= {**_properties(target), **own, **shared}
            if arguments_of(target)[1]:
                exact["additionalProperties"] = True
            cases.append({
                "if": {"properties": {"_target_": {"const": target}}, "required": ["_target_"]},
                "then": {k: v for k, v in exact.items() if k != "type"},
            })  # fmt: skip
    union["properties"] |= {**own, **shared}
    if cases:
        union["additionalProperties"] = False
        known = {"if": {"not": {"required": ["_target_"]}}, "then": union}
        names = sorted(target for target in targets if target)
        listed = [{"const": name, "description": summary_of(name)} for name in names]
        named: Schema = {"anyOf": [*listed, {"type": "string"}], "description": "Its class"}
        union["properties"]["_target_"] = named
        merged: Schema = {"properties": {**union["properties"]}, "allOf": [known, *cases]}
        # Names alone: yaml-language-server completes them, and the cases check the values.
        merged["properties"] = {
            name: {"description": schema["description"]} if "description" in schema else {}
            for name, schema in merged["properties"].items()
        } | {"_target_": named}
    else:
        merged = {k: v for k, v in union.items() if k != "type"}
    return {"$schema": _DIALECT, "title": f"conf/{group}/*.yaml",
            "type": ["object", "null"], **merged}  # fmt: skip


def _keys_below(prefix: str, keys: list[Key]) -> Schema:
    """Return the schema of a mapping whose keys are those one level below a prefix."""
    properties: dict[str, Schema] = {}
    for key in keys:
        above, _, name = key.name.rpartition(".")
        if above == prefix and key.is_known:
            properties[name] = _section(key, keys) if key.is_section else _leaf(key)
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _section(key: Key, keys: list[Key]) -> Schema:
    schema = _keys_below(key.name, keys)
    if key.is_open:
        schema["additionalProperties"] = True
    schema["properties"] |= {name: {} for name in RESERVED} if "_target_" in key.default else {}
    described = {"description": key.description} if key.description else {}
    return {**_nullable(schema), **described}


def _nullable(schema: Schema) -> Schema:
    return {**schema, "type": ["object", "null", "string"]}  # a string is an interpolation


def _leaf(key: Key) -> Schema:
    return _value(key.schema, key.description, key.unit)


def _value(schema: Mapping[str, Any], description: str, unit: str = "") -> Schema:
    """Return the schema of a value, which may also be an interpolation."""
    text = f"{description} [{unit}]" if unit and unit not in description else description
    found: Schema = {"anyOf": [dict(schema), _REFERENCE]} if schema else {}
    return {**found, **({"description": text} if text else {})}


def _properties(target: str) -> dict[str, Schema]:
    """Return the schemas of the values that a class takes."""
    return {
        name: _value(type_schema(argument.annotation), argument.description)
        for name, argument in arguments_of(target)[0].items()
    }


def _union(schemas: list[Schema]) -> Schema:
    """Return a schema with the keys of all schemas; a key has any of their values."""
    found: dict[str, list[Schema]] = {}
    for schema in schemas:
        for name, one in schema["properties"].items():
            if one not in found.setdefault(name, []):
                found[name].append(one)
    properties = {
        name: ones[0] if len(ones) == 1 else {
            **{k: v for k, v in ones[0].items() if k == "description"},
            **({"anyOf": ones} if all(len(o.keys() - {"description"}) for o in ones) else {}),
        }
        for name, ones in found.items()
    }  # fmt: skip
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _defaults(group: str) -> Schema:
    """Return the schema of a defaults list."""
    names = sorted(choices_of(group)) if group else ["schema"]
    choice = _choice if not group or _is_global(group) else lambda _: {}
    overrides = {f"override /{name}": choice(name) for name in config_groups()}
    if not group:
        overrides |= {name: choice(name) for name in config_groups()}
    items: list[Schema] = [{"enum": ["_self_", *names]}, {
        "type": "object", "properties": overrides, "minProperties": 1, "maxProperties": 1,
        "patternProperties": {r"^(override )?/?hydra/|^optional |@": {}},
        "additionalProperties": False,
    }]  # fmt: skip
    return {
        "type": ["array", "null"],
        "items": {"anyOf": items},
        "description": "Choices that the file starts from, and choices of groups that it makes",
    }


def _choice(group: str) -> Schema:
    names = {"enum": sorted(choices_of(group))}
    several = {"type": "array", "items": names}
    return {"anyOf": [names, {"type": "null"}, several, _REFERENCE]}
