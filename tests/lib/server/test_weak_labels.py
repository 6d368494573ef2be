from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medseg.cases import Case
from medseg.errors import UnusableInputError
from medseg.phantoms.chest import make_chest, true_percent
from medseg.phantoms.study import write_grid
from medseg.server import weak_labels
from medseg.server.datastore import MedsegDatastore
from medseg.server.weak_labels import derive_weak, import_weak
from medseg.weak import parse_weak


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    for seed in (0, 1):
        chest = make_chest(seed, (24, 20, 8))
        write_grid(folder / f"c{seed}.nii.gz", chest.image, chest.affine)
    return folder


def table(study: Path, *lines: str) -> Path:
    file = study.parent / "extents.csv"
    file.write_text("\n".join(lines))
    return file


def test_a_table_goes_into_the_infos_and_stays(study: Path) -> None:
    updated = import_weak(
        MedsegDatastore(study), table(study, "image,by,patient,extent_1", "c0,ann,P7,10-25", "c1,,,5")
    )

    info = MedsegDatastore(study).get_image_info("c0")  # read again from disk
    assert updated == ["c0", "c1"]
    assert info["weak"]["extent"] == {"1": [10.0, 25.0]}
    assert info["weak"]["by"] == "ann"
    assert info["patient"] == "P7"


def test_nothing_is_half_imported(study: Path) -> None:
    store = MedsegDatastore(study)

    with pytest.raises(UnusableInputError, match="line 3"):
        import_weak(store, table(study, "image,extent_1", "c0,10", "c1,400"))

    assert "weak" not in store.get_image_info("c0")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (
            "extent_1,extent_9",
            r"line 3, column 'extent_9': there is no region '9'.*1 \(left_lower\), 2.*6 \(right_upper\)",
        ),
        (
            "extent_1,extent_left_lowr",
            "line 2, column 'extent_left_lowr': no region is called 'left_lowr'; give a number or one of left_",
        ),
        ("extent_1,score_left", "line 3, column 'score_left': there is no region 'left'"),
        ("extent_1,extent_left_lower", "line 3: '1' and 'left_lower' are one region, but say 10.0 and 5.0"),
    ],
)
def test_a_region_that_the_mask_does_not_have(study: Path, columns: str, reason: str) -> None:
    store = MedsegDatastore(study)
    chest = make_chest(1, (24, 20, 8))
    store.save_label("c1", str(write_grid(study.parent / "r.nii.gz", chest.regions, chest.affine)), "regions", {})

    with pytest.raises(UnusableInputError, match=reason):
        import_weak(store, table(study, f"image,{columns}", "c0,10,5", "c1,10,5"))

    assert "weak" not in store.get_image_info("c0")


def test_an_info_is_checked_against_the_region_mask(study: Path) -> None:
    store = MedsegDatastore(study)
    chest = make_chest(1, (24, 20, 8))
    lungs = (chest.regions > 0).astype(np.uint8)
    store.save_label("c1", str(write_grid(study.parent / "r.nii.gz", lungs, chest.affine)), "regions", {})

    # c0 has no region mask: any region may come
    store.update_image_info("c0", {"weak": {"extent": {"Left-Lower": 5, "9": 5}}})
    with pytest.raises(
        UnusableInputError, match="image c0: no region is called 'left_lwer'; give a number or one of left_"
    ):
        store.update_image_info("c0", {"weak": {"extent": {"left_lwer": 5}}})
    for extent in ({"left_lower": 5}, {"right": [5, 10]}, {"6": 5}):  # a lung mask is split, by thirds or sides
        store.update_image_info("c1", {"weak": {"extent": extent}})
    with pytest.raises(UnusableInputError, match="image c1: there is no region 'left_lowr'"):
        store.update_image_info("c1", {"weak": {"extent": {"left_lowr": 5}}})
    with pytest.raises(UnusableInputError, match="image c1: there is no region '7'"):
        store.update_image_info("c1", {"weak": {"scores": {"7": 5}}})
    assert store.get_image_info("c1")["weak"]["extent"] == {"6": 5}


def test_lobes_by_any_scheme_that_fits(study: Path) -> None:
    store = MedsegDatastore(study)
    chest = make_chest(1, (24, 20, 8))
    lobes = np.where(chest.regions > 5, 5, chest.regions).astype(np.uint8)
    store.save_label("c1", str(write_grid(study.parent / "r.nii.gz", lobes, chest.affine)), "regions", {})

    store.update_image_info("c1", {"weak": {"extent": {"left_upper": 5, "right_middle": 10}}})
    with pytest.raises(UnusableInputError, match=r"no region 'left_uper'.*1 \(left_"):
        store.update_image_info("c1", {"weak": {"extent": {"left_uper": 5, "right_middle": 10}}})


def test_at_start_only_what_is_missing_is_filled(study: Path) -> None:
    store = MedsegDatastore(study)
    store.update_image_info("c0", {"weak": {"extent": {"1": 77.0}, "source": "reader"}})

    updated = import_weak(store, table(study, "image,extent_1", "c0,10", "c1,20"), only_missing=True)

    assert updated == ["c1"]
    assert store.get_image_info("c0")["weak"]["extent"] == {"1": 77.0}


def test_a_readers_angles_and_points_are_not_undone_at_the_next_start(study: Path) -> None:
    store = MedsegDatastore(study)
    store.update_image_info("c0", {"weak": {"angles": {"max": 55.0}, "source": "reader", "by": "ann"}})
    file = table(study, "image,angle_1,extent_1", "c0,40,10", "c1,30,20")

    first, again = (import_weak(store, file, only_missing=True) for _ in range(2))

    found = store.get_image_info("c0")["weak"]
    assert (first, again) == (["c0", "c1"], [])
    assert found["angles"] == {"max": 55.0}
    assert found["extent"] == {"1": 10.0}


def test_a_finished_mask_renews_the_extents(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medseg.methods.dram.config import DRAMConfig
    from medseg.methods.dram.method import DRAM

    monkeypatch.setattr(weak_labels, "method_class", lambda name: DRAM)
    chest = make_chest(0, (24, 20, 8))
    folder = study.parent
    regions = write_grid(folder / "regions.nii.gz", chest.regions, chest.affine)
    lesion = write_grid(folder / "lesion.nii.gz", (chest.mask == 2).astype(np.uint8), chest.affine)
    store = MedsegDatastore(study)
    case = Case("c0", study / "c0.nii.gz", lesion, regions)
    fake = SimpleNamespace(
        settings=SimpleNamespace(models=("dram",), config=lambda name: DRAMConfig(lesion="lesion")),
        labels={"lesion": 1},
        datastore=store,
        case=lambda identifier: case,
    )

    found = derive_weak(fake, "c0", "ann")

    weak = parse_weak(store.get_image_info("c0")["weak"], "image c0")
    assert found.keys() == {"dram"}
    assert weak.source == "mask"
    assert weak.by == "ann"
    assert weak.extent["left_lower"] == pytest.approx(true_percent(chest)[1], abs=1e-3)
