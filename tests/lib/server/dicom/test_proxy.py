"""The archive as a viewer reaches it through the server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from dicomweb_client.web import DICOMwebClient
from fastapi import FastAPI
from fastapi.testclient import TestClient

from medseg.errors import ConflictError, NotFoundError
from medseg.server.dicom.archive import Archive, SeriesEntry
from medseg.server.dicom.datastore import DicomWebDatastore
from medseg.server.dicom.orthanc import Orthanc
from medseg.server.dicom.phantoms import DicomPhantom
from medseg.server.dicom.proxy import address, proxy_router
from medseg.server.dicom.seg_write import SegmentationFacts, segmentation
from medseg.transforms.io import read_mask

ROOT = "http://archive/dicom-web"


@pytest.mark.parametrize(
    ("path", "query", "url"),
    [
        ("qido/studies", "PatientID=A*&limit=2", f"{ROOT}/studies?PatientID=A*&limit=2"),
        ("wado/studies/1.2/metadata", "", f"{ROOT}/studies/1.2/metadata"),
        ("studies", "", f"{ROOT}/studies"),
        ("stow/studies/1.2", "", f"{ROOT}/studies/1.2"),
    ],
)
def test_addresses(path: str, query: str, url: str) -> None:
    assert address(ROOT, path, query) == url


@pytest.mark.viewers
class TestOverAnArchive:
    @pytest.fixture
    def store(self, archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path) -> DicomWebDatastore:
        return DicomWebDatastore(Archive(archive.dicomweb), tmp_path / "here")

    @pytest.fixture
    def client(self, store: DicomWebDatastore) -> TestClient:
        web = FastAPI()
        web.include_router(proxy_router(SimpleNamespace(datastore=lambda: store)))
        return TestClient(web)

    def test_searches_are_filtered(self, client: TestClient) -> None:
        everything = client.get("/proxy/dicom/qido/studies")
        one = client.get("/proxy/dicom/qido/studies", params={"PatientID": "PHANTOM-02"})

        assert len(everything.json()) == 4
        assert [study["00100020"]["Value"] for study in one.json()] == [["PHANTOM-02"]]

    def test_the_archives_errors_are_passed_on(self, client: TestClient, store: DicomWebDatastore) -> None:
        assert client.get("/proxy/dicom/wado/studies/1.2.3/metadata").status_code == 404
        store.archive.url = "http://127.0.0.1:9/dicom-web"
        assert client.get("/proxy/dicom/qido/studies").status_code == 502

    def test_a_stored_segmentation_is_a_finished_label_by_whoever_holds_the_image(
        self, client: TestClient, store: DicomWebDatastore, phantoms: list[DicomPhantom]
    ) -> None:
        phantom = phantoms[2]
        grid, header = store.source(phantom.series)
        ds = segmentation(phantom.mask, {"organ": 1, "vessel": 2}, grid, header, facts=SegmentationFacts(author=""))
        store.holder = lambda image: "dora"
        labelled: list[str] = []
        store.on_label = labelled.append
        found = store.source(phantoms[1].series)
        Archive(store.archive.url).store(segmentation(phantoms[1].mask, {"organ": 1, "vessel": 2}, *found))

        viewer = DICOMwebClient("http://viewer/proxy/dicom", session=_Session(client))
        viewer.store_instances([ds])

        assert sorted(labelled) == sorted(store.get_labeled_images()) == sorted(p.series for p in phantoms[1:3])
        assert store.get_label_info(phantoms[1].series, "final")["author"] == ""  # the holder did not store this one
        info = store.get_label_info(phantom.series, "final")
        assert info["author"] == "dora"
        assert info["voxels"] == {"organ": int((phantom.mask == 1).sum()), "vessel": int((phantom.mask == 2).sum())}
        mask = read_mask(Path(store.get_label_uri(phantom.series, "final")))
        np.testing.assert_array_equal(mask[0].numpy(), phantom.mask)

    def test_the_viewer_learns_what_became_of_what_it_stored(
        self, client: TestClient, store: DicomWebDatastore, phantoms: list[DicomPhantom]
    ) -> None:
        viewer = DICOMwebClient("http://viewer/proxy/dicom", session=_Session(client))
        grid, header = store.source(phantoms[0].series)
        empty, broken = (
            segmentation(mask, {"organ": 1, "vessel": 2}, grid, header)
            for mask in (0 * phantoms[0].mask, phantoms[0].mask)
        )
        for frame in broken.PerFrameFunctionalGroupsSequence:
            del frame.PlanePositionSequence
        told = []
        for ds in (empty, broken):
            viewer.store_instances([ds])
            told.append(store.outcome(str(ds.SeriesInstanceUID)))

        assert [(entry["state"], entry["image"]) for entry in told] == [
            ("label", phantoms[0].series),
            ("refused", phantoms[0].series),
        ]
        assert "the label is empty" in told[0]["remarks"][0]
        assert "where its frames lie" in told[1]["remarks"][0]
        with pytest.raises(NotFoundError, match="not looked at yet"):
            store.outcome("1.2.3")

    def test_what_the_archive_has_taken_is_acknowledged_even_if_it_is_away_now(
        self,
        client: TestClient,
        store: DicomWebDatastore,
        phantoms: list[DicomPhantom],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        ds = segmentation(phantoms[0].mask, {"organ": 1, "vessel": 2}, *store.source(phantoms[0].series))

        def away(**conditions: str) -> list[SeriesEntry]:
            raise ConflictError("the archive does not answer")

        with monkeypatch.context() as patched:
            patched.setattr(store.archive, "series", away)
            DICOMwebClient("http://viewer/proxy/dicom", session=_Session(client)).store_instances([ds])
        store.refresh()

        assert store.get_labeled_images() == [phantoms[0].series]


class _Session(requests.Session):
    """Sends a DICOMweb client's requests to a test client."""

    def __init__(self, client: TestClient) -> None:
        super().__init__()
        self._client = client

    def post(self, url: str, data: bytes | None = None, **more: object) -> requests.Response:  # type: ignore[override]
        headers = dict(more.get("headers") or {})  # type: ignore[call-overload]
        got = self._client.post(url.removeprefix("http://viewer"), content=data, headers=headers)
        answer = requests.Response()
        answer.status_code, answer._content = got.status_code, got.content
        answer.headers.update(got.headers)
        answer.url = url
        return answer
