"""Makes the JSON Schema of a document from the classes of its data.

The annotations are read as text, since they are written for later Pythons than the oldest.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
from typing import Any, Sequence

from jetson_mamba.report import envelope
from jetson_mamba.report.keys import CLOSED, ENVELOPE, MEANINGS
from jetson_mamba.report.machine import Machine

PLAIN = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "None": "null"}
# Fields that hold what is spread into the document, or are for this package's own use.
NOT_SHOWN = frozenset(("facts", "asks"))


def schema(command: str, *classes: type) -> dict[str, Any]:
    """The schema of what a command prints: the fields of classes, in the envelope of all."""
    definitions: dict[str, Any] = {}
    properties: dict[str, Any] = {
        "schema": {"const": envelope.name(command)},
        "version": {"type": "string"},
        "machine": _named(Machine, definitions),
    }
    for name, meaning in ENVELOPE.items():
        properties.setdefault(name, {"type": "string"})["description"] = meaning
    begin = ["schema", "version", "machine"]
    error = {name: properties[name] for name in (*begin, "error")}
    del properties["error"]
    for each in classes:
        properties.update(
            (name, value)
            for name, value in _properties(each, definitions).items()
            if name not in begin
        )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"jetson-mamba {command} --json",
        "$defs": definitions,
        "oneOf": [_object(properties), _object(error)],
    }


def table(*classes: type) -> list[tuple[str, str, str]]:
    """The keys of a document for a page: where each is, such as ``rows[].dtype``, kind, meaning."""
    rows: list[tuple[str, str, str]] = []
    definitions: dict[str, Any] = {}

    def walk(properties: dict[str, Any], before: str) -> None:
        for name, value in properties.items():
            rows.append((before + name, _kind(value), value.get("description", "")))
            inner, nested = value, before + name
            if inner.get("type") == "array":
                inner, nested = inner["items"], nested + "[]"
            for each in inner.get("anyOf", [inner]):
                reference = each.get("$ref", "").rpartition("/")[2]
                if reference:
                    walk(definitions[reference]["properties"], nested + ".")

    for each in classes:
        walk(_properties(each, definitions), "")
    return rows


def _kind(value: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(_kind(each) for each in value["anyOf"])
    if value.get("type") == "array":
        return f"array of {_kind(value['items'])}"
    return "object" if "$ref" in value else str(value.get("type", "any"))


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(properties),
        "additionalProperties": False,
        "properties": properties,
    }


def _properties(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """The fields of a data class, those inherited too."""
    found = {}
    for field in dataclasses.fields(kind):
        if field.name in NOT_SHOWN:
            continue
        # The text of the annotation, as everywhere in this room.
        value = _of(ast.parse(str(field.type), mode="eval").body, kind, definitions)
        values = CLOSED.get(f"{kind.__name__}.{field.name}")
        if values:
            value = {"enum": list(values)}
        value["description"] = MEANINGS[kind.__name__][field.name]
        found[field.name] = value
    return found


def _named(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """A reference to a data class, which is defined where it is met first."""
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}
        definitions[kind.__name__] = _object(_properties(kind, definitions))
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _of(node: ast.expr, kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of an annotation in a class."""
    if isinstance(node, ast.BinOp):
        return {"anyOf": [_of(each, kind, definitions) for each in (node.left, node.right)]}
    if isinstance(node, ast.Constant):  # None
        return {"type": PLAIN[str(node.value)]}
    if isinstance(node, ast.Name) and node.id in PLAIN:
        return {"type": PLAIN[node.id]}
    if isinstance(node, ast.Subscript):
        inside: Any = getattr(node.slice, "value", node.slice)  # an Index, to Python 3.8
        elements: Sequence[Any] = inside.elts
        container = getattr(node.value, "id", "")
        if container == "dict":
            return {
                "type": "object",
                "additionalProperties": _of(elements[1], kind, definitions),
            }
        return {"type": "array", "items": _of(elements[0], kind, definitions)}
    expression = compile(ast.Expression(body=node), "an annotation", "eval")
    return _named(eval(expression, vars(sys.modules[kind.__module__])), definitions)
