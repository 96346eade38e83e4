"""A small closed checker of JSON documents: strict parsing, and just the schema keywords that bundle.schema.json uses.

A schema that uses anything else is an error, so a rule cannot be written down and silently not be checked.
"""
import json
import math
import re

from .errors import BundleError

KEYWORDS = {"$defs", "$ref", "type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems", "enum", "minimum",
            "maximum", "pattern", "anyOf"}
MAX_DEPTH = 16
_TYPES = {"boolean": bool, "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
_MARKS = re.compile(r'\\.|["\[\]{}]', re.S)      # one at a time: a pattern of whole strings takes a hundred bytes for each of theirs


def parse_json(data: bytes, what: str) -> object:
    """The document in `data`. `what` names it in errors.

    Raises: BundleError for bytes that are not UTF-8, JSON that is malformed or deeper than MAX_DEPTH, a key given twice, NaN or infinity.
    """
    try:
        text = bytes(data).decode("utf-8")
        depth, inside = 0, False
        for found in _MARKS.finditer(text):
            if found[0] == '"':
                inside = not inside
            elif not inside:
                depth += (found[0] in "[{") - (found[0] in "]}")
            if depth > MAX_DEPTH:
                raise BundleError(f"{what} nests deeper than {MAX_DEPTH} levels; it is flat by design. Export the bundle again.")
        return json.loads(text, object_pairs_hook=lambda pairs: _no_duplicates(pairs, what), parse_constant=lambda name: _finite(name, what),
                          parse_float=lambda digits: _finite(digits, what))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{what} is not JSON: {error}. Export the bundle again.") from error


def _no_duplicates(pairs, what):
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BundleError(f"{what} has the key {twice!r} twice; readers would disagree on which counts. Export the bundle again.")
    return found


def _finite(digits, what):
    number = float(digits)
    if not math.isfinite(number):
        raise BundleError(f"{what} holds the number {digits}; numbers are finite. Export the bundle again.")
    return number


def check(value, schema: dict, path: str, definitions: dict | None = None) -> None:
    """Compare a document with a schema. Raises BundleError that starts with the place in the document, as `manifest.geometry.width`."""
    definitions = schema.get("$defs", {}) if definitions is None else definitions
    unknown = set(schema) - KEYWORDS
    if unknown:
        raise _wrong(f"{path}: the schema uses {', '.join(sorted(unknown))}, which this checker does not know")
    if "$ref" in schema:
        return check(value, definitions[schema["$ref"]], path, definitions)
    if "anyOf" in schema:
        return _check_any(value, schema["anyOf"], path, definitions)
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or isinstance(value, bool) != (kind == "boolean")):
        raise _wrong(f"{path} is {_short(value)}; a value of type {kind} is needed")
    if "enum" in schema and (isinstance(value, bool) or value not in schema["enum"]):
        raise _wrong(f"{path} is {_short(value)}; known are {', '.join(map(repr, schema['enum']))}")
    if isinstance(value, str):
        if not value.isprintable() and re.search(r"[\ud800-\udfff]", value):
            raise _wrong(f"{path} holds half a surrogate pair, which is no text")
        if "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), value):     # Python's $ lets a last newline pass
            raise _wrong(f"{path} is {_short(value)}; it must match {schema['pattern']}")
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise _wrong(f"{path} is {value}; numbers are finite")
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            raise _wrong(f"{path} is {_short(value)}; it must lie in {schema.get('minimum', '')}..{schema.get('maximum', '')}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            raise _wrong(f"{path} has {len(value)} entries; needed are {schema.get('minItems', 0)}..{schema.get('maxItems', '')}")
        for index, entry in enumerate(value):
            check(entry, schema.get("items", {}), f"{path}[{index}]", definitions)
    if isinstance(value, dict):
        _check_object(value, schema, path, definitions)


def _check_any(value, branches, path, definitions):
    """The first branch of the value's own type decides, so that the error names the place inside it."""
    resolved = [definitions[b["$ref"]] if "$ref" in b else b for b in branches]
    for branch in resolved:
        if isinstance(value, _TYPES[branch["type"]]) and not isinstance(value, bool):
            return check(value, branch, path, definitions)
    raise _wrong(f"{path} is {_short(value)}; a value of type {' or '.join(b['type'] for b in resolved)} is needed")


def _check_object(value, schema, path, definitions):
    for name in schema.get("required", ()):
        if name not in value:
            raise _wrong(f"{path}.{name} is missing")
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", False)
    for name, entry in value.items():
        inner = properties.get(name, others)
        if inner is False:
            raise _wrong(f"{path}.{_short(name)[1:-1]} is unknown; known here are {', '.join(properties)}")
        check(entry, inner, f"{path}.{_short(name)[1:-1]}", definitions)


def _wrong(text: str) -> BundleError:
    return BundleError(f"{text}. Export the bundle again, with this version of ps3_sdk.")


def _short(value) -> str:
    text = ascii(value) if not isinstance(value, (dict, list)) else f"a {'JSON object' if isinstance(value, dict) else 'list'} of {len(value)}"
    return text if len(text) <= 60 else text[:57] + "..."
