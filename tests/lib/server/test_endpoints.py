from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from medseg.errors import MedsegError
from medseg.server.endpoints import check_arguments, check_body, check_upload, in_thread, refuse_a_second


@pytest.mark.parametrize(
    "body",
    [
        {"model_filename": "x"},
        {"train_ds": "/etc"},
        {"image": "x"},
        {"caml": {"model": "y"}},
        {"label_tag": "../x"},
        {"label_tag": 3},
        {"images": ["ok", "../x"]},
        {"client_id": "a\nb"},
        {"name": "../../x"},
    ],
)
def test_body_keys_that_name_files_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(MedsegError):
        check_body(body)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"client_id": None},
        {"client_id": "Müller (Slicer) 1"[:6]},
        {"iterations": 3, "device": ["cpu"]},
        {"label_info": [{"name": "left atrium", "idx": 1, "model": "x"}]},
        {"images": ["a", "b"], "label_tag": "original"},
    ],
)
def test_usual_bodies_pass(body: dict[str, Any]) -> None:
    check_body(body)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"image": "../x"}, "image"),
        ({"tag": "a/b"}, "tag"),
        ({"params": "{bad"}, "params is not JSON"),
        ({"info": "[]"}, "no object"),
        ({"params": {"network": "x"}}, "network"),
        ({"file": UploadFile(None, filename="main.py")}, "known suffixes"),  # type: ignore[arg-type]
        ({"files": [UploadFile(None, filename="a.nii"), UploadFile(None, filename="b.exe")]}, "b.exe"),  # type: ignore[arg-type]
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(MedsegError, match=says):
        check_arguments("infer", arguments)


@pytest.mark.parametrize(
    ("kind", "name", "is_label", "fine"),
    [
        ("datastore", "a.nii.gz", False, True),
        ("datastore", "A.NRRD", False, True),
        ("datastore", "1.2.840.nii.gz", False, True),
        ("datastore", "weak.json", True, True),
        ("datastore", "weak.json", False, False),
        ("datastore", "x.zip", False, False),
        ("session", "x.zip", False, True),
        ("session", "x.tar", False, False),  # unpacking it would write wherever its members say
        ("session", "x.tar.gz", False, False),
        ("datastore", "x.nii.gz.py", False, False),
        ("datastore", ".nii.gz", False, False),
        ("datastore", "a/b.nii.gz", False, False),
    ],
)
def test_uploads_by_suffix(kind: str, name: str, is_label: bool, fine: bool) -> None:
    with contextlib.nullcontext() if fine else pytest.raises(MedsegError):
        check_upload(kind, name, is_label)


def test_in_thread_keeps_the_signature_and_runs_elsewhere() -> None:
    seen: list[Any] = []

    async def endpoint(model: str, number: int = 3) -> tuple[str, int, str]:
        return model, number, threading.current_thread().name

    @contextlib.contextmanager
    def check(arguments: dict[str, Any], name: str) -> Iterator[None]:
        seen.append((arguments, name))
        yield

    async def call() -> Any:
        return await in_thread(endpoint, check, anyio.CapacityLimiter(1))(model="caml", number=4)

    model, number, thread = asyncio.run(call())

    assert (model, number) == ("caml", 4)
    assert thread != threading.main_thread().name
    assert seen == [({"model": "caml", "number": 4}, "endpoint")]
    wrapped = in_thread(endpoint, check, None)  # type: ignore[arg-type]
    assert inspect.signature(wrapped) == inspect.signature(endpoint)


@pytest.mark.parametrize(
    ("status", "busy"), [("SUBMITTED", True), ("RUNNING", True), ("DONE", False), ("ERROR", False)]
)
def test_a_second_job_is_refused_also_before_the_first_has_a_process(
    monkeypatch: pytest.MonkeyPatch, status: str, busy: bool
) -> None:
    monkeypatch.setattr("medseg.server.endpoints.tasks", lambda kind: [{"status": status}] if kind == "train" else [])

    refuse_a_second("scoring")
    with pytest.raises(HTTPException, match="already running") if busy else contextlib.nullcontext():
        refuse_a_second("train")
