"""What a request may say before any code of MONAI Label sees it.

An ASGI middleware, outermost but for CORS. MONAI Label joins names from requests to paths without a look (PLATFORM.md,
"Security"); here every name is checked, uploads are bounded, and what nobody needs over the network is closed. Values
inside a request's body are checked by `medseg.server.endpoints`, where the body is parsed.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from medseg.server.ids import is_name

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

NAMES_IN_QUERY = frozenset({"image", "label", "tag", "id", "session_id", "model", "method", "strategy", "client_id"})
MAY_BE_EMPTY = frozenset({"image", "label", "tag", "session_id", "client_id"})
DICOMWEB_ROOTS = frozenset({"studies", "series", "instances"})
DICOMWEB_OPERATIONS = frozenset({"wado", "qido", "stow"})
CLIENT = re.compile(r"[\w .@+-]{0,100}")
LOCAL_NAMES = frozenset({"localhost"})


@dataclass(frozen=True)
class GuardOptions:
    """What differs between servers.

    Attributes:
        max_body: largest request body, bytes.
        allow_remote: answer other machines.
        expose_logs: serve `/logs/`.
        dicomweb: the study is a DICOMweb server, so `/proxy` has a purpose.
        origins: web origins besides the server's own that may change things.
    """

    max_body: int = 4 * 2**30
    allow_remote: bool = False
    expose_logs: bool = False
    dicomweb: bool = False
    origins: frozenset[str] = frozenset()


class _RefusedError(Exception):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Guard:
    """The middleware.

    Args:
        app: the next ASGI application.
        options: what differs between servers.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], options: GuardOptions) -> None:
        self.app, self.options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on; a refusal is JSON with one sentence."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            check(scope, self.options)
        except _RefusedError as refusal:
            await _answer(send, refusal.status, refusal.detail)
            return
        counter = _BodyCounter(receive, send, self.options.max_body)
        try:
            await self.app(scope, counter.receive, counter.send)
        except _RefusedError as refusal:
            if counter.started:
                raise
            await _answer(send, refusal.status, refusal.detail)


def check(scope: Scope, options: GuardOptions) -> None:
    """All rules that need no body.

    Raises:
        _RefusedError: with the status and the sentence of the answer.
    """
    headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope.get("headers", [])}
    method, path = scope["method"], _path(scope)
    _check_peer(scope, options)
    _check_origin(method, headers, options)
    _check_length(headers, options)
    _check_route(method, path, options)
    _check_query(scope.get("query_string", b"").decode("latin-1"))


def _path(scope: Scope) -> str:
    """The path, fully decoded.

    Raises:
        _RefusedError: it tries to leave its place.
    """
    raw = scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
    for path in (scope["path"], raw):
        for _ in range(5):  # %252e%252e decodes to %2e%2e, which the next program decodes again
            if "\\" in path or "\x00" in path or ".." in path.split("/"):
                raise _RefusedError(
                    400, "the path holds '..', a backslash or a zero byte; ask for the resource by its plain path"
                )
            path, before = unquote(path), path
            if path == before:
                break
        else:
            raise _RefusedError(400, "the path is encoded more than 5 times; ask for the resource by its plain path")
    return str(scope["path"])


def _check_peer(scope: Scope, options: GuardOptions) -> None:
    client = scope.get("client")
    if options.allow_remote or not client or is_local(client[0]):
        return
    raise _RefusedError(
        403, "this server answers only its own machine; start it with --host 0.0.0.0 or --conf allow_remote true"
    )


