"""`/proxy/dicom`: the archive as a web viewer reaches it through this server.

Upstream's proxy drops the query string, so that every search finds everything, and holds whole answers in memory. The
guard has checked the path before. A segmentation that is stored here is a finished label once the viewer has its
answer.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from email.message import Message as HeaderMessage
from typing import Any

import anyio
import requests
from fastapi import APIRouter, Depends, Request
from monailabel.config import settings as monai_settings
from monailabel.endpoints.user.auth import RBAC
from pydicom import dcmread
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from medseg.errors import MedsegError
from medseg.server.accounts import author_of
from medseg.server.dicom.datastore import DicomWebDatastore

logger = logging.getLogger(__name__)

ASKED = ("accept", "content-type", "range", "if-none-match", "if-modified-since")
ANSWERED = ("content-type", "content-length", "content-encoding", "etag", "last-modified", "content-range", "warning")
OPERATIONS = ("wado", "qido", "stow")
CHUNK = 1 << 16


def proxy_router(app: Any) -> APIRouter:
    """`/proxy/dicom/...` over a `MedsegApp`."""
    router = APIRouter(prefix="/proxy/dicom", tags=["Others"])
    reader = Depends(RBAC(monai_settings.MONAI_LABEL_AUTH_ROLE_USER))
    annotator = Depends(RBAC(monai_settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))

    @router.get("/{path:path}", include_in_schema=False, dependencies=[reader])
    def read(path: str, request: Request) -> Response:
        store = _archive_of(app)
        url = address(store.archive.url, path, request.url.query)
        return _stream(_ask(store, "GET", url, request.headers))

    @router.post("/{path:path}", include_in_schema=False)
    async def write(path: str, request: Request, user: Any = annotator) -> Response:
        body = await request.body()
        author = author_of(user, "") if user is not None else ""
        return await anyio.to_thread.run_sync(_write, _archive_of(app), path, request, body, author)

    return router


def address(root: str, path: str, query: str) -> str:
    """Where a request goes: `wado/`, `qido/` and `stow/` lead to their services, which share the archive's root."""
    operation, _, rest = path.partition("/")
    operation, path = (operation, rest) if operation in OPERATIONS else ("", path)
    if operation == "qido" and path.endswith("metadata"):
        operation = "wado"  # some viewers ask the search service for metadata
    prefix = getattr(monai_settings, f"MONAI_LABEL_{operation.upper()}_PREFIX") if operation else None
    url = "/".join(part for part in (root, prefix, path) if part)
    return f"{url}?{query}" if query else url


def _archive_of(app: Any) -> DicomWebDatastore:
    store = app.datastore()
    if not isinstance(store, DicomWebDatastore):
        raise HTTPException(404, "this study is no DICOMweb archive; /proxy/dicom exists for those")
    return store


def _write(store: DicomWebDatastore, path: str, request: Request, body: bytes, author: str) -> Response:
    url = address(store.archive.url, path, request.url.query)
    series = stored_series(request.headers.get("content-type", ""), body)
    with store.storing(series):
        answer = _stream(_ask(store, "POST", url, request.headers, body))
    if answer.status_code < 300:
        try:
            labelled = store.take_up(series, author)
        except MedsegError as error:  # the archive has the objects; a later look takes them up
            logger.warning("what a viewer stored is not looked at yet: %s", error)
        else:
            logger.info("a viewer stored objects; labelled by them: %s", ", ".join(labelled) or "nothing")
    return answer


def stored_series(content_type: str, body: bytes) -> frozenset[str]:
    """Series Instance UIDs of the objects in the multi-part body of a request to store."""
    boundary = HeaderMessage()
    boundary["content-type"] = content_type
    mark = boundary.get_param("boundary")
    found = set()
    for part in body.split(f"--{mark}".encode())[1:] if mark else ():
        with contextlib.suppress(Exception):  # the archive judges what is no DICOM object
            content = io.BytesIO(part.partition(b"\r\n\r\n")[2])
            found.add(str(dcmread(content, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID))
    return frozenset(found)


def _ask(
    store: DicomWebDatastore, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
) -> requests.Response:
    passed = {key: headers[key] for key in ASKED if key in headers}
    try:
        return store.archive.session.request(method, url, headers=passed, data=body, stream=True)
    except requests.RequestException as error:
        raise HTTPException(502, f"the archive does not answer ({type(error).__name__})") from error


def _stream(answer: requests.Response) -> StreamingResponse:
    """The archive's answer, passed on as it comes."""

    def chunks() -> Iterator[bytes]:
        with answer:
            yield from answer.raw.stream(CHUNK, decode_content=False)

    headers = {key: answer.headers[key] for key in ANSWERED if key in answer.headers}
    return StreamingResponse(chunks(), status_code=answer.status_code, headers=headers)
