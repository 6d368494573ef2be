from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.files import read_json, write_json
from medseg.methods.dram.method import DRAM
from medseg.methods.supervised.method import Supervised
from medseg.phantoms.chest import LABELS, Chest, make_chest, true_percent
from medseg.phantoms.study import write_grid
from medseg.simulation import severity
from medseg.simulation.request import SimulationRequest
from medseg.simulation.run import run_simulation
from medseg.simulation.severity import severity_of, type_severity
from medseg.transforms.io import read_mask
from medseg.transforms.regions import THIRDS


def case_and_truth(folder: Path) -> tuple[Case, Path]:
    chest = make_chest(0, (24, 20, 9))
    image = write_grid(folder / "c.nii.gz", chest.image, chest.affine)
    return Case("c", image), write_grid(folder / "truth.nii.gz", chest.mask, chest.affine)


def test_regions_and_whole_per_cents_of_the_truth(tmp_path: Path) -> None:
    case, truth = case_and_truth(tmp_path)
    chest = make_chest(0, (24, 20, 9))

    found = severity_of(case, truth, LABELS, DRAM, tmp_path / "regions")

    assert found is not None
    regions, weak = found
    assert np.array_equal(read_mask(regions)[0].numpy(), chest.regions)
    true = true_percent(chest)
    assert weak["extent"]["left_lower"] == round(true[1])
    assert weak["extent"]["right_upper"] == round(true[6])
    assert weak["source"] == "reader"


def lps(chest: Chest) -> np.ndarray:
    """Affine of the phantom with its first two axes reversed."""
    flipped = np.diag([-1.0, -1.0, 1.0, 1.0])
    flipped[:2, 3] = np.array(chest.mask.shape[:2]) - 1
    return chest.affine @ flipped


def test_regions_are_those_of_the_body_whatever_the_files_axes(tmp_path: Path) -> None:
    chest = make_chest(0, (24, 20, 9))
    affine = lps(chest)
    image = write_grid(tmp_path / "lps.nii.gz", chest.image[::-1, ::-1], affine)
    truth = write_grid(tmp_path / "lps_truth.nii.gz", chest.mask[::-1, ::-1], affine)

    found = severity_of(Case("lps", image), truth, LABELS, DRAM, tmp_path / "regions")

    assert found is not None
    regions, weak = found
    assert np.array_equal(read_mask(regions)[0].numpy(), chest.regions[::-1, ::-1])
    assert weak["extent"] == {name: round(true_percent(chest)[index]) for name, index in THIRDS.items()}


def test_nothing_is_typed_for_methods_that_derive_nothing(tmp_path: Path) -> None:
    case, truth = case_and_truth(tmp_path)

    assert severity_of(case, truth, LABELS, Supervised, tmp_path) is None
    assert severity_of(case, truth, {"lesion": 1}, DRAM, tmp_path) is None  # nothing tells the lungs


def test_a_refused_extent_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, Mapping[str, str]]] = []

    def refuse(method: str, url: str, selector: str, fields: Mapping[str, str], files: object) -> tuple[object, ...]:
        sent.append((selector, fields))
        return 422, b'{"detail": "extent of region 1 is 400"}', None, None

    monkeypatch.setattr(severity.MONAILabelUtils, "http_multipart", refuse)
    annotator = SimpleNamespace(
        client=SimpleNamespace(save_label=lambda *a, **k: {}), server=SimpleNamespace(url="http://x")
    )

    with pytest.raises(MedsegError, match=r"the server refused the extents of c: .*region 1 is 400"):
        type_severity(annotator, "c", tmp_path / "r.nii.gz", {"extent": {"1": 400}})  # type: ignore[arg-type]
    assert sent[0][0] == "/datastore/image/info?image=c"
    assert '"extent": {"1": 400}' in sent[0][1]["info"]


@pytest.mark.server
@pytest.mark.slow
def test_a_simulated_reader_types_extents_and_then_corrects_masks(tmp_path: Path) -> None:
    """Files in LPS: what is typed must be of the regions that the server measures in."""
    for seed in range(5):
        chest = make_chest(seed, (24, 20, 9))
        affine = lps(chest)
        write_grid(tmp_path / "data" / "images" / f"c{seed}.nii.gz", chest.image[::-1, ::-1], affine)
        write_grid(tmp_path / "data" / "labels" / f"c{seed}.nii.gz", chest.mask[::-1, ::-1], affine)
    write_json(tmp_path / "data" / "labels.json", LABELS)
    settings = {"width": "4", "amp": "off", "scale": "1", "epoch_iterations": "2"}
    asked = {"rounds": 1, "per_round": 1, "initial": 1, "validation": 1, "test": 1, "iterations": 4, "preset": None}

    summary = run_simulation(
        SimulationRequest(
            "dram", (tmp_path / "data",), tmp_path / "out", ("dram",), settings=settings, device="cpu", **asked
        )
    )

    (curve,) = summary["curves"]
    assert [entry["labels"] for entry in curve["rounds"]] == [1, 2]
    (index,) = (tmp_path / "out").rglob("datastore_v2.json")
    images = {name: entry["image"]["info"] for name, entry in read_json(index)["objects"].items()}
    weak = {name: info["weak"] for name, info in images.items() if "weak" in info}
    assert len(weak) >= 3
    typed = {name: values for name, values in weak.items() if values["source"] == "reader"}
    assert typed
    for name, values in weak.items():
        true = true_percent(make_chest(int(name[1:]), (24, 20, 9)))
        assert values["extent"] == pytest.approx({region: true[i] for region, i in THIRDS.items()}, abs=0.5)
