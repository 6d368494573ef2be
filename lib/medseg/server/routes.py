"""Routes of our own under `/medseg/`: the pool, versions and rollback, label history, and a page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse, HTMLResponse
from monailabel.config import settings as monai_settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.utils.async_tasks.utils import tasks
from pydantic import BaseModel

from medseg.errors import MedsegError, NotFoundError
from medseg.server.accounts import author_of
from medseg.server.job_lines import last_sentence
from medseg.server.status_page import render_status
from medseg.training.registry import Version

SHOWN = 10  # ours: labels on the status page


class Rollback(BaseModel):
    """Body of POST /medseg/rollback."""

    model: str
    version: int


class Restore(BaseModel):
    """Body of POST /medseg/restore."""

    image: str
    version: int
    tag: str = "final"
    client_id: str = ""


def medseg_router(app: Any) -> APIRouter:
    """All routes, over a `MedsegApp`."""
    router = APIRouter(prefix="/medseg", tags=["medseg"])
    _add_reading_routes(router, app)
    _add_writing_routes(router, app)
    return router


def _add_reading_routes(router: APIRouter, app: Any) -> None:
    user = Depends(RBAC(monai_settings.MONAI_LABEL_AUTH_ROLE_USER))

    @router.get("/", response_class=HTMLResponse, dependencies=[user], summary="Status page")
    def page() -> str:
        return render_status(state(app))

    @router.get("/state", dependencies=[user], summary="State of the annotate-retrain loop")
    def loop() -> dict[str, Any]:
        return state(app)

    @router.get("/unlabelled", dependencies=[user], summary="Unlabelled images, best first, with scores and leases")
    def unlabelled(strategy: str = "") -> list[dict[str, Any]]:
        name = strategy or next(iter(app._strategies))
        ranking = app.known(app._strategies, name, "strategy").ranking()
        leases = {lease.image: lease for lease in app.study.leases.active()}
        return [
            {"id": s.id, "score": s.value, "why": s.why, "held_by": leases[s.id].client if s.id in leases else None}
            for s in ranking
        ]

    @router.get("/versions", dependencies=[user], summary="Model versions with metrics, newest first")
    def versions(model: str = "") -> list[dict[str, Any]]:
        if model:
            app.known(app._trainers, model, "model")
        return [describe(v) for name in ([model] if model else app._trainers) for v in versions_of(app, name)]

    @router.get("/history", dependencies=[user], summary="Previous versions of a label, oldest first")
    def history(image: str, tag: str = "final") -> list[dict[str, Any]]:
        return [
            {
                "version": v.number,
                "author": v.author,
                "saved": v.info.get("saved"),
                "remarks": v.info.get("remarks", []),
            }
            for v in _local(app).label_history(image, tag)
        ]

    @router.get("/outcome", dependencies=[user], summary="What became of a DICOM SEG that a viewer stored")
    def outcome(series: str) -> dict[str, Any]:
        if not hasattr(app.datastore(), "outcome"):
            raise NotFoundError("this study is no DICOMweb archive; segmentations are stored in those")
        told: dict[str, Any] = app.datastore().outcome(series)
        return told

    @router.get("/uncertainty", dependencies=[user], summary="Uncertainty map of the last prediction that asked for it")
    def uncertainty(model: str, image: str) -> FileResponse:
        path: Path = app.known(app._infers, model, "model").uncertainty_file(image)
        if not path.is_file():
            raise NotFoundError(
                f'no uncertainty of {image!r} is kept; send {{"uncertainty": true}} to /infer/{model} first'
            )
        return FileResponse(path, media_type="application/gzip", filename=path.name)


def _add_writing_routes(router: APIRouter, app: Any) -> None:
    admin = Depends(RBAC(monai_settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
    annotator = Depends(RBAC(monai_settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))

    @router.post("/rollback", dependencies=[admin], summary="Serve an earlier model version again")
    def rollback(body: Rollback) -> dict[str, Any]:
        app.known(app._trainers, body.model, "model")
        return describe(app.study.registry.rollback(body.model, body.version))

    @router.post("/restore", summary="Make a previous version of a label the present one")
    def restore(body: Restore, user: User = annotator) -> dict[str, Any]:
        _local(app).restore_label(body.image, body.tag, body.version, author_of(user, body.client_id))
        return {"image": body.image, "tag": body.tag, "restored_from": body.version}


def state(app: Any) -> dict[str, Any]:
    """Everything the status page shows."""
    jobs = {kind: [_job(task) for task in tasks(kind)[-3:]] for kind in ("train", "scoring", "batch_infer")}
    return {
        "study": app.study.key,
        "labels": app.study.labels,
        "loop": app.loop_state(),
        "training": {name: task.stats() for name, task in app._trainers.items()},
        "versions": {name: [describe(v) for v in versions_of(app, name)] for name in app._trainers},
        "curve": {name: task.runs.curve() for name, task in app._trainers.items()},
        "jobs": jobs,
        "leases": [
            {"image": lease.image, "client": lease.client, "why": lease.why} for lease in app.study.leases.active()
        ],
        "saved": app.datastore().last_saved(SHOWN) if hasattr(app.datastore(), "last_saved") else [],
        "problems": [
            *app.datastore().status().get("problems", []),
            *(f"image {image} could not be scored: {why}" for image, why in app.study.failures().items()),
        ],
    }


def versions_of(app: Any, method: str) -> list[Version]:
    """A method's versions, newest first."""
    return list(reversed(app.study.registry.versions(method)))


def describe(version: Version) -> dict[str, Any]:
    """A version for people, without the table of its cases and without paths."""
    validation = version.metrics.get("validation") or {}
    training = version.metrics.get("training") or {}
    return {
        "model": version.method,
        "version": version.number,
        "champion": version.champion,
        "created": version.created,
        "quality": version.metrics.get("quality"),
        "mean": validation.get("mean"),
        "labelled": len(training.get("labelled") or []),
        "iterations": training.get("iterations"),
        "seconds": training.get("seconds"),
        "note": version.note,
    }


def _job(task: dict[str, Any]) -> dict[str, Any]:
    shown = {key: task.get(key) for key in ("id", "status", "start_ts", "end_ts")}
    return {**shown, "last_line": last_sentence(list(task.get("details") or []))}


def _local(app: Any) -> Any:
    """The datastore, where it is ours; XNAT and DSA keep what they keep."""
    if not hasattr(app.datastore(), "label_history"):
        raise MedsegError("label history is kept for folders and DICOMweb archives; this is an XNAT or DSA server")
    return app.datastore()
