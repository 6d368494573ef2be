"""MONAI Label's own endpoints, in threads and with their bodies checked.

Upstream's endpoints are coroutines that compute: while one infers, nothing else is answered, not even `GET /info/`.
Each is registered again under the same path with a wrapper that checks the parsed arguments and then runs it in a
thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
from fastapi import APIRouter
from fastapi.routing import APIRoute
from monailabel.endpoints import activelearning, batch_infer, datastore, infer, info, model, scoring, session, train
from monailabel.utils.async_tasks.utils import tasks
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from medseg.cases import IMAGE_SUFFIXES
from medseg.errors import MedsegError, NotFoundError, UnusableInputError
from medseg.server.accounts import check_account
from medseg.server.dicom.datastore import DicomWebDatastore
from medseg.server.dicom.reply import with_dicom_seg
from medseg.server.guard import CLIENT
from medseg.server.http_errors import parse_object
from medseg.server.ids import LABEL_SUFFIXES, is_name

MODULES = (info, model, infer, batch_infer, train, activelearning, scoring, datastore, session)
ARCHIVES = (".zip",)  # unpacking a .tar writes wherever its members say; the unpacker of .zip leaves such members out
INFER_THREADS = 4  # ours: calls of one model wait for each other anyway; more threads would only hold more memory
OTHER_THREADS = 16

PATHS = frozenset({"model_filename", "train_ds", "val_ds", "network", "bundle_path", "image_path"})
"""Body keys by which upstream's tasks open files or change what a reply means."""

CLOBBERING = frozenset({"image", "model", "session", "session_id", "file", "label_file"})
"""Body keys that upstream copies over what the address of the request says."""

JOBS = ("train", "scoring", "batch_infer")


def guarded_router(app: Any) -> APIRouter:
    """Upstream's routes, guarded.

    Args:
        app: the `MedsegApp`; knows which tasks there are.
    """
    router = APIRouter()
    infer_threads, others = anyio.CapacityLimiter(INFER_THREADS), anyio.CapacityLimiter(OTHER_THREADS)
    jobs = threading.Lock()
    for module in MODULES:
        kind = module.__name__.rpartition(".")[2]
        for route in module.router.routes:
            if not isinstance(route, APIRoute):
                continue
            limiter = infer_threads if kind == "infer" else others
            original = with_dicom_seg(app, route.endpoint) if kind == "infer" else route.endpoint
            endpoint = in_thread(original, functools.partial(check_call, app, kind, jobs), limiter)
            router.add_api_route(
                route.path,
                endpoint,
                methods=sorted(route.methods or ()),
                tags=route.tags,
                summary=route.summary,
                responses=route.responses,
                include_in_schema=route.include_in_schema,
                name=route.name,
            )
    return router


def in_thread(
    endpoint: Callable[..., Awaitable[Any]], check: Callable[..., Any], limiter: anyio.CapacityLimiter
) -> Callable[..., Awaitable[Any]]:
    """An endpoint with the same signature that calls `check(arguments)` and the original in a thread."""

    async def threaded(**arguments: Any) -> Any:
        def call() -> Any:
            with check(arguments, endpoint.__name__):
                return asyncio.run(_coroutine(endpoint, arguments))

        return await anyio.to_thread.run_sync(call, limiter=limiter)

    threaded.__name__ = endpoint.__name__
    threaded.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
    return threaded


async def _coroutine(endpoint: Callable[..., Awaitable[Any]], arguments: Mapping[str, Any]) -> Any:
    return await endpoint(**arguments)


@contextlib.contextmanager
def check_call(app: Any, kind: str, jobs: threading.Lock, arguments: dict[str, Any], name: str) -> Iterator[None]:
    """Checks a call's arguments before it runs; while a job is being queued, no other request queues one.

    Raises:
        MedsegError: an argument is not allowed; says which.
        HTTPException: the user's role does not allow it, or a job of this kind waits or runs.
    """
    check_arguments(kind, arguments)
    check_account(kind, arguments)
    starts = kind in JOBS and name.startswith("api_run")
    if starts:
        prepare_job(app, kind, arguments)
    elif kind == "infer":
        check_infer(app, arguments)
    elif kind == "activelearning":
        app.known(app._strategies, str(arguments.get("strategy")), "strategy")
    if not starts or arguments.get("run_sync"):
        yield
        if name == "api_put_image_info":
            app.on_image_info(str(arguments.get("image")))
        return
    with jobs:
        if ("model" in arguments or "method" in arguments) and not arguments.get("enqueue"):
            refuse_a_second(kind)
        yield


