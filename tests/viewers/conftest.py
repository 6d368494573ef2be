"""A study in an Orthanc archive, a server over it with a first model, and a browser."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from monai.data import MetaTensor

from medseg.phantoms.study import StudyOptions
from medseg.server.app import MedsegApp
from medseg.server.dicom import orthanc
from medseg.server.dicom.phantoms import DicomPhantom, write_phantoms
from medseg.server.launch import running_server
from medseg.transforms.io import write_volume

PHANTOMS = StudyOptions(shape=(48, 48, 24), labels=2, prefix="phantom")
COUNT, LABELLED = 8, 3
CONF = {
    "models": "supervised",
    "set": "iterations=60,epoch_iterations=20,width=8,patch=24,24,16,amp=off",
    "device": "cpu",
    "tracking_uri": "off",
    "auto_scoring": "false",
}
PLUGIN = Path(sys.prefix) / "monailabel" / "plugins" / "slicer" / "MONAILabel" / "MONAILabelLib" / "client.py"
REQUIRED = {"type", "coordinateSystem", "controlPoints"}
TYPES = {"Fiducial", "Line", "Angle", "Curve", "ClosedCurve", "Plane", "ROI"}
SYSTEMS = {"LPS", "RAS"}
STATUS = {"undefined", "preview", "defined"}
"""Facts of Slicer's markups schema v1.0.3."""
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--disable-background-networking",
)


@dataclass(frozen=True)
class Session:
    """A running server over an archive.

    Attributes:
        url: of the server.
        archive: the archive.
        phantoms: in order of their patients; the first `LABELLED` have finished labels by `anna`.
    """

    url: str
    archive: orthanc.Orthanc
    phantoms: list[DicomPhantom]


def refuse(reason: str) -> None:
    """Skip, or fail where viewers are required."""
    if os.environ.get("MEDSEG_REQUIRE_VIEWERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Session]:
    """An archive of phantoms, some labelled, and a server with a model that learnt from them."""
    if missing := orthanc.missing_parts():
        refuse(missing)
    folder = tmp_path_factory.mktemp("session")
    phantoms = write_phantoms(folder / "dicom", COUNT, PHANTOMS)
    with orthanc.running(folder / "orthanc") as archive:
        archive.upload(folder / "dicom")
        conf = {**CONF, "model_dir": str(folder / "model")}
        app = MedsegApp(str(folder / "app"), archive.dicomweb, conf)
        for phantom in phantoms[:LABELLED]:
            label(app, phantom, folder)
        app.train({"model": "supervised"})
        longer = {**conf, "set": conf["set"].replace("iterations=60", "iterations=1000", 1)}  # the tests stop it
        with running_server(root / "apps" / "medseg", archive.dicomweb, longer, folder / "server.log") as server:
            yield Session(server.url, archive, phantoms)


def label(app: Any, phantom: DicomPhantom, folder: Path) -> None:
    """Save a phantom's truth as the finished label, in another order than the app's."""
    mask = MetaTensor(torch.from_numpy(phantom.mask.copy())[None], affine=torch.from_numpy(phantom.affine))
    info = {"client_id": "anna", "label_info": [{"name": name, "idx": value} for name, value in phantom.labels.items()]}
    app.datastore().save_label(phantom.series, str(write_volume(folder / "mask.nii.gz", mask)), "final", info)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go: the folder MEDSEG_SCREENSHOTS names, for the documentation, else a temporary one."""
    folder = Path(os.environ.get("MEDSEG_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(session: Session) -> Iterator[Any]:
    """A page of headless Chromium that reaches this machine only."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        refuse("Chromium is not installed; apt-get install chromium")
    if importlib.util.find_spec("playwright") is None:
        refuse("Playwright is not installed; pip install -r requirements.txt")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(CHROMIUM_FLAGS))
        opened = browser.new_page(viewport={"width": 1280, "height": 800})
        opened.set_default_timeout(120_000)
        opened.foreign = []
        opened.on("request", lambda request: _note(opened.foreign, request.url, session.url))
        yield opened
        browser.close()


def _note(foreign: list[str], url: str, server: str) -> None:
    if not url.startswith((server, "data:", "blob:")):
        foreign.append(url)


class Training:
    """The server's training, from outside."""

    def __init__(self, url: str) -> None:
        self.url = url

    def wait_until_it_runs(
        self, poll: Callable[[], Any] = lambda: None, epochs: int = 1, seconds: float = 240.0
    ) -> None:
        """Wait for the first finished epochs of a training that is not over."""
        deadline = time.monotonic() + seconds
        while True:
            poll()
            stats = requests.get(f"{self.url}/info/", timeout=60).json()["train_stats"]["supervised"]
            if stats.get("epoch", 0) >= epochs and not stats.get("total_time"):
                return
            assert time.monotonic() < deadline, f"no epoch ended in {seconds} s: {stats}"
            time.sleep(0.5)

    def stop(self) -> None:
        """Stop it, and wait for its end."""
        requests.delete(f"{self.url}/train/", timeout=60)
        deadline = time.monotonic() + 60
        while requests.get(f"{self.url}/train/", params={"check_if_running": "true"}, timeout=60).ok:
            assert time.monotonic() < deadline, "the training does not stop"
            time.sleep(0.3)


@pytest.fixture
def training(session: Session) -> Iterator[Training]:
    """No training runs before and after a test."""
    control = Training(session.url)
    control.stop()
    yield control
    control.stop()


class Slicer:
    """3D Slicer's MONAI Label module: `slicer(url, folder)` is its own client."""

    def __call__(self, url: str, folder: Path) -> Any:
        spec = importlib.util.spec_from_file_location("slicer_monailabel_client", PLUGIN)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.MONAILabelClient(url, tmpdir=str(folder), client_id="user-slicer")

    @staticmethod
    def check_markups(content: dict[str, Any]) -> None:
        """What Slicer's reader of markups insists on."""
        assert "markups-schema-v1" in content["@schema"]
        for markup in content["markups"]:
            assert set(markup) >= REQUIRED
            assert markup["type"] in TYPES
            assert markup["coordinateSystem"] in SYSTEMS
            for point in markup["controlPoints"]:
                assert len(point["position"]) == 3
                assert all(isinstance(value, float) for value in point["position"])
                assert point["positionStatus"] in STATUS
            for measurement in markup["measurements"]:
                assert isinstance(measurement["value"], float)
                assert isinstance(measurement["units"], str)


@pytest.fixture(scope="session")
def slicer() -> Slicer:
    """What Slicer's module does."""
    return Slicer()
