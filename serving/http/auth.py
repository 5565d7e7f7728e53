"""Who may ask: the Host and Origin rule on loopback, API keys, and the limit of a body's size, as ASGI middleware."""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from kauli.serving.http.schemas import ApiError
from kauli.serving.settings import ServeArgs, hash_key, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/health", "/"})
"""Paths that need no key."""
PICTURE_PATHS = frozenset({"/v1/chat/completions", "/v1/embeddings", "/v1/classify"})
"""Paths whose bodies may hold pictures; the limit of other bodies is then that of their texts."""
AUDIO_PATHS = frozenset({"/v1/chat/completions", "/v1/audio/transcriptions"})
"""Paths whose bodies may hold recordings, where the service hears."""
ADMIN_PATHS = "/v1/adapters"
"""Begin paths whose changes need an admin's key, where there are keys."""


class Access:
    """Refuses a request before the application sees it.

    Bound to loopback, the `Host` must be this machine, or any web page could reach the service through a name of its
    own that resolves to 127.0.0.1; and a POST with an `Origin` of another site is a web page's, not a program's.
    With keys, every path but `OPEN_PATHS` needs one, and what changes the service needs an admin's. `hears` says
    whether the service takes recordings.
    """

    def __init__(self, app: App, args: ServeArgs, hears: bool = False) -> None:
        self._app = app
        self._loopback = is_loopback(args.host)
        self._admins = [key.encode() for key in args.admin_key_hashes]
        self._keys = [*(key.encode() for key in args.key_hashes), *self._admins]
        self._max_body = args.max_body_bytes
        larger = [(PICTURE_PATHS, args.max_picture_body_bytes), (AUDIO_PATHS, args.max_audio_body_bytes * hears)]
        self._most_of = {
            path: max(size for others, size in larger if path in others) for paths, _ in larger for path in paths
        }
        self._body_timeout = args.body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            await self._app(scope, self._limited(receive, self._most(scope)), send)
        except ApiError as error:
            await _answer(error, send)

    def _check(self, scope: Scope) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self._loopback and not is_loopback(_host_name(f"//{host}")):
            raise ApiError(403, f"host '{host}' is not served: use 127.0.0.1 or localhost", "wrong_host")
        origin = headers.get("origin")
        if self._loopback and origin and scope["method"] not in ("GET", "HEAD") and not is_loopback(_host_name(origin)):
            raise ApiError(403, f"requests from the web page '{origin}' are not served", "wrong_origin")
        if self._keys and scope["path"] not in OPEN_PATHS:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            given = hash_key(key.strip()).encode() if scheme.lower() == "bearer" and key.strip() else b""
            # Every key is compared, each in constant time, so that the time tells nothing.
            if not sum(hmac.compare_digest(given, known) for known in self._keys):
                raise ApiError(401, "an API key is needed: send `Authorization: Bearer KEY`", "invalid_api_key")
            changes = scope["path"].startswith(ADMIN_PATHS) and scope["method"] not in ("GET", "HEAD")
            if changes and not sum(hmac.compare_digest(given, known) for known in self._admins):
                text = "this needs one of the keys of KAULI_ADMIN_KEYS"
                raise ApiError(403, text, "admin_key_needed")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._most(scope):
            raise self._too_large(self._most(scope))

    def _most(self, scope: Scope) -> int:
        """The bytes that a body may have."""
        return max(self._max_body, self._most_of.get(scope["path"], 0))

    def _limited(self, receive: Receive, most: int) -> Receive:
        total, until, whole = 0, time.monotonic() + self._body_timeout, False

        async def limited() -> Message:
            nonlocal total, whole
            if whole:  # what comes now is the client's leaving, which may take as long as it likes
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                text = f"the body did not arrive within {self._body_timeout:g} seconds"
                raise HTTPException(408, text) from None
            whole = not message.get("more_body", False)
            total += len(message.get("body", b""))
            if total > most:
                error = self._too_large(most)
                # FastAPI turns any other exception of a body that it reads into a 400
                raise HTTPException(error.status, error.message)
            return message

        return limited

    def _too_large(self, most: int) -> ApiError:
        return ApiError(413, f"the body is larger than {most} bytes", "body_too_large")


def _host_name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


async def _answer(error: ApiError, send: Send) -> None:
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