def refuse_a_second(kind: str) -> None:
    """Upstream looks for a process, and a job has none yet in its first moments: two quick clicks would train twice.

    Raises:
        HTTPException: 429, as upstream, while a job of this kind waits or runs.
    """
    if any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks(kind)):
        raise HTTPException(429, f"{kind.replace('_', ' ')} is already running; wait for it or stop it by DELETE")


def check_arguments(kind: str, arguments: dict[str, Any]) -> None:
    """Names, bodies and uploads of a call, after FastAPI parsed them."""
    for key in ("image", "label", "tag", "id", "session_id", "model", "method", "strategy"):
        value = arguments.get(key)
        if isinstance(value, str) and value and not is_name(value):
            raise MedsegError(f"{key} {value[:80]!r} is no name; use letters, digits, '.', '_' and '-'")
    for key in ("params", "info"):
        if arguments.get(key) is not None:
            body = parse_object(arguments[key], key)
            # a label's facts may tell the model it was drawn with, as Slicer's do; nothing is opened by that name
            check_body({k: v for k, v in body.items() if not (kind == "datastore" and k == "model")})
    uploads = [arguments.get("file"), arguments.get("label"), *(arguments.get("files") or [])]
    for upload in uploads:
        if isinstance(upload, UploadFile) and upload.filename:
            # MONAI Label's client sends the whole path of its file; only the last part may reach upstream
            upload.filename = upload.filename.replace("\\", "/").rpartition("/")[2]
            check_upload(kind, upload.filename, is_label=upload is arguments.get("label"))


def check_body(body: Mapping[str, Any]) -> None:
    """Keys and values that upstream would use as paths, also one level down ({trainer: params})."""
    for key, value in body.items():
        if isinstance(value, dict) and key not in ("label_info", "weak"):
            check_body(value)
        if key in PATHS or key in CLOBBERING:
            raise MedsegError(f"{key!r} may not be set in the body of a request; leave it out")
        if key == "label_tag" and not (isinstance(value, str) and is_name(value)):
            raise MedsegError(f"label_tag {str(value)[:80]!r} is no name; use letters, digits, '.', '_' and '-'")
        if key == "client_id" and value is not None and not CLIENT.fullmatch(str(value)):
            raise MedsegError(f"client_id {str(value)[:80]!r} holds unusual characters or is longer than 100")
        if key in ("images", "image_ids") and isinstance(value, list):
            wrong = [item for item in value if not (isinstance(item, str) and is_name(item))]
            if wrong:
                raise MedsegError(f"{key} holds {str(wrong[0])[:80]!r}, which is no image id")
        if key == "name" and not (isinstance(value, str) and is_name(value)):
            raise MedsegError(f"name {str(value)[:80]!r} is no name; use letters, digits, '.', '_' and '-'")


def check_infer(app: Any, arguments: Mapping[str, Any]) -> None:
    """What an infer request names must be there, and its form of reply possible."""
    app.known(app._infers, str(arguments.get("model")), "model")
    identifier = arguments.get("session_id")
    if not (identifier or arguments.get("image") or arguments.get("file")):
        raise MedsegError("the request names no image; give ?image=ID, ?session_id=ID or upload a file")
    if identifier and (app.sessions() is None or app.sessions().get_session(identifier) is None):
        raise NotFoundError(f"there is no session {identifier!r}, or it has expired; send the image again")
    output = getattr(arguments.get("output"), "value", None)
    if output == "dicom_seg" and not isinstance(app.datastore(), DicomWebDatastore):
        raise MedsegError("output dicom_seg needs a DICOMweb study, which this one is not; ask for output=image")
    if output == "dicom_seg" and (identifier or arguments.get("file")):
        raise MedsegError("output dicom_seg needs an image of the archive (?image=ID); ask for output=image")


def check_upload(kind: str, filename: str, is_label: bool) -> None:
    """An uploaded file's suffix: what is not an image, mask or archive of images is not stored."""
    known = (*LABEL_SUFFIXES, ".bin") if is_label else IMAGE_SUFFIXES
    known = (*known, *ARCHIVES) if kind == "session" else known
    name = filename.lower()
    if "/" in name or "\\" in name or "\x00" in name or not name.endswith(known) or Path(name).name.startswith("."):
        raise UnusableInputError(f"file {filename[-80:]!r} is not stored; known suffixes: {', '.join(known)}")


def prepare_job(app: Any, kind: str, arguments: dict[str, Any]) -> None:
    """Ask the app whether a job can work, before it is queued."""
    body = arguments["params"] = arguments.get("params") or {}
    name = arguments.get("model") or arguments.get("method")
    if name is not None:
        app.prepare_job(kind, name, body)
        return
    for each in app._trainers if kind == "train" else app._scoring_methods:  # POST /train/ {trainer: params}
        app.prepare_job(kind, each, body.setdefault(each, {}))
