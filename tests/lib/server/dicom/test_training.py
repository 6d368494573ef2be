"""Training over an archive, on a machine that has nothing of it yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from pydicom.uid import generate_uid

from medseg.methods import method_class
from medseg.server.app import MedsegApp
from medseg.server.dicom.orthanc import Orthanc
from medseg.server.dicom.phantoms import DicomPhantom
from medseg.transforms.io import write_volume

pytestmark = pytest.mark.viewers

CONF = {
    "models": "supervised",
    "set": "iterations=4,epoch_iterations=2,width=4,patch=16,16,8,amp=off",
    "device": "cpu",
    "tracking_uri": "off",
}


def make_colour_series(folder: Path, source: Path) -> Path:
    """A picture of a dose report, as archives hold them among the CT series."""
    ds = pydicom.dcmread(source)
    ds.SeriesInstanceUID, ds.SOPInstanceUID = generate_uid(), generate_uid()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = bytes(ds.Rows * ds.Columns * 3)
    folder.mkdir()
    ds.save_as(folder / "colour.dcm")
    return folder


def test_another_machine_trains_on_the_archives_labels_and_leaves_out_what_is_no_image(
    archive: Orthanc, phantoms: list[DicomPhantom], phantom_files: tuple[Path, list[DicomPhantom]], tmp_path: Path
) -> None:
    first = MedsegApp(str(tmp_path / "app"), archive.dicomweb, {**CONF, "model_dir": str(tmp_path / "first")})
    for phantom in phantoms[:3]:
        mask = MetaTensor(
            torch.from_numpy(phantom.mask.astype(np.uint8))[None], affine=torch.from_numpy(phantom.affine)
        )
        info = {"client_id": "anna", "label_info": [{"name": name} for name in phantom.labels]}
        file = write_volume(tmp_path / "mask.nii.gz", mask)
        first.datastore().save_label(phantom.series, str(file), "final", info)
    slice_file = next(f for f in sorted(phantom_files[0].rglob("*.dcm")))
    archive.upload(make_colour_series(tmp_path / "colour", slice_file))

    second = MedsegApp(str(tmp_path / "app"), archive.dicomweb, {**CONF, "model_dir": str(tmp_path / "second")})
    decision = second.train({"model": "supervised"})["decision"]

    assert (decision["published"], decision["version"]) == (True, 1)
    assert decision["labelled"] + decision["validation"] == 3
    assert second.study.labels == phantoms[0].labels
    fetched = {path.name.removesuffix(".nii.gz") for path in (tmp_path / "second").rglob("images/*.nii.gz")}
    assert fetched == {phantom.series for phantom in phantoms[:3]}  # this method learns nothing from the others

    cases, skipped = second.study.usable_cases(method_class("caml"))
    assert {case.id for case in cases} == {phantom.series for phantom in phantoms}
    (reason,) = skipped.values()
    assert "in colour" in reason
