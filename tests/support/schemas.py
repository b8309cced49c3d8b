"""Fifty JSON Schemas of the kinds that programs ask for, each bounded so that some hundred tokens always suffice."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def text(most: int = 20, **more: Any) -> Schema:
    return {"type": "string", "maxLength": most, **more}


def whole(low: int = 0, high: int = 1000) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def record(required: bool = True, **properties: Schema) -> Schema:
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": list(properties)} if required else schema


def items(of: Schema, least: int = 0, most: int = 4) -> Schema:
    return {"type": "array", "items": of, "minItems": least, "maxItems": most}


COLOUR = {"enum": ["red", "green", "blue"]}
PERSON = record(name=text(12), age=whole(0, 120))
POINT = {"$ref": "#/$defs/point"}
DEFINITIONS = {"point": record(x=whole(0, 99), y=whole(0, 99))}

SCHEMAS: dict[str, Schema] = {
    # Single values
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "text": text(),
    "text-of-a-length": text(12, minLength=8),
    "empty-text": text(0),
    "digits": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
    "word": {"type": "string", "pattern": "^[a-z]{3,8}$"},
    "alternatives": {"type": "string", "pattern": "^(cat|dog|bird)$"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time", "maxLength": 20},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "whole": whole(),
    "negative": whole(-50, -10),
    "exclusive": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    "fraction": {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.01},
    "enum": COLOUR,
    "mixed-enum": {"enum": [1, "two", None, False, [3], {"four": 4}]},
    "constant": {"const": {"version": 1, "kind": "x"}},
    "several-types": {"type": ["boolean", "null"]},
    "unicode-enum": {"enum": ["é", "日本", "🙂"]},
    "escapes": {"enum": ['say "hi"', "back\\slash", "new\nline"]},
    # Objects
    "person": PERSON,
    "optional": record(required=False, a=whole(), b={"type": "boolean"}, c=COLOUR),
    "nothing": record(),
    "nested": record(owner=PERSON, place=record(city=text(10), zip={"type": "string", "pattern": "^[0-9]{5}$"})),
    "deep": record(a=record(b=record(c=record(d=record(e={"type": "boolean"}))))),
    "odd-names": record(**{"with space": whole(), 'quo"te': whole(), "ünïcode": whole()}),
    "reference": {**record(from_=POINT, to=POINT), "$defs": DEFINITIONS},
    "closed-reference": {"$ref": "#/$defs/person", "$defs": {"person": PERSON}},
    "some-required": {**record(required=False, a=whole(), b=whole(), c=whole()), "required": ["b"]},
    "all-of": {"allOf": [{"type": "object", "properties": {"a": whole()}, "required": ["a"]}, record(a=whole(5, 9))]},
    "constant-kind": record(kind={"const": "circle"}, radius=whole(1, 9)),
    "pattern-map": {"type": "object", "patternProperties": {"^[a-z]{1,6}$": whole()}, "additionalProperties": False},
    "flags": record(**{f"flag_{number}": {"type": "boolean"} for number in range(8)}),
    # Choices
    "any-of": {"anyOf": [whole(), {"type": "boolean"}]},
    "any-of-objects": {"anyOf": [record(a=whole()), record(b=text(8))]},
    "nullable": record(note={"anyOf": [text(10), {"type": "null"}]}),
    "union": {
        "anyOf": [record(kind={"const": "cat"}, lives=whole(1, 9)), record(kind={"const": "dog"}, age=whole(0, 20))]
    },
    # Arrays
    "list": items(whole()),
    "just-three": items(COLOUR, 3, 3),
    "empty-list": items(whole(), 0, 0),
    "people": items(PERSON, 1, 2),
    "matrix": items(items(whole(0, 9), 2, 2), 2, 2),
    "tuple": {"type": "array", "prefixItems": [whole(), {"type": "boolean"}, COLOUR], "items": False, "minItems": 3},
    "mixed-list": items({"anyOf": [whole(), {"type": "null"}]}, 1, 3),
    # As programs use them
    "tool-call": record(tool={"enum": ["search", "open"]}, arguments=record(query=text(16), limit=whole(1, 10))),
    "verdict": record(reason=text(40), verdict={"enum": ["yes", "no", "unsure"]}, confidence=whole(0, 100)),
    "order": record(
        id=whole(), lines=items(record(sku={"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"}, n=whole(1, 9)), 1, 3)
    ),
}
