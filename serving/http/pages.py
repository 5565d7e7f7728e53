"""The service's own pages; they load nothing from other sites, so they work offline."""

import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

_SHARED = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
HEADERS = {
    # No script, no style but the page's own, no requests, no framing.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    **_SHARED,
}
"""Of the page at /docs."""
_PLAYGROUND = {
    # Scripts and styles are files of the service; with trusted types no script can turn a text into HTML.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
        "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Permissions-Policy": "microphone=(self), camera=(self), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Kept by the browser, but asked for again with its tag: after an upgrade no old script meets a new one.
    "Cache-Control": "no-cache",
    **_SHARED,
}
_MEDIA_TYPES = {
    ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".json": "application/json",
    ".svg": "image/svg+xml",
}  # fmt: skip
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "code,td:first-child{font-family:ui-monospace,monospace;font-size:.9em}"
    "table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}"
    "td,th{border-bottom:1px solid #ddd;padding:.25rem .5rem;text-align:left;vertical-align:top}"
    "h2{margin-top:2rem}.verb{background:#eef;border-radius:.2rem;padding:0 .4rem;margin-right:.5rem}"
)


@dataclass(frozen=True)
class PlaygroundFile:
    """A file of the page at `/`, as it is sent."""

    content: bytes
    media_type: str
    tag: str
    """Its ETag, made of the content."""

    @property
    def headers(self) -> dict[str, str]:
        """Those of the answer, also where the browser has the file."""
        return {**_PLAYGROUND, "ETag": self.tag}


@cache
def playground() -> dict[str, PlaygroundFile]:
    """Path -> file of the playground: its page at `/`, the others below `/playground/`."""
    found = {}
    for file in files("kauli.serving.http").joinpath("playground").iterdir():
        suffix = f".{file.name.rpartition('.')[2]}"
        if suffix not in _MEDIA_TYPES:  # an editor's or a file manager's own
            continue
        content = file.read_bytes()
        path = "/" if file.name == "index.html" else f"/playground/{file.name}"
        found[path] = PlaygroundFile(content, _MEDIA_TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


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