def is_local(host: str) -> bool:
    """Whether an address or name is this machine's."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host in LOCAL_NAMES
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _check_origin(method: str, headers: dict[str, str], options: GuardOptions) -> None:
    """A page of another site must not label, train or delete through a browser that happens to run here."""
    host = headers.get("host", "")
    if not options.allow_remote and host and not is_local(urlsplit(f"//{host}").hostname or ""):
        raise _RefusedError(
            403, f"this server is not called {host[:80]!r}; use 127.0.0.1, or start it with --host ADDRESS"
        )
    origin = headers.get("origin")
    if origin is None or method in ("GET", "HEAD", "OPTIONS"):
        return
    parts = urlsplit(origin)
    if origin not in options.origins and parts.netloc != host and not is_local(parts.hostname or ""):
        raise _RefusedError(
            403, f"pages of {origin[:80]!r} may not change anything here; allow it by --conf cors_origins {origin[:80]}"
        )


def _check_length(headers: dict[str, str], options: GuardOptions) -> None:
    length = headers.get("content-length", "0")
    if not length.isdigit():
        raise _RefusedError(400, f"Content-Length is {length[:40]!r}, not a number")
    if int(length) > options.max_body:
        raise _RefusedError(413, _too_large(options.max_body))


def _check_route(method: str, path: str, options: GuardOptions) -> None:
    parts = [part for part in path.split("/") if part]
    root = parts[0] if parts else ""
    if root == "reload":
        raise _RefusedError(403, "/reload is closed; restart the server to load the app again")
    if root == "logs" and not options.expose_logs:
        raise _RefusedError(403, "/logs/ is closed, it holds image ids and paths; open it with --conf expose_logs true")
    if root == "model" and method in ("PUT", "DELETE", "POST"):
        raise _RefusedError(
            403, "models are not changed over the network; train, or roll back at POST /medseg/rollback"
        )
    if parts[:2] == ["infer", "wsi"]:
        raise _RefusedError(404, "whole-slide inference is not served here; use POST /infer/MODEL")
    if root == "proxy":
        _check_proxy(method, parts[1:], options)
    if root in ("infer", "activelearning", "train", "scoring", "session", "batch", "model"):
        for part in parts[1:]:
            if not is_name(part):
                raise _RefusedError(400, f"{part[:80]!r} is no name; use letters, digits, '.', '_' and '-'")


def _check_proxy(method: str, parts: list[str], options: GuardOptions) -> None:
    """Only DICOMweb below `/proxy/dicom`: the rest of the image server's interface is not ours to open."""
    if not options.dicomweb:
        raise _RefusedError(404, "this study is a folder; /proxy/dicom exists for DICOMweb studies")
    inner = parts[1:]
    operation = inner.pop(0) if inner and inner[0] in DICOMWEB_OPERATIONS else ""
    if parts[:1] != ["dicom"] or not inner or inner[0] not in DICOMWEB_ROOTS:
        raise _RefusedError(403, "/proxy/dicom passes on DICOMweb paths only: studies, series, instances")
    stores = method == "POST" and inner[0] == "studies" and len(inner) <= 2 and operation != "qido"
    if method not in ("GET", "HEAD", "OPTIONS") and not stores:
        raise _RefusedError(403, f"/proxy/dicom does not pass on {method} here; store objects at /proxy/dicom/studies")


def _check_query(query: str) -> None:
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in NAMES_IN_QUERY or (not value and key in MAY_BE_EMPTY):
            continue
        fine = CLIENT.fullmatch(value) if key == "client_id" else is_name(value)
        if not fine:
            raise _RefusedError(
                400, f"{key} {value[:80]!r} is no name; use letters, digits, '.', '_' and '-', without a leading '.'"
            )


def _too_large(limit: int) -> str:
    size = f"{limit / 2**30:g} GB"
    return f"the request is larger than {size}; raise the limit by --conf upload_gb, or copy the file into the study"


class _BodyCounter:
    """Counts the body as it arrives: a chunked request has no Content-Length."""

    def __init__(self, receive: Receive, send: Send, limit: int) -> None:
        self._receive, self._send, self._left, self._limit = receive, send, limit, limit
        self.started = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise _RefusedError(413, _too_large(self._limit))
        return message

    async def send(self, message: Message) -> None:
        self.started = True
        await self._send(message)


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
