"""Access control as ASGI middleware: the Host and Origin rule on loopback, API keys, and the size of bodies."""

import asyncio
import hmac
import math
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kauli.serving.events import Failed, Refused
from kauli.serving.http.answers import error_response
from kauli.serving.http.bodies import ApiError
from kauli.serving.http.pages import playground
from kauli.serving.http.rates import Rates
from kauli.serving.settings import ServeArgs, hash_key, is_loopback
from kauli.serving.tasks import media_paths

OPEN_PATHS = frozenset({"/health", *playground()})
"""Paths that need no key."""
BODY_KEY_PATHS = frozenset({"/translate", "/detect", "/languages"})
"""LibreTranslate's, whose clients send their key in the body or the query: `check_body_key` reads it there."""
LOCAL = "local"
"""The tenant where no keys are needed."""
ADMIN_PATHS = "/v1/adapters"
"""The beginning of the paths that need an admin's key to change something, where there are keys."""


_TENANT = 16  # hexadecimal digits


class Access:
    """Refuses a request before the application sees it.

    Bound to loopback, the `Host` must be this machine: else a web page could reach the service through a name that
    resolves to 127.0.0.1. A POST with an `Origin` of another site is refused: it is sent by a web page, and the setting
    `cors_origins` doesn't name it.
    With keys, every path but `OPEN_PATHS` needs one, and what changes the service needs an admin's. Bodies that may
    hold audio are larger only where one of `workers` takes it.
    """

    def __init__(self, app: ASGIApp, args: ServeArgs, workers: Collection[str] = ()) -> None:
        self._app = app
        self._loopback, self._origins = is_loopback(args.host), args.cors_origins
        self._admins = [key.encode() for key in args.admin_key_hashes]
        self._keys = [*(key.encode() for key in args.key_hashes), *self._admins]
        self._max_body = args.max_body_bytes
        larger = {"image": args.max_image_body_bytes, "audio": args.max_audio_body_bytes * ("audio" in workers)}
        self._most_of: dict[str, int] = {}
        for kind, size in larger.items():
            self._most_of |= {path: max(size, self._most_of.get(path, 0)) for path in media_paths(kind)}
        self._body_timeout = args.body_timeout_s
        self._rates = Rates(args.requests_per_minute) if args.requests_per_minute else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            self._check_rate(scope)
            await self._app(scope, self._limited(receive, self._most(scope)), send)
        except Refused as error:
            await error_response(error.failed)(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self._loopback and not is_loopback(_host_name(f"//{host}")):
            raise ApiError(403, f"host '{host}' is not served: use 127.0.0.1 or localhost", "wrong_host")
        origin = headers.get("origin")
        if self._loopback and origin and scope["method"] not in ("GET", "HEAD") and not self._welcome(origin):
            text = f"requests from the web page '{origin}' are not served (setting cors_origins)"
            raise ApiError(403, text, "wrong_origin")
        if self._keys and scope["path"] not in OPEN_PATHS:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            given = hash_key(key.strip()).encode() if scheme.lower() == "bearer" and key.strip() else b""
            # Every key is compared, each in constant time, so that the time reveals nothing.
            known_key = sum(hmac.compare_digest(given, known) for known in self._keys)
            if known_key:
                scope.setdefault("state", {})["tenant"] = given[:_TENANT].decode()
            elif scope["path"] not in BODY_KEY_PATHS:
                raise ApiError(401, "an API key is needed: send `Authorization: Bearer KEY`", "invalid_api_key")
            changes = scope["path"].startswith(ADMIN_PATHS) and scope["method"] not in ("GET", "HEAD")
            if changes and not sum(hmac.compare_digest(given, known) for known in self._admins):
                text = "this needs one of the keys of KAULI_ADMIN_KEYS"
                raise ApiError(403, text, "admin_key_needed")
        if (coding := headers.get("content-encoding", "identity")) != "identity":
            raise ApiError(415, f"bodies in {coding} are not read: send it uncompressed", "unsupported_media_type")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._most(scope):
            raise ApiError(413, _too_large(self._most(scope)), "body_too_large")

    def _check_rate(self, scope: Scope) -> None:
        if self._rates is None or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return
        # LibreTranslate's clients send their key in the body, which is not read yet: their address counts
        client = tenant(scope)
        wait = self._rates.wait(client if client != LOCAL else str((scope.get("client") or ("",))[0]))
        if wait:
            seconds = math.ceil(wait)
            text = f"too many requests; retry in {seconds} s (setting requests_per_minute)"
            raise Refused(Failed(429, text, "rate_limit_exceeded", retry_after=seconds))

    def _welcome(self, origin: str) -> bool:
        return is_loopback(_host_name(origin)) or origin in self._origins or "*" in self._origins

    def _most(self, scope: Scope) -> int:
        """The bytes that a body may have."""
        return max(self._max_body, self._most_of.get(scope["path"], 0))

    def _limited(self, receive: Receive, most: int) -> Receive:
        total, until, whole = 0, time.monotonic() + self._body_timeout, False

        async def limited() -> Message:
            nonlocal total, whole
            if whole:  # only the client's disconnect is left, which has no deadline
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                text = f"the body did not arrive within {self._body_timeout:g} seconds"
                raise HTTPException(408, text) from None
            whole = not message.get("more_body", False)
            total += len(message.get("body", b""))
            if total > most:
                # FastAPI turns any other exception of a body that it reads into a 400
                raise HTTPException(413, _too_large(most))
            return message

        return limited


def tenant(scope: Scope) -> str:
    """Whose memories a request may use: the key's, which its hash names."""
    return str(scope.get("state", {}).get("tenant", LOCAL))


def check_body_key(scope: Scope, args: ServeArgs, key: object) -> str:
    """The tenant of a request whose key may be in its body. Raises ApiError where a known key is needed."""
    keys = [*args.key_hashes, *args.admin_key_hashes]
    if not keys or "tenant" in scope.get("state", {}):
        return tenant(scope)
    given = hash_key(str(key or ""))
    if not sum(hmac.compare_digest(given, known) for known in keys):
        raise ApiError(403, "an API key is needed: send api_key", "invalid_api_key", "api_key")
    return given[:_TENANT]


def _too_large(most: int) -> str:
    return f"the body is larger than {most} bytes"


def _host_name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
