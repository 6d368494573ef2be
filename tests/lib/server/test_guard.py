from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from medseg.server.guard import Guard, GuardOptions, is_local

OPTIONS = GuardOptions(max_body=100, origins=frozenset({"https://viewer.example"}))
DICOM = GuardOptions(dicomweb=True)


def ask(
    method: str,
    path: str,
    query: str = "",
    options: GuardOptions = OPTIONS,
    headers: dict[str, str] | None = None,
    client: str = "127.0.0.1",
    chunks: tuple[bytes, ...] = (b"",),
    raw: str | None = None,
) -> tuple[int, str]:
    """Status and detail of the guard's answer; 200 and "" where the request passed."""
    sent: list[dict[str, Any]] = []
    waiting = list(chunks)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for _ in chunks:
            await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    all_headers = {"host": "127.0.0.1:8000", **(headers or {})}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": (raw or path).encode(),
        "query_string": query.encode(),
        "headers": [(key.encode(), value.encode()) for key, value in all_headers.items()],
        "client": (client, 1234),
    }
    asyncio.run(Guard(application, options)(scope, receive, send))  # type: ignore[arg-type]
    body = sent[1]["body"]
    return sent[0]["status"], json.loads(body)["detail"] if body else ""


@pytest.mark.parametrize(
    "query",
    [
        "image=..%2Fx",
        "image=../x",
        "image=%2Fetc%2Fpasswd",
        "image=a%00b",
        "image=.x",
        "tag=a/b",
        "label=..",
        "id=",
        "image=ok&image=../x",
        "client_id=a%0Ab",
        f"image={'x' * 300}",
    ],
)
def test_bad_names_are_refused(query: str) -> None:
    status, detail = ask("GET", "/datastore/image", query)

    assert status == 400
    assert "is no name" in detail


@pytest.mark.parametrize("query", ["image=la_003", "image=1.2.840.113619.2.55", "image=&session_id=", "other=../x", ""])
def test_good_names_pass(query: str) -> None:
    assert ask("POST", "/infer/caml", query) == (200, "")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/reload", 403),
        ("GET", "/reload/", 403),
        ("GET", "/logs/", 403),
        ("GET", "/logs/gpu", 403),
        ("PUT", "/model/caml", 403),
        ("DELETE", "/model/caml", 403),
        ("POST", "/infer/wsi/caml", 404),
        ("GET", "/proxy/dicom/studies", 404),
        ("POST", "/infer/a b", 400),
        ("GET", "/session/.x", 400),
        ("GET", "/static/../x", 400),
        ("GET", "/ohif/..\\x", 400),
    ],
)
def test_closed_doors(method: str, path: str, status: int) -> None:
    assert ask(method, path)[0] == status


@pytest.mark.parametrize(
    "path", ["/info/", "/model/caml", "/model/info/caml", "/docs", "/", "/medseg/", "/ohif/app.js"]
)
def test_open_doors(path: str) -> None:
    assert ask("GET", path) == (200, "")


@pytest.mark.parametrize(
    ("method", "path", "raw", "status"),
    [
        ("GET", "/proxy/dicom/studies/1.2/series", None, 200),
        ("GET", "/proxy/dicom/wado/studies/1.2/metadata", None, 200),
        ("POST", "/proxy/dicom/stow/studies", None, 200),
        ("POST", "/proxy/dicom/studies", None, 200),
        ("POST", "/proxy/dicom/wado/studies/1.2", None, 200),
        ("POST", "/proxy/dicom/wado/studies/1.2/series", None, 403),
        ("POST", "/proxy/dicom/qido/studies", None, 403),
        ("DELETE", "/proxy/dicom/wado/studies/1.2", None, 403),
        ("GET", "/proxy/dicom/system", None, 403),
        ("GET", "/proxy/dicom/wado/tools/shutdown", None, 403),
        ("GET", "/proxy/dicom/wado", None, 403),
        ("GET", "/proxy/other", None, 403),
        ("GET", "/proxy/dicom/../system", "/proxy/dicom/%2e%2e/system", 400),
        ("GET", "/proxy/dicom/%2e%2e/system", "/proxy/dicom/%252e%252e/system", 400),
        ("GET", "/proxy/dicom/studies/%2E%2E/x", "/proxy/dicom/studies/%25252E%25252E/x", 400),
    ],
)
def test_proxy_passes_dicomweb_only(method: str, path: str, raw: str | None, status: int) -> None:
    assert ask(method, path, options=DICOM, raw=raw)[0] == status


def test_too_deep_encoding_is_refused() -> None:
    assert ask("GET", "/x", raw="/%" + "25" * 10 + "2e")[0] == 400


def test_large_bodies_are_refused_by_length_and_by_count() -> None:
    assert ask("PUT", "/datastore/image", headers={"content-length": "101"})[0] == 413
    assert ask("PUT", "/datastore/image", chunks=(b"x" * 60, b"x" * 60))[0] == 413
    assert ask("PUT", "/datastore/image", chunks=(b"x" * 60, b"x" * 40))[0] == 200
    assert ask("PUT", "/datastore/image", headers={"content-length": "-1"})[0] == 400


def test_other_machines_are_refused_unless_allowed() -> None:
    status, detail = ask("GET", "/info/", client="192.168.1.5")
    assert status == 403
    assert "--host" in detail
    assert ask("GET", "/info/", client="192.168.1.5", options=GuardOptions(allow_remote=True)) == (200, "")


def test_names_that_point_here_from_elsewhere_are_refused() -> None:
    assert ask("GET", "/info/", headers={"host": "evil.example"})[0] == 403
    assert ask("GET", "/info/", headers={"host": "[::1]:8000"})[0] == 200
    assert ask("GET", "/info/", headers={"host": "gpu:8000"}, options=GuardOptions(allow_remote=True))[0] == 200


@pytest.mark.parametrize(
    ("origin", "method", "status"),
    [
        ("http://evil.example", "POST", 403),
        ("null", "DELETE", 403),
        ("http://evil.example", "GET", 200),
        ("http://127.0.0.1:8000", "POST", 200),
        ("http://localhost:3000", "PUT", 200),
        ("https://viewer.example", "POST", 200),
        ("http://viewer.example", "POST", 403),
    ],
)
def test_pages_of_other_sites_change_nothing(origin: str, method: str, status: int) -> None:
    assert ask(method, "/train/caml", headers={"origin": origin})[0] == status


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True),
     ("10.0.0.1", False), ("localhost.evil.example", False), ("0.0.0.0", False), ("", False)],
)  # fmt: skip
def test_is_local(host: str, local: bool) -> None:
    assert is_local(host) is local
