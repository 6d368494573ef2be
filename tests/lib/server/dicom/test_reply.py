"""Predictions as DICOM SEG, over HTTP."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monai.data import MetaTensor

from medseg.server.dicom.archive import Archive
from medseg.server.dicom.datastore import DicomWebDatastore
from medseg.server.dicom.orthanc import Orthanc
from medseg.server.dicom.phantoms import DicomPhantom
from medseg.server.dicom.seg_read import read_segmentation, seg_facts
from medseg.server.endpoints import guarded_router
from medseg.server.http_errors import install_errors
from medseg.transforms.io import write_volume

pytestmark = pytest.mark.viewers


@pytest.fixture
def store(archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path) -> DicomWebDatastore:
    return DicomWebDatastore(Archive(archive.dicomweb), tmp_path / "here")


@pytest.fixture
def client(store: DicomWebDatastore, phantoms: list[DicomPhantom], tmp_path: Path) -> TestClient:
    """A server whose model predicts the first phantom's truth, and which has points to give, too."""
    phantom = phantoms[0]
    mask = MetaTensor(torch.from_numpy(phantom.mask.astype(np.uint8))[None], affine=torch.from_numpy(phantom.affine))
    truth = write_volume(tmp_path / "truth.nii.gz", mask)

    def infer(request: dict[str, Any]) -> dict[str, Any]:
        file = tmp_path / ("points.mrk.json" if request["model"] == "points" else "reply.nii.gz")
        shutil.copy(truth, file)
        return {"file": str(file), "params": {"label_names": phantom.labels}}

    models = {"perfect": None, "points": None}
    app = SimpleNamespace(
        _infers=models, known=lambda tasks, name, kind: tasks[name], infer=infer, datastore=lambda: store, studies="x"
    )
    web = FastAPI()
    install_errors(web, {})
    web.include_router(guarded_router(app))
    return TestClient(web, raise_server_exceptions=False)


def test_a_prediction_is_a_segmentation_of_its_series(
    client: TestClient, store: DicomWebDatastore, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    phantom = phantoms[0]

    address = {"image": phantom.series, "output": "dicom_seg"}
    answer = client.post("/infer/perfect", params=address, data={"params": '{"client_id": "anna"}'})

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom")
    ds = pydicom.dcmread(io.BytesIO(answer.content))
    read = read_segmentation(ds, store.source(phantom.series)[0])
    np.testing.assert_array_equal(read.mask[0].numpy(), phantom.mask)
    facts = seg_facts(ds)
    assert (facts.image, facts.author, facts.names) == (phantom.series, "anna", {1: "atrium", 2: "ventricle"})
    assert ds.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert not (tmp_path / "reply.nii.gz").exists()
    assert store.get_labeled_images() == []


def test_points_are_no_segmentation(client: TestClient, phantoms: list[DicomPhantom]) -> None:
    answer = client.post("/infer/points", params={"image": phantoms[0].series, "output": "dicom_seg"})

    assert answer.status_code == 422
    assert "makes no mask" in answer.json()["detail"]
