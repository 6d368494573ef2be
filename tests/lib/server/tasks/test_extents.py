"""The app with a method that learns from extents: typed, imported and derived ones, without and with masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medseg.files import write_json
from medseg.phantoms.chest import LABELS, make_chest, true_percent
from medseg.phantoms.study import write_grid
from medseg.server.app import MedsegApp
from medseg.transforms.io import read_mask

SHAPE = (24, 20, 8)


@pytest.fixture
def make_extent_app(tmp_path: Path) -> Any:
    """An app over four chests with region masks and no label."""
    studies = tmp_path / "study"
    for seed in range(4):
        chest = make_chest(seed, SHAPE)
        write_grid(studies / f"chest_{seed}.nii.gz", chest.image, chest.affine)
        write_grid(studies / "labels" / "regions" / f"chest_{seed}.nii.gz", chest.regions, chest.affine)
    write_json(studies / "labels.json", LABELS)

    def make(**conf: str) -> MedsegApp:
        settings = {
            "models": "dram",
            "device": "cpu",
            "tracking_uri": "off",
            "model_dir": str(tmp_path / "model"),
            "set": "iterations=4,epoch_iterations=2,width=4,amp=off,scale=1",
            "validation": "chest_3",
        }
        return MedsegApp(str(tmp_path / "app"), str(studies), {**settings, **conf})

    return make


def table(folder: Path, *lines: str) -> str:
    file = folder / "extents.csv"
    file.write_text("\n".join(lines))
    return str(file)


def test_extents_alone_train_validate_and_give_masks_to_correct(make_extent_app: Any, tmp_path: Path) -> None:
    rows = [f"chest_{seed},ann,{round(true_percent(make_chest(seed, SHAPE))[1])},5-60" for seed in range(4)]
    app = make_extent_app(weak_labels=table(tmp_path, "image,by,extent_left_lower,extent_right_upper", *rows))

    decision = app.train({"model": "dram"})["decision"]
    reply = app.infer({"model": "dram", "image": "chest_1", "result_extension": ".nii.gz"})
    saved = app.batch_infer({"model": "dram", "images": "unlabeled", "label_tag": "original"})
    app.scoring({"method": "dram"})
    sample = app.next_sample({"strategy": "dram", "client_id": "a"})

    assert decision["published"] is True
    assert (decision["labelled"], decision["validation"]) == (0, 1)
    assert 0 < decision["quality"] <= 1
    measurements = reply["params"]["measurements"]
    assert {"extent_left_lower", "residual_left_lower", "extent_lungs"} <= measurements.keys()
    assert "residual_left_middle" not in measurements  # nobody said anything of it
    assert read_mask(Path(reply["file"])).shape[1:] == SHAPE
    assert sorted(saved) == [f"chest_{seed}" for seed in range(4)]
    assert app.datastore().get_label_uri("chest_1", "original")
    assert sample["why"]


def test_a_corrected_mask_renews_the_extents(make_extent_app: Any, tmp_path: Path) -> None:
    app = make_extent_app()
    app.datastore().update_image_info(
        "chest_0", {"weak": {"extent": {"left_lower": 99}, "source": "reader", "by": "ann"}}
    )
    chest = make_chest(0, SHAPE)
    mask = write_grid(tmp_path / "mask.nii.gz", chest.mask, chest.affine)

    app.datastore().save_label("chest_0", str(mask), "final", {"client_id": "eve"})
    app.on_save_label("chest_0", "chest_0")

    weak = app.datastore().get_image_info("chest_0")["weak"]
    assert (weak["source"], weak["by"]) == ("mask", "eve")
    assert weak["extent"]["left_lower"] == pytest.approx(true_percent(chest)[1], abs=1e-3)
    assert app.study.settings.config("dram").masks == "voxels"  # type: ignore[attr-defined]


def test_a_bad_table_stops_the_start_with_its_line(make_extent_app: Any, tmp_path: Path) -> None:
    from medseg.errors import MedsegError

    bad = table(tmp_path, "image,extent_left_lower", "chest_0,10", "chest_1,ten")

    with pytest.raises(MedsegError, match=r"extents.csv line 3, column 'extent_left_lower': 'ten' is no number"):
        make_extent_app(weak_labels=bad)
