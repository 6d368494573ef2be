"""What a hostile or clumsy client gets: one sentence and the right status, never a file outside the study."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.server


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if ".medseg" not in path.parts}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/datastore/image?image=../evil", 400),
        ("PUT", "/datastore/image?image=..%2Fevil", 400),
        ("PUT", "/datastore/?image=/tmp/evil", 400),
        ("PUT", "/datastore/image?image=.hidden", 400),
        ("PUT", "/datastore/label?image=organ_000&tag=../../evil", 400),
        ("PUT", "/datastore/label?image=organ_000&tag=a%5Cb", 400),
        ("DELETE", "/datastore/label?id=..&tag=final", 400),
        ("GET", "/datastore/label?label=organ_000&tag=../final", 400),
        ("GET", "/datastore/image?image=%2Fetc%2Fpasswd", 400),
        ("POST", "/infer/caml?image=/etc/passwd", 400),
        ("POST", "/infer/..%2Fcaml?image=organ_000", 400),
        ("GET", "/session/..%2F..", 400),
        ("POST", "/infer/wsi/caml?image=organ_000", 404),
        ("PUT", "/model/caml", 403),
        ("DELETE", "/model/caml", 403),
        ("POST", "/reload", 403),
        ("GET", "/logs/", 403),
        ("GET", "/proxy/dicom/%2e%2e/system", 400),
        ("GET", "/proxy/dicom/%252e%252e/system", 400),
        ("GET", "/proxy/dicom/studies", 404),
        ("GET", "/static/../../config.py", 400),
        ("GET", "/medseg/uncertainty?model=caml&image=../../../etc/passwd", 400),
        ("GET", "/medseg/history?image=../x", 400),
    ],
)
def test_traversal_and_closed_doors(api: Any, study: Path, method: str, path: str, status: int) -> None:
    before = tree(study.parent)

    reply = api.raw(method, path)

    assert reply.status_code == status, reply.text
    assert len(reply.json()["detail"]) > 10
    assert tree(study.parent) == before


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/train/caml", {"iterations": "many"}, 400, "iterations"),
        ("/train/caml", {"iteration": 5}, 400, "iterations"),
        ("/train/caml", {"init": "/etc/passwd"}, 400, "init"),
        ("/train/caml", {"model_filename": "../x"}, 400, "model_filename"),
        ("/train/caml", {"train_ds": "/etc"}, 400, "train_ds"),
        ("/train/caml", {"name": "../../x"}, 400, "name"),
        ("/train/caml", {"device": "tpu"}, 400, "tpu"),
        ("/train/caml", {"labelled": 0}, 400, "labelled"),
        ("/train/nnunet", {}, 404, "known: caml, supervised"),
        ("/scoring/dice", {}, 404, "known: caml, supervised"),
        ("/activelearning/best", {}, 404, "known: caml"),
        ("/activelearning/caml", {"client_id": "x" * 500}, 400, "client_id"),
        ("/batch/infer/caml", {"label_tag": "../x"}, 400, "label_tag"),
        ("/batch/infer/caml", {"images": ["../x"]}, 400, "../x"),
    ],
)
def test_bad_bodies_are_answered_with_the_reason(
    api: Any, path: str, body: dict[str, Any], status: int, says: str
) -> None:
    reply = api.send("POST", path, json=body)

    assert reply.status_code == status, reply.text
    assert says in reply.json()["detail"]
    assert "Traceback" not in reply.text


@pytest.mark.parametrize("path", ["/train/caml", "/scoring/caml", "/activelearning/caml", "/batch/infer/caml"])
@pytest.mark.parametrize("body", ["{bad", "[1]", '"text"'])
def test_malformed_json(api: Any, path: str, body: str) -> None:
    reply = api.send("POST", path, data=body, headers={"content-type": "application/json"})

    assert reply.status_code == 400, reply.text
    assert isinstance(reply.json()["detail"], str)


def test_malformed_form_fields(api: Any, study: Path) -> None:
    label = {"label": ("l.nii.gz", (study / "labels" / "final" / "organ_000.nii.gz").read_bytes())}

    replies = [
        api.send("POST", "/infer/caml?image=organ_000", data={"params": "{bad"}),
        api.send("POST", "/infer/caml?image=organ_000", data={"params": '{"image": "/etc/passwd"}'}),
        api.send("POST", "/infer/caml"),
        api.send("PUT", "/datastore/label?image=organ_000", data={"params": "[]"}, files=label),
        api.send("PUT", "/datastore/image/info?image=organ_000", data={"info": "x"}),
        api.send("PUT", "/datastore/label?image=organ_000"),
    ]

    assert [reply.status_code for reply in replies] == [400] * 6, [reply.text for reply in replies]
    assert all(isinstance(reply.json()["detail"], str) for reply in replies)


def test_unknown_images_are_404(api: Any) -> None:
    replies = [
        api.send("GET", "/datastore/image?image=nope"),
        api.send("GET", "/datastore/image/info?image=nope"),
        api.send("DELETE", "/datastore/image?id=nope"),
        api.send("GET", "/nothing/here"),
    ]

    assert [reply.status_code for reply in replies] == [404] * 4, [reply.text for reply in replies]


@pytest.mark.parametrize("name", ["main.py", "x.nii.gz.sh", "../x.nii.gz", ".nii.gz"])
def test_uploads_of_other_files_are_refused(api: Any, study: Path, name: str) -> None:
    before = tree(study)

    reply = api.send("PUT", "/datastore/image?image=new", files={"file": (name, io.BytesIO(b"x"))})

    assert reply.status_code in (400, 422), reply.text
    assert tree(study) == before


def test_a_damaged_upload_is_refused_with_its_name(api: Any) -> None:
    reply = api.send("PUT", "/datastore/image?image=new", files={"file": ("new.nii.gz", io.BytesIO(b"no gzip"))})

    assert reply.status_code == 422
    assert "/" not in reply.json()["detail"].replace("and/or", "")


def test_other_sites_and_names(api: Any) -> None:
    evil = {"Origin": "http://evil.example"}

    assert api.send("POST", "/train/caml", json={}, headers=evil).status_code == 403
    assert api.send("GET", "/info/", headers={"Host": "evil.example"}).status_code == 403
    assert "access-control-allow-origin" not in api.send("GET", "/info/", headers=evil).headers
    local = {"Origin": "http://localhost:3000"}
    assert api.send("GET", "/info/", headers=local).headers["access-control-allow-origin"] == local["Origin"]
