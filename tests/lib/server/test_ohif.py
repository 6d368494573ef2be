"""The web viewer's files, without a browser."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from medseg.server.ohif import (
    MODE_BUTTONS,
    MODE_PANELS,
    PANEL,
    ROOT,
    SAY_SO,
    SEND,
    SIGN,
    STORE,
    file_of,
    ohif_router,
    with_segmentation_panel,
)


@pytest.fixture
def client() -> TestClient:
    web = FastAPI()
    web.include_router(ohif_router())
    return TestClient(web, base_url="http://127.0.0.1:8123")


def test_files_in_folders_are_themselves(client: TestClient) -> None:
    answer = client.get("/ohif/assets/favicon-16x16.png")

    assert answer.headers["content-type"] == "image/png"
    assert answer.content == (ROOT / "assets" / "favicon-16x16.png").read_bytes()


@pytest.mark.parametrize("path", ["", "monai-label?StudyInstanceUIDs=1.2", "viewer", "index.html"])
def test_the_viewers_own_routes_are_its_start_page_without_foreign_links(client: TestClient, path: str) -> None:
    answer = client.get(f"/ohif/{path}")

    assert "<title>OHIF Viewer</title>" in answer.text
    assert "https://" not in answer.text
    assert "http%3A%2F%2F127.0.0.1%3A8123%2F" in answer.headers["set-cookie"]


def test_nothing_outside_the_viewer_is_served() -> None:
    assert file_of("../index.html") is None
    assert file_of("../../ohif.py") is None
    assert file_of("app-config.js") == ROOT / "app-config.js"


def test_the_segmentation_panel_and_its_brushes_stand_beside_monai_labels(client: TestClient) -> None:
    (mode,) = [f for f in ROOT.glob("*.js") if MODE_PANELS in f.read_text(encoding="utf-8")]

    text = client.get(f"/ohif/{mode.name}").text

    assert "rightPanels: [monailabel.monaiLabel, cornerstone.panelTool]" in text
    assert "toolbarService.addButtons([{\n  id: 'BrushTools'" in text
    assert MODE_BUTTONS not in text


def test_the_panel_is_mended(client: TestClient) -> None:
    (panel,) = [f for f in ROOT.glob("*.js") if PANEL[0][0] in f.read_text(encoding="utf-8")]
    before = panel.read_text(encoding="utf-8")

    text = client.get(f"/ohif/{panel.name}").text

    assert all(text.count(right) == before.count(wrong) >= 1 for wrong, right in PANEL)
    assert text.count("localStorage.setItem('medseg-annotator'") == 2  # the field, and who asks for a next sample


def test_export_stores_in_the_viewers_archive(client: TestClient) -> None:
    (commands,) = [f for f in ROOT.glob("*.js") if STORE.search(f.read_text(encoding="utf-8"))]

    text = client.get(f"/ohif/{commands.name}").text

    assert "dataSource = extensionManager.getActiveDataSource()[0]\n    }) => {" in text
    assert text.count(SAY_SO) == text.count(f"{SIGN}\n      {SEND}") == 1


def test_another_build_of_the_viewer_is_left_as_it_is() -> None:
    assert with_segmentation_panel(MODE_PANELS) == MODE_PANELS


def test_style_sheets_fetch_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/ohif/app.bundle.css")

    assert "fonts.googleapis.com" in (ROOT / "app.bundle.css").read_text(encoding="utf-8")
    assert "fonts.googleapis.com" not in answer.text
    assert len(answer.text) > 10_000
