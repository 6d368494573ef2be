"""A session in OHIF: study list, panel, next sample, auto-segmentation, saving, training."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests

from medseg.server.dicom.archive import Archive
from medseg.transforms.io import read_mask

pytestmark = [pytest.mark.viewers, pytest.mark.server, pytest.mark.slow]

LABELMAP = """() => {
  const volume = window.services.segmentationService.getLabelmapVolume('1');
  return {
    values: Array.from(volume.voxelManager.getCompleteScalarDataArray()),
    dimensions: volume.dimensions, origin: volume.origin, spacing: volume.spacing,
    direction: Array.from(volume.direction),
  };
}"""
READY = "() => window.services?.segmentationService?.getLabelmapVolume('1')?.voxelManager"
PROGRESS = """() => {
  const bar = document.querySelector('.monaiLabelPanel .optionsTable .w3-orange');
  if (!bar || bar.getBoundingClientRect().width < 4) return false;
  const whole = bar.parentElement.getBoundingClientRect().width, percent = parseInt(bar.textContent);
  const seen = getComputedStyle(bar).backgroundColor != getComputedStyle(bar.parentElement).backgroundColor;
  return seen && Math.abs(bar.getBoundingClientRect().width / whole - percent / 100) < 0.02;
}"""
CORRECT = """(index) => {
  const manager = window.services.segmentationService.getLabelmapVolume('1').voxelManager;
  const values = manager.getCompleteScalarDataArray();
  for (const at of index) values[at] = 2;
  manager.setCompleteScalarDataArray(values);
}"""


def drawn(page: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the viewer shows: (x, y, z) labels, and the affine (LPS) of its grid."""
    got = page.evaluate(LABELMAP)
    mask = np.array(got["values"], np.uint8).reshape(got["dimensions"], order="F")
    affine = np.eye(4)
    affine[:3, :3] = np.array(got["direction"]).reshape(3, 3).T * np.array(got["spacing"])
    affine[:3, 3] = got["origin"]
    return mask, affine


def served(url: str, series: str, folder: Path) -> np.ndarray:
    """The model's mask as the server gives it to any client, (x, y, z)."""
    form = {"params": json.dumps({"result_extension": ".nrrd"})}
    answer = requests.post(f"{url}/infer/supervised", params={"image": series, "output": "image"}, data=form)
    answer.raise_for_status()
    file = folder / "served.nrrd"
    file.write_bytes(answer.content)
    return read_mask(file)[0].numpy()


def label_info(url: str, series: str) -> dict[str, Any]:
    """What the server knows of a finished label."""
    every = requests.get(f"{url}/datastore/", params={"output": "all"}).json()
    return dict(every["objects"][series]["labels"]["final"]["info"])


def export(page: Any, name: str, picture: Path | None = None) -> None:
    """The panel's menu, Export & Download, Export DICOM SEG; a name, Save; waits until it is stored."""
    menus = page.locator('button[aria-haspopup="menu"]:visible')
    for index in range(1, menus.count()):
        menus.nth(index).click()
        if page.get_by_role("menuitem", name="Export & Download").count():
            break
        page.keyboard.press("Escape")
    page.get_by_role("menuitem", name="Export & Download").hover()
    page.get_by_role("menuitem", name="Export DICOM SEG").click()
    page.get_by_text("Enter the report name").wait_for()
    page.get_by_text("Enter the report name").locator("xpath=following::input[1]").fill(name)
    if picture:
        page.screenshot(path=picture)
    with (
        page.expect_response(lambda a: a.request.method == "POST" and "/proxy/dicom/" in a.url) as stored,
        page.expect_response(lambda answer: "/medseg/outcome" in answer.url) as outcome,
    ):
        page.get_by_role("button", name="Save", exact=True).click()
    assert stored.value.status == 200
    told = outcome.value.json()
    assert told["state"] == "label"
    page.get_by_text(told["remarks"][0] if told["remarks"] else "The finished label of the case now").first.wait_for()


