"""The messages of a conversation, by OpenAI's names and shapes: text, images and audio."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kauli.models.languages import nfc
from kauli.models.requests import MARK, Message
from kauli.serving.http.bodies import Lenient


class TextPart(Lenient):
    """A piece of text in a message's content."""

    type: Literal["text"]
    text: str


class RefusalPart(Lenient):
    """A refusal that another service answered."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """What the assistant said."""
        return self.refusal


class ImageUrl(Lenient):
    """An image as a data: URI; remote addresses are not fetched."""

    url: str
    detail: str | None = None
    """Changes nothing: the encoder has one resolution."""


class ImagePart(Lenient):
    """An image in a message's content."""

    type: Literal["image_url"]
    image_url: ImageUrl

    @field_validator("image_url", mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class InputAudio(Lenient):
    """Audio: the base64 of a whole file, and its format."""

    data: str
    format: str | None = None
    """Changes nothing: the bytes say what it is."""


class AudioPart(Lenient):
    """Audio in a message's content."""

    type: Literal["input_audio"]
    input_audio: InputAudio


ContentPart = Annotated[TextPart | RefusalPart | ImagePart | AudioPart, Field(discriminator="type")]


@dataclass(frozen=True)
class MediaInput:
    """An image or an audio clip of a request; `kind` is the worker that encodes it."""

    kind: str
    data: str
    """Of an image its data: URI, of audio the base64 of the file."""
    param: str
    """Its place in the request, for errors."""


class ChatMessage(Lenient):
    """One turn of the conversation. Tools are not served, and a history with the calls of some is read as text."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: list[ContentPart] = Field(default=[], validate_default=True)
    name: str | None = None
    refusal: str | None = None
    """What an assistant said in the place of the content."""

    @field_validator("content", mode="before", json_schema_input_type=str | list[ContentPart] | None)
    @classmethod
    def _parts(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [{"type": "text", "text": value}]
        if value is not None and not isinstance(value, list):
            raise ValueError('give a text, or a list of parts such as {"type": "text", "text": "..."}')
        for part in value or ():
            kind = part.get("type") if isinstance(part, dict) else part
            if kind not in ("text", "refusal", "image_url", "input_audio"):
                text = f"content part {str(kind)[:40]!r} is not served: text, image_url and input_audio are"
                raise ValueError(text)
        return value or []

    @model_validator(mode="after")
    def _fitting_its_role(self) -> "ChatMessage":
        if not self.content and self.role not in ("assistant", "function"):
            raise ValueError("content is missing: give a text or parts (an assistant's alone may be null)")
        if self.role != "user" and self.media_parts():
            text = f"images and audio must be in a user's message, not in one of the role '{self.role}'"
            raise ValueError(text)
        return self

    def ignored(self, place: str) -> Iterator[str]:
        """The fields that are not read, of the parts as well."""
        yield from super().ignored(place)
        for number, part in enumerate(self.content):
            yield from part.ignored(f"{place}.content.{number}")

    def media_parts(self) -> list[tuple[int, ImagePart | AudioPart]]:
        """The images and audio clips with their places in the content."""
        found = enumerate(self.content)
        return [(place, part) for place, part in found if isinstance(part, ImagePart | AudioPart)]

    def text(self) -> str:
        """The content as one string in NFC, with `MARK` in the place of media; adjacent texts are lines."""
        out, line = "", False
        for part in self.content:
            if isinstance(part, TextPart | RefusalPart):
                out, line = out + "\n" * line + part.text.replace(MARK, ""), True
            else:
                out, line = out + MARK, False
        return nfc(out if self.content else (self.refusal or "").replace(MARK, ""))


def conversation(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The messages as a chat template takes them: no base of ours has turns for tools, so what they answered is the
    user's, together with what the user says beside it.
    """
    roles = {"developer": "system", "tool": "user", "function": "user"}
    found: list[Message] = []
    joins = False
    for one in messages:
        role = roles.get(one.role, one.role)
        tool = one.role in ("tool", "function")
        if role == "user" and found and found[-1].role == "user" and (tool or joins):
            found[-1] = Message(role, f"{found[-1].content}\n{one.text()}")
        else:
            found.append(Message(role, one.text()))
        joins = tool
    return tuple(found)
