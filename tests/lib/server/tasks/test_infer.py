from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from medseg.cases import Case
from medseg.errors import ConflictError, MedsegError, NotFoundError
from medseg.server.tasks import infer as infer_module
from medseg.server.tasks.infer import _as_requested
from medseg.transforms.io import read_image, read_mask


def infer(app: Any, image: str = "organ_003", **options: Any) -> dict[str, Any]:
    reply: dict[str, Any] = app.infer({"model": "supervised", "image": image, **options})
    return reply


def test_before_a_model_exists_the_answer_says_what_to_do(make_app: Any) -> None:
    app = make_app()

    assert app.info()["models"] == {}
    with pytest.raises(ConflictError, match=r"supervised has no model yet: 3 images are labelled; train it"):
        infer(app)


def test_mask_lies_on_the_images_own_grid(trained_app: Any, tmp_path: Path) -> None:
    reply = infer(trained_app, result_extension=".nrrd", result_dtype="uint8")

    mask, image = read_mask(Path(reply["file"])), read_image(tmp_path / "study" / "organ_003.nii.gz")
    assert reply["file"].endswith(".nrrd")
    assert mask.shape[1:] == image.shape[1:]
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    assert set(np.unique(mask)) <= {0, 1}
    assert (reply["params"]["version"], reply["params"]["label_names"]) == (1, {"atrium": 1})


@pytest.mark.parametrize(
    ("dtype", "pixel"), [("uint8", sitk.sitkUInt8), ("uint16", sitk.sitkUInt16), ("float32", sitk.sitkFloat32)]
)
def test_result_dtype(trained_app: Any, dtype: str, pixel: int) -> None:
    file = infer(trained_app, result_extension=".nrrd", result_dtype=dtype)["file"]

    assert sitk.ReadImage(file).GetPixelID() == pixel


def test_result_compress_false_gives_a_raw_file(trained_app: Any) -> None:
    plain = infer(trained_app, result_extension=".nrrd", result_compress=False)["file"]
    packed = infer(trained_app, result_extension=".nrrd")["file"]

    assert b"encoding: raw" in Path(plain).read_bytes()[:800]
    assert b"encoding: gzip" in Path(packed).read_bytes()[:800]
    np.testing.assert_array_equal(read_mask(Path(plain)), read_mask(Path(packed)))


@pytest.mark.parametrize("options", [{"result_extension": ".exe"}, {"result_dtype": "object"}, {"device": "tpu"}])
def test_unknown_forms_are_named(trained_app: Any, options: dict[str, Any]) -> None:
    with pytest.raises(MedsegError, match=str(next(iter(options.values())))):
        infer(trained_app, **options)


def test_unknown_images_and_models_are_named(trained_app: Any) -> None:
    with pytest.raises(NotFoundError, match="nope"):
        infer(trained_app, "nope")
    with pytest.raises(NotFoundError, match="known: supervised"):
        trained_app.infer({"model": "nope", "image": "organ_003"})


def test_uploaded_file_is_predicted_and_never_saved(trained_app: Any, tmp_path: Path) -> None:
    image = tmp_path / "upload.nii.gz"
    shutil.copy(tmp_path / "study" / "organ_004.nii.gz", image)

    uploaded = infer(trained_app, str(image), save_label=True)
    known = infer(trained_app, "organ_004")

    np.testing.assert_array_equal(read_mask(Path(uploaded["file"])), read_mask(Path(known["file"])))
    assert "original" not in trained_app.datastore().get_labels_by_image_id("organ_004")


def test_save_label_keeps_the_mask_as_original(trained_app: Any) -> None:
    reply = infer(trained_app, save_label=True, client_id="ann")

    info = trained_app.datastore().get_label_info("organ_003", "original")
    assert reply["label"] == "organ_003"
    assert (info["params"]["version"], info["author"]) == (1, "ann")


def test_reason_of_an_image_that_was_handed_out(trained_app: Any) -> None:
    assert "why" not in infer(trained_app)["params"]
    trained_app.study.leases.take(
        [type("S", (), {"id": "organ_003", "value": 0.4, "why": "entropy 0.40"})()], "ann", "x"
    )

    assert infer(trained_app)["params"]["why"] == "entropy 0.40"


def test_uncertainty_is_kept_on_request(trained_app: Any) -> None:
    result = infer(trained_app, uncertainty=True)["params"]

    file = trained_app._infers["supervised"].uncertainty_file("organ_003")
    assert 0 <= result["uncertainty"]["mean"] <= result["uncertainty"]["max"] <= 1
    assert read_image(file).shape == (1, 24, 24, 16)


def test_another_version_is_served_at_the_next_request(trained_app: Any) -> None:
    registry = trained_app.study.registry
    assert infer(trained_app)["params"]["version"] == 1
    copy = trained_app.study.folder / "copy"
    shutil.copytree(registry.champion("supervised").folder, copy)
    config = (copy / "config.json").read_text().replace('"seed": 0', '"seed": 5')
    (copy / "config.json").write_text(config)
    registry.promote("supervised", registry.publish("supervised", copy, {}))

    assert infer(trained_app)["params"]["version"] == 2
    registry.rollback("supervised", 1)
    assert infer(trained_app)["params"]["version"] == 1


def test_requests_at_the_same_time_agree(trained_app: Any) -> None:
    expected = read_mask(Path(infer(trained_app)["file"]))
    trained_app._infers["supervised"].cache._loaded.clear()
    masks: list[Any] = []

    def run() -> None:
        masks.append(read_mask(Path(infer(trained_app)["file"])))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(masks) == 4
    for mask in masks:
        np.testing.assert_array_equal(mask, expected)


def test_out_of_memory_is_a_sentence(trained_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = trained_app._infers["supervised"].cache.get("cpu")

    def fail(case: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loaded.predictor, "predict", fail)

    with pytest.raises(ConflictError, match="too little free memory for image organ_003"):
        infer(trained_app)


def test_damaged_image_is_named(trained_app: Any, tmp_path: Path) -> None:
    (tmp_path / "study" / "organ_004.nii.gz").write_bytes(b"x")

    with pytest.raises(MedsegError, match="organ_004"):
        infer(trained_app, "organ_004")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("vb2", "vb2"),
        (["automatic", "vb1", "vb2"], "vb1"),
        ("automatic", "vb1"),
        (["vb2"], "vb2"),
        ("", "vb1"),
        (None, "vb1"),
    ],
)
def test_domain_of_a_request_wins_unless_it_is_left_open(sent: object, expected: str) -> None:
    known = Case("a", Path("a.nii.gz"), domain="vb1")
    assert _as_requested(known, {"domain": sent}).domain == expected


@pytest.mark.parametrize("broken", ["write_volume", "uncertainty", "save_label"])
def test_an_inference_that_fails_leaves_no_file_behind(
    trained_app: Any, monkeypatch: pytest.MonkeyPatch, temporary: Path, broken: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if broken == "write_volume":
        monkeypatch.setattr(infer_module, "write_volume", fail)
    elif broken == "uncertainty":
        monkeypatch.setattr(trained_app._infers["supervised"], "_keep_uncertainty", fail)
    else:
        monkeypatch.setattr(trained_app.datastore(), "save_label", fail)

    with pytest.raises(OSError, match="No space left"):
        infer(trained_app, uncertainty=True, save_label=True)

    assert list(temporary.glob("medseg-*")) == []
