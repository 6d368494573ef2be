"""A session in 3D Slicer, replayed: the requests of its MONAI Label module, by the client file that ships with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from monai.data import MetaTensor

from medseg.inference.markups import markups_json
from medseg.methods.base import Markup, Measurement
from medseg.transforms.io import read_image, read_mask, write_volume

AUTO_RUN = {"result_extension": ".nrrd", "result_dtype": "uint8", "largest_cc": False}


@pytest.mark.parametrize("kind", ["Fiducial", "Line", "Angle", "Curve"])
def test_drawn_measurements_are_markups_as_slicer_reads_them(kind: str, slicer: Any) -> None:
    points = ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (7.0, 8.0, 9.0))[: 2 if kind == "Line" else 3]
    content = json.loads(json.dumps(markups_json([Markup(kind, "x", points, measurement=Measurement(12.5, "deg"))])))

    slicer.check_markups(content)
    assert content["markups"][0]["controlPoints"][0]["position"] == [-1.0, -2.0, 3.0]  # RAS to LPS


@pytest.mark.viewers
@pytest.mark.server
@pytest.mark.slow
def test_a_session_in_slicer(session: Any, slicer: Any, tmp_path: Path, training: Any) -> None:
    client = slicer(session.url, tmp_path)
    phantom = session.phantoms[3]

    # connecting
    info = client.info()
    assert info["labels"] == list(phantom.labels)
    assert client.train_status(check_if_running=True) is False

    # next sample: the reason comes with it, and the same image goes to nobody else
    sample = client.next_sample("first", {})
    other = slicer(session.url, tmp_path)
    other._client_id = "somebody-else"
    assert sample["why"]
    assert sample["id"] != other.next_sample("first", {})["id"]
    image = read_image(Path(sample["path"]))
    assert sample["id"] in client.datastore()["objects"]

    # auto-run and clicks, for every model
    name = info["labels"][0]
    for model, about in client.info()["models"].items():
        click = [5, 6, 7]
        params = dict(AUTO_RUN)
        if about["type"] == "deepedit":
            params |= {**{label: [] for label in info["labels"]}, name: [click], "label": name}
        elif about["type"] == "deepgrow":
            params |= {"label": name, "foreground": [click], "background": []}
        file, reply = client.infer(model, sample["id"], params)
        if about["type"] == "detection":
            slicer.check_markups(json.loads(Path(file).read_text()))
            continue
        mask = read_mask(Path(file))
        np.testing.assert_allclose(mask.affine.numpy(), image.affine.numpy(), atol=1e-3)
        assert mask.shape[1:] == image.shape[1:]
        assert list(reply["label_names"]) == info["labels"]
        if about["type"] in ("deepedit", "deepgrow"):
            assert mask[0, 5, 6, 7] == 1

    # uncertainty as a volume on request
    _, reply = client.infer("supervised", sample["id"], {**AUTO_RUN, "uncertainty": True})
    volume = tmp_path / "uncertainty.nii.gz"
    volume.write_bytes(requests.get(session.url + reply["uncertainty"]["url"]).content)
    np.testing.assert_allclose(read_image(volume).affine.numpy(), image.affine.numpy(), atol=1e-3)
    assert read_image(volume).shape == image.shape

    # submit with Slicer's own order of voxel values, one of them a segment that stayed empty
    truth = next(p for p in session.phantoms if p.series == sample["id"])
    swapped = MetaTensor(torch.from_numpy(np.choose(truth.mask, [0, 3, 1]).astype(np.uint8))[None], affine=image.affine)
    second, first = (label for label, _ in sorted(truth.labels.items(), key=lambda item: -item[1]))
    segments = [{"name": second, "idx": 1}, {"name": "background", "idx": 2}, {"name": first, "idx": 3}]
    file = write_volume(tmp_path / "label.nrrd", swapped)
    saved = client.save_label(sample["id"], str(file), params={"label_info": segments, "model": "supervised"})
    assert isinstance(saved["remarks"], list)
    kept = tmp_path / "kept.nii.gz"
    kept.write_bytes(
        requests.get(f"{session.url}/datastore/label", params={"label": sample["id"], "tag": "final"}).content
    )
    np.testing.assert_array_equal(read_mask(kept)[0].numpy(), truth.mask)

    # update of a finished label: the previous one stays in the history
    empty = MetaTensor(torch.zeros_like(swapped.as_tensor()), affine=image.affine)
    again = client.save_label(sample["id"], str(write_volume(file, empty)), params={"label_info": segments})
    assert "the label is empty" in again["remarks"][0]
    history = requests.get(f"{session.url}/medseg/history", params={"image": sample["id"]}).json()
    assert [version["author"] for version in history] == ["user-slicer"]

    # an image of one's own
    own = write_volume(tmp_path / "mine.nii.gz", image)
    opened = client.create_session(str(own))
    file, _ = client.infer("supervised", "", AUTO_RUN, session_id=opened["session_id"])
    assert read_mask(Path(file)).shape[1:] == image.shape[1:]

    # training, polled as the module does
    client.train_start("supervised", {})
    training.wait_until_it_runs(poll=client.train_status)
    assert client.train_status(check_if_running=True) is True
    client.train_stop()
