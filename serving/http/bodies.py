"""What all JSON bodies share: null is as good as left out, OpenAI's fields that change nothing, the words of errors."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, PrivateAttr, model_validator

from kauli.models.errors import nearest
from kauli.serving.events import Failed, Refused

NO_EFFECT = (
    "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "reasoning_effort", "safety_identifier", "service_tier", "store", "user", "verbosity",
)  # fmt: skip
"""Fields of OpenAI's that may have any value: no answer depends on them, and nothing is stored."""
NOT_SERVED: Mapping[str, tuple[Any, ...]] = {
    "audio": (), "function_call": ("none", "auto"), "functions": ([],), "modalities": (["text"],), "moderation": (),
    "response_format": ({"type": "text"},), "suffix": ("",), "tool_choice": ("none", "auto"), "tools": ([],),
    "web_search_options": (),
}  # fmt: skip
"""Fields of OpenAI's for what is not served, and the values that ask for nothing."""
_PYTHON_S = "valid dictionary or object to extract fields from"
_INNER = re.compile(r"(content\.\d+)\.\w+|\.\[key\]$")


class ApiError(Refused):
    """A request that the HTTP side itself refuses, before a worker has it."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(Failed(status, message, code, param))


def check_limits(*limits: tuple[str, int, str, int]) -> None:
    """Raise ApiError for the first (param, value, setting, its value) that is over its setting."""
    for param, value, setting, most in limits:
        if value > most:
            what = f"{param} has {value} entries" if setting in _COUNTS else f"{param} is {value}"
            text = f"{what}; this service allows {most} (setting {setting})"
            raise ApiError(400, text, "value_too_large", param)


_COUNTS = {"max_messages", "max_prompts", "max_inputs", "max_stops", "max_classes", "max_logit_biases"}
"""The settings that limit the entries of a list, and not a number."""


def invalid_body(errors: Sequence[Any], known: Iterable[str] = ()) -> ApiError:
    """The error that pydantic's `errors` of a body stand for; `known` are the fields that it may have."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}", "invalid_json")
    if not place and first["type"] == "missing":
        return ApiError(400, "the body is empty: send a JSON object", "invalid_json")
    # A part of a message has its type in its place, too
    param = _INNER.sub(r"\1", ".".join(place)) or None
    if first["type"] == "extra_forbidden" and len(place) == 1:
        return unknown_field(place[0], known)
    message = first["msg"].removeprefix("Value error, ").replace(_PYTHON_S, "JSON object")
    if message == first["msg"] and isinstance(given := first.get("input"), str | int | float) and len(str(given)) < 80:
        message += f" (got {given!r})"
    if first["type"] == "missing":
        message = "this field is missing"
    return ApiError(400, f"{param}: {message}" if param else message, "invalid_value", param)


def unknown_field(name: str, known: Iterable[str]) -> ApiError:
    """The error of a field that the endpoint doesn't have; `known` are those that it has."""
    return ApiError(400, f"unknown field '{name}'.{nearest(name, known, 0.68)}", "unknown_field", name)


class Body(BaseModel):
    """A body, or a part of one: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


class Lenient(BaseModel):
    """A part of a body whose unknown fields are ignored: clients send back what other services answered."""

    model_config = ConfigDict(extra="allow")

    def ignored(self, place: str) -> Iterator[str]:
        """The fields that are not read, by their places, without those that are empty."""
        for name, value in (self.model_extra or {}).items():
            if value not in (None, "", [], {}):
                yield f"{place}.{name}"


class JsonBody(Body):
    """A whole body. What its class doesn't read is taken where it changes nothing, and else refused by its name."""

    no_effect: ClassVar[Collection[str]] = ("user",)
    not_served: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    _ignored: list[str] = PrivateAttr(default_factory=list)

    def ignored(self) -> Iterator[str]:
        """The fields that were sent and change nothing."""
        yield from self._ignored

    @model_validator(mode="wrap")
    @classmethod
    def _without_what_changes_nothing(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, bytes):  # FastAPI parses nothing else
            text = "the body is not marked as JSON: send it with the header Content-Type: application/json"
            raise ApiError(415, text, "unsupported_media_type")
        if not isinstance(data, dict):
            raise ApiError(400, "the body must be a JSON object", "invalid_value")
        check_unicode(data)
        read: dict[str, Any] = {}
        ignored: list[str] = []
        for name, value in data.items():
            if value is None:
                continue
            if name in cls.model_fields:
                read[name] = value
            elif name in cls.no_effect:
                ignored.append(name)
            elif name not in cls.not_served:
                raise unknown_field(name, (*cls.model_fields, *cls.no_effect))
            elif value not in cls.not_served[name]:
                raise _unserved(name, value, cls.not_served[name])
        body = handler(read)
        body._ignored = ignored
        return body


def ignored_header(body: JsonBody) -> dict[str, str]:
    """A header that names what was sent and changes nothing; empty where there is no such field."""
    names = [name.encode("ascii", "replace").decode() for name in body.ignored()]
    if not names:
        return {}
    shown, more = names[:16], len(names) - 16
    text = ", ".join(re.sub(r"[^\w.-]", "?", name[:80], flags=re.ASCII) for name in shown)
    return {"X-Kauli-Ignored": f"{text}, and {more} more" if more > 0 else text}


def _unserved(name: str, value: Any, harmless: Sequence[Any]) -> ApiError:
    kind = value.get("type", "") if isinstance(value, dict) else value
    shown = f" {kind}" if isinstance(kind, str) and 0 < len(kind) <= 40 else ""
    verb = "are" if name.endswith("s") else "is"
    instead = f", or send {str(harmless[0]).replace(chr(39), chr(34))}" if harmless and harmless[0] != "" else ""
    return ApiError(400, f"{name}{shown} {verb} not served: leave it out{instead}", "unsupported_parameter", name)


def check_unicode(data: Any) -> None:
    """Raise ApiError for a text that is half a surrogate pair somewhere: JSON can write it, no encoding can."""
    waiting: list[tuple[Any, Any]] = [((), data)]  # (place of its parent, its name), and the value
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [((place, name), one) for name, one in value.items()]
            value = "".join(value)
        elif isinstance(value, list):
            waiting += [((place, number), one) for number, one in enumerate(value)]
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                names: list[str] = []
                while place:  # joined here alone: a long name before many entries would take gigabytes
                    place, name = place
                    names.insert(0, str(name))
                param = ".".join(names).encode("ascii", "replace").decode() or None
                text = "half a surrogate pair (\\ud800 to \\udfff) is no character: the text was cut within one"
                raise ApiError(400, f"{param or 'a name'}: {text}", "invalid_unicode", param) from None