def test_a_session_in_ohif(session: Any, page: Any, pictures: Path, tmp_path: Path, training: Any) -> None:
    phantom, patient = session.phantoms[4], "PHANTOM-04"
    page.on("dialog", lambda dialog: dialog.accept())

    # the study list filters
    page.goto(f"{session.url}/ohif/", wait_until="domcontentloaded")
    page.get_by_role("button", name="Confirm and Hide").click()
    page.get_by_text("PHANTOM-00").first.wait_for()
    page.screenshot(path=pictures / "ohif-studies.png")
    page.locator('input[type="text"]').nth(1).fill(patient)  # name, MRN
    page.get_by_text("PHANTOM-00").first.wait_for(state="detached")
    assert page.get_by_text(patient).count() >= 1

    # the panel talks to the server the page came from, and lists its models
    study = requests.get(f"{session.url}/datastore/image/info", params={"image": phantom.series}).json()
    page.goto(
        f"{session.url}/ohif/monai-label?StudyInstanceUIDs={study['StudyInstanceUID']}", wait_until="domcontentloaded"
    )
    page.wait_for_selector(".monaiLabelPanel")
    assert page.locator("#monailabelServerURL").input_value() == f"{session.url}/"
    page.fill("#medsegAnnotator", "Dora Müller")
    page.click(".monaiLabelPanel .settingsTable button")
    page.wait_for_selector('label[for="tab-2"]')
    assert "supervised" in page.locator(".monaiLabelPanel select.selectBox").first.inner_text()
    page.wait_for_function(READY)

    # auto-segmentation draws the mask where it belongs
    with page.expect_response(lambda answer: "/infer/supervised" in answer.url):
        page.locator('button[title="Run Segmentation"]').click()
    page.wait_for_function(f"() => {{ const f = {LABELMAP}; return f().values.some(v => v > 0); }}")
    mask, affine = drawn(page)
    np.testing.assert_allclose(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, phantom.affine, atol=0.01)
    np.testing.assert_array_equal(mask, served(session.url, phantom.series, tmp_path))
    address = {"image": phantom.series, "output": "dicom_seg"}
    answer = requests.post(f"{session.url}/infer/supervised", params=address, data={"params": "{}"})
    segments = pydicom.dcmread(io.BytesIO(answer.content)).SegmentSequence
    assert [segment.SegmentLabel for segment in segments] == list(phantom.labels)
    page.wait_for_timeout(1000)
    page.screenshot(path=pictures / "ohif-segmentation.png")

    # what the annotator corrected and exported is the case's finished label
    corrected = mask.copy()
    corrected[10:14, 10:14, 5:8] = 2
    page.evaluate(CORRECT, np.flatnonzero((corrected != mask).ravel(order="F")).tolist())
    page.click('[data-cy="panelSegmentationWithTools-btn"]')
    page.get_by_text("Segmentation Tools").wait_for()
    export(page, "first reading", pictures / "ohif-save.png")
    final = label_info(session.url, phantom.series)
    assert (final["description"], final["author"]) == ("first reading", "Dora Müller")
    assert final["voxels"] == {name: int((corrected == value).sum()) for name, value in phantom.labels.items()}
    assert len(Archive(session.archive.dicomweb).series(Modality="SEG")) == 4

    # saved again, it is the label, and the first one its history
    corrected[20:24, 20:24, 5:8] = 2
    page.evaluate(CORRECT, np.flatnonzero((corrected == 2).ravel(order="F")).tolist())
    export(page, "second reading")
    final = label_info(session.url, phantom.series)
    assert (final["description"], final["author"]) == ("second reading", "Dora Müller")
    assert final["voxels"] == {name: int((corrected == value).sum()) for name, value in phantom.labels.items()}
    history = requests.get(f"{session.url}/medseg/history", params={"image": phantom.series}).json()
    assert [(version["version"], version["author"]) for version in history] == [(1, "Dora Müller")]

    # training starts and its progress shows; the next sample opens
    page.click('[data-cy="monailabel-btn"]')
    page.click(".monaiLabelPanel .settingsTable button")
    page.click('label[for="tab-1"]')
    with page.expect_response(lambda answer: answer.url.endswith("/train/") and answer.request.method == "POST"):
        page.get_by_role("button", name="Update Model").click()
    training.wait_until_it_runs(epochs=5)
    page.click(".monaiLabelPanel .settingsTable button")
    page.wait_for_function(PROGRESS)
    page.screenshot(path=pictures / "ohif-training.png")
    training.stop()
    page.locator(".monaiLabelPanel .optionsTable select").first.select_option("first")
    with page.expect_response(lambda answer: "/activelearning/first" in answer.url) as sample:
        page.get_by_role("button", name="Next Sample").click()
    following = sample.value.json()
    assert sample.value.request.post_data_json["client_id"] == "Dora Müller"
    page.get_by_text("Chosen because").wait_for()
    assert page.locator(".nextSampleForm", has_text=following["why"]).count() >= 1
    assert following["id"] in {other.series for other in session.phantoms[3:]} - {phantom.series}
    page.get_by_role("button", name="OK").click()
    page.wait_for_url(f"**/monai-label?StudyInstanceUIDs={following['StudyInstanceUID']}")

    assert page.foreign == []  # nothing is fetched from elsewhere


def test_a_click_on_the_second_label_paints_this_label(session: Any, page: Any) -> None:
    phantom = session.phantoms[5]
    second, value = list(phantom.labels.items())[1]
    study = requests.get(f"{session.url}/datastore/image/info", params={"image": phantom.series}).json()
    address = f"{session.url}/ohif/monai-label?StudyInstanceUIDs={study['StudyInstanceUID']}"
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector(".monaiLabelPanel")
    page.fill("#medsegAnnotator", "Dora Müller")
    page.click(".monaiLabelPanel .settingsTable button")
    page.wait_for_selector('label[for="tab-3"]')
    page.wait_for_function(READY)
    if page.get_by_role("button", name="Confirm and Hide").count():
        page.get_by_role("button", name="Confirm and Hide").click()

    page.get_by_text("Point Prompts", exact=True).click()
    tab = page.locator(".monaiLabelPanel .tab", has_text="Point Prompts")
    tab.locator("select.selectBox").select_option("supervised_deepgrow")
    tab.locator("tr.clickable-row", has_text=second).click()
    page.wait_for_timeout(2000)
    page.locator("canvas.cornerstone-canvas").first.click(delay=100)
    page.wait_for_timeout(2000)  # the viewer waits whether a second click makes it a double one
    with page.expect_response(lambda answer: "/infer/supervised_deepgrow" in answer.url) as grown:
        tab.get_by_title("Run PointPrompts").click()

    assert grown.value.status == 200
    sent = grown.value.request.post_data
    assert f'"label":"{second}"' in sent.replace(" ", "")
    page.wait_for_function(f"() => {{ const f = {LABELMAP}; return f().values.some(v => v > 0); }}")
    (clicked,) = json.loads(sent[sent.index("{") : sent.rindex("}") + 1])["foreground"]
    mask, _ = drawn(page)
    assert mask[tuple(clicked)] == value
    assert set(np.unique(mask)) == {0, value}
