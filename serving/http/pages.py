"""The service's own pages; they load nothing from other sites, so they work offline."""

import html
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

HEADERS = {
    # No script or style but the page's own, no requests to anywhere else, no framing.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        "media-src blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "code,td:first-child{font-family:ui-monospace,monospace;font-size:.9em}"
    "table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}"
    "td,th{border-bottom:1px solid #ddd;padding:.25rem .5rem;text-align:left;vertical-align:top}"
    "h2{margin-top:2rem}.verb{background:#eef;border-radius:.2rem;padding:0 .4rem;margin-right:.5rem}"
)


def home() -> str:
    """The page at `/`: send a prompt to a model, and see the answer as it is streamed."""
    return files("kauli.serving.http").joinpath("home.html").read_text("utf-8")


def docs(schema: Mapping[str, Any]) -> str:
    """The page at `/docs`: every path of an OpenAPI schema with its fields."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Kauli: API</title><style>{_STYLE}</style>"
        "<h1>Kauli: API</h1><p>The shapes are OpenAI's; the schema for machines is at "
        "<a href=/openapi.json>/openapi.json</a>.</p>"
    ]
    for path, verbs in schema["paths"].items():
        for verb, operation in verbs.items():
            parts.append(f"<h2><span class=verb>{verb.upper()}</span><code>{html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation.get('description', ''))}</p>")
            for kind in operation.get("requestBody", {}).get("content", {}).values():
                parts.append(_fields(_resolved(kind["schema"], schema), schema))
    return "".join(parts)


def _fields(body: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    required = set(body.get("required", ()))
    rows = []
    for name, field in body.get("properties", {}).items():
        note = "required" if name in required else f"default {field['default']!r}" if field.get("default") else ""
        rows.append(f"<tr><td>{html.escape(name)}<td>{html.escape(_kind(field, schema))}<td>{html.escape(note)}")
    return "<table><tr><th>field<th>value<th></tr>" + "</tr>".join(rows) + "</table>"


def _kind(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """A field's value in words."""
    field = _resolved(field, schema)
    if choices := field.get("anyOf", field.get("oneOf")):
        return " or ".join(_kind(one, schema) for one in choices if one.get("type") != "null") or "null"
    if "enum" in field or "const" in field:
        return ", ".join(repr(value) for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_kind(field['items'], schema)}"
    if field.get("type") == "object" and field.get("properties"):
        inner = ", ".join(f"{name}: {_kind(one, schema)}" for name, one in field["properties"].items())
        return "{" + inner + "}"
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    limits = [f"{word} {field[key]:g}" for key, word in words.items() if key in field]
    return " ".join([str(field.get("type", "anything")), *limits])


def _resolved(field: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = field.get("$ref")
    if not reference:
        return field
    found = schema
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found
