"""Our datastore over a real Orthanc."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from pydicom.dataset import Dataset

from medseg.errors import ConflictError, NotFoundError, UnusableInputError
from medseg.server.dicom.archive import Archive, SeriesEntry
from medseg.server.dicom.datastore import DicomWebDatastore
from medseg.server.dicom.orthanc import Orthanc
from medseg.server.dicom.phantoms import DicomPhantom
from medseg.server.dicom.seg_write import SegmentationFacts, segmentation
from medseg.transforms.io import read_image, read_mask, write_volume

pytestmark = pytest.mark.viewers

INFO = {"client_id": "anna", "label_info": [{"name": "vessel", "idx": 1}, {"name": "organ", "idx": 2}]}


@pytest.fixture
def store(archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path) -> DicomWebDatastore:
    return DicomWebDatastore(Archive(archive.dicomweb), tmp_path / "here")


def elsewhere(archive: Orthanc, tmp_path: Path, **options: object) -> DicomWebDatastore:
    """The same archive seen from a machine that knows nothing."""
    return DicomWebDatastore(Archive(archive.dicomweb), tmp_path / f"there-{len(list(tmp_path.iterdir()))}", **options)


def mask_of(phantom: DicomPhantom, tmp_path: Path) -> Path:
    """The phantom's truth, in the order of labels of `INFO`: 1 vessel, 2 organ."""
    swapped = np.choose(phantom.mask, [0, 2, 1]).astype(np.uint8)
    mask = MetaTensor(torch.from_numpy(swapped)[None], affine=torch.from_numpy(phantom.affine))
    return write_volume(tmp_path / "mask.nii.gz", mask)


def seg_of(store: DicomWebDatastore, phantom: DicomPhantom, labels: dict[str, int], author: str, at: str) -> Dataset:
    """A segmentation as another program would store it: labels, author, and a time of 1 January 2026 or later."""
    grid, header = store.source(phantom.series)
    ds = segmentation(phantom.mask, labels, grid, header, facts=SegmentationFacts(author=author))
    ds.ContentDate, ds.ContentTime = at.split()
    return ds


NAMES = {"organ": 1, "vessel": 2}


def test_a_filter_says_which_images_count_and_hides_no_label(
    archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    filtered = DicomWebDatastore(Archive(archive.dicomweb, {"PatientID": "PHANTOM-00"}), tmp_path / "filtered")
    numbered = DicomWebDatastore(Archive(archive.dicomweb, {"SeriesNumber": "1"}), tmp_path / "numbered")

    numbered.save_label(phantoms[0].series, str(mask_of(phantoms[0], tmp_path)), "final", INFO)
    for store in (numbered, filtered):
        store.refresh()

    assert filtered.list_images() == [phantoms[0].series]
    assert len(numbered.list_images()) == 4
    assert numbered.get_labeled_images() == filtered.get_labeled_images() == [phantoms[0].series]


def test_the_newest_segmentation_that_can_be_used_counts_on_every_machine(
    archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    phantom, labels = phantoms[0], {"organ": 1, "vessel": 2}
    here = elsewhere(archive, tmp_path, labels=NAMES)
    broken = seg_of(here, phantom, labels, "carla", "20300103 120000")
    for frame in broken.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
    Archive(archive.dicomweb).store(seg_of(here, phantom, labels, "anna", "20300101 120000"))
    here.refresh()
    assert here.get_label_uri(phantom.series, "final")

    Archive(archive.dicomweb).store(seg_of(here, phantom, {"a": 1, "b": 2}, "bert", "20300102 120000"))
    Archive(archive.dicomweb).store(broken)
    here.refresh()
    there = elsewhere(archive, tmp_path, labels=NAMES)

    for store in (here, there):
        mask = read_mask(Path(store.get_label_uri(phantom.series, "final")))
        np.testing.assert_array_equal(mask[0].numpy(), phantom.mask)
        assert store.get_label_info(phantom.series, "final")["author"] == "anna"
        problems = " ".join(store.status()["problems"])
        assert "where its frames lie" in problems
        assert "'a', 'b' is not known" in problems


def test_an_older_segmentation_that_comes_later_replaces_nothing(
    store: DicomWebDatastore, archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    phantom = phantoms[0]
    store.save_label(phantom.series, str(mask_of(phantom, tmp_path)), "final", INFO)

    Archive(archive.dicomweb).store(seg_of(store, phantom, NAMES, "bert", "20200101 120000"))
    store.refresh()

    assert store.get_label_info(phantom.series, "final")["author"] == "anna"
    assert elsewhere(archive, tmp_path).get_label_info(phantom.series, "final")["author"] == "anna"


def test_one_segmentation_that_the_archive_does_not_give_keeps_no_other_waiting(
    store: DicomWebDatastore,
    archive: Orthanc,
    phantoms: list[DicomPhantom],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for phantom in phantoms[:2]:
        store.save_label(phantom.series, str(mask_of(phantom, tmp_path)), "final", INFO)
        Archive(archive.dicomweb).store(seg_of(store, phantom, NAMES, "bert", "20300101 120000"))
    objects = store.archive.objects
    first = Archive(archive.dicomweb).series(
        Modality="SEG", StudyInstanceUID=store.source(phantoms[0].series)[1].StudyInstanceUID
    )

    def away(entry: SeriesEntry) -> Iterator[Dataset]:
        if entry in first:
            raise ConflictError("the archive answered with HTTP status 500")
        return objects(entry)

    with monkeypatch.context() as patched:
        patched.setattr(store.archive, "objects", away)
        store.refresh()
    authors = [store.get_label_info(phantom.series, "final")["author"] for phantom in phantoms[:2]]
    store.refresh()

    assert authors == ["anna", "bert"]
    assert store.get_label_info(phantoms[0].series, "final")["author"] == "bert"


def test_one_segmentation_whose_metadata_fails_stops_no_other(
    store: DicomWebDatastore,
    archive: Orthanc,
    phantoms: list[DicomPhantom],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segs = [seg_of(store, phantom, NAMES, "bert", "20300101 120000") for phantom in phantoms[:3]]
    segs[2].SegmentSequence[0].SegmentNumber = None
    for seg in segs:
        Archive(archive.dicomweb).store(seg)
    metadata = store.archive.metadata

    def failing(entry: SeriesEntry) -> list[Dataset]:
        if entry.uid == segs[0].SeriesInstanceUID:
            raise ConflictError("the archive answered with HTTP status 500")
        return metadata(entry)

    with monkeypatch.context() as patched:
        patched.setattr(store.archive, "metadata", failing)
        store.refresh()
    first = store.get_labeled_images()
    store.refresh()

    assert first == [phantoms[1].series]
    assert sorted(store.get_labeled_images()) == sorted(p.series for p in phantoms[:2])
    assert "malformed" in " ".join(store.status()["problems"])
    assert len(elsewhere(archive, tmp_path).get_labeled_images()) == 2  # and a server starts


@pytest.mark.parametrize("look_between", [False, True])
def test_a_series_of_several_objects_is_refused_rather_than_read_in_part(
    store: DicomWebDatastore, phantoms: list[DicomPhantom], look_between: bool
) -> None:
    phantom = phantoms[0]
    organ, vessel = (seg_of(store, phantom, NAMES, "bert", f"20300101 12000{n}") for n in range(2))
    vessel.SeriesInstanceUID = organ.SeriesInstanceUID

    store.archive.store(organ)
    if look_between:
        store.refresh()
    store.archive.store(vessel)
    store.refresh()

    assert store.get_label_uri(phantom.series, "final") == ""
    assert store.get_labeled_images() == []
    assert "several segmentation objects" in store.status()["problems"][0]


def test_a_segmentation_that_tells_no_series_belongs_to_that_of_its_images(
    store: DicomWebDatastore, phantoms: list[DicomPhantom]
) -> None:
    told, lost = (seg_of(store, phantom, NAMES, "bert", "20300101 120000") for phantom in phantoms[:2])
    del told.ReferencedSeriesSequence, lost.ReferencedSeriesSequence
    for frame in lost.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    store.archive.store(told)
    store.archive.store(lost)

    store.refresh()

    mask = read_mask(Path(store.get_label_uri(phantoms[0].series, "final")))
    assert store.get_labeled_images() == [phantoms[0].series]
    assert int(mask.sum()) > 0
    assert "tells no series it belongs to" in store.status()["problems"][0]


def test_a_segmentation_may_come_before_its_image(
    archive: Orthanc, phantoms: list[DicomPhantom], phantom_files: tuple[Path, list[DicomPhantom]], tmp_path: Path
) -> None:
    seg = seg_of(elsewhere(archive, tmp_path), phantoms[0], NAMES, "anna", "20260101 120000")
    archive.clear()
    Archive(archive.dicomweb).store(seg)
    store = elsewhere(archive, tmp_path)
    assert store.list_images() == []

    archive.upload(phantom_files[0])
    store.refresh()

    assert store.get_labeled_images() == [phantoms[0].series]


def test_the_archive_is_written_to_while_nobody_waits_for_the_lock(
    store: DicomWebDatastore, phantoms: list[DicomPhantom], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[bool] = []
    send = store.archive.store
    monkeypatch.setattr(store.archive, "store", lambda ds: (locked.append(store._store.lock.is_locked), send(ds)))

    store.save_label(phantoms[0].series, str(mask_of(phantoms[0], tmp_path)), "final", INFO)
    store.save_label(phantoms[0].series, str(mask_of(phantoms[0], tmp_path)), "final", INFO)
    store.restore_label(phantoms[0].series, "final", 1)

    assert locked == [False, False, False]


def test_a_label_removed_here_comes_back_only_elsewhere(
    store: DicomWebDatastore, archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    store.save_label(phantoms[0].series, str(mask_of(phantoms[0], tmp_path)), "final", INFO)

    store.remove_label(phantoms[0].series, "final")
    store.refresh()

    assert store.get_labeled_images() == []
    assert [v.author for v in store.label_history(phantoms[0].series)] == ["anna"]
    assert elsewhere(archive, tmp_path).get_labeled_images() == [phantoms[0].series]


def test_images_of_several_modalities_are_listed_and_fetched_when_needed(
    store: DicomWebDatastore, phantoms: list[DicomPhantom]
) -> None:
    phantom = phantoms[1]
    assert sorted(store.list_images()) == sorted(p.series for p in phantoms)
    assert "path" not in store.get_image_info(phantom.series)

    image = read_image(Path(store.get_image_uri(phantom.series)))

    info = store.get_image_info(phantom.series)
    assert (info["Modality"], info["PatientID"], info["patient"]) == ("MR", "PHANTOM-01", "PHANTOM-01")
    assert info["StudyInstanceUID"] != info["SeriesInstanceUID"] == phantom.series
    assert image.shape[1:] == phantom.mask.shape
    np.testing.assert_allclose(image.affine.numpy(), phantom.affine, atol=0.01)


def test_a_saved_label_counts_at_once_and_is_read_elsewhere_on_the_full_grid(
    store: DicomWebDatastore, archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    phantom = phantoms[0]

    store.save_label(phantom.series, str(mask_of(phantom, tmp_path)), "final", INFO)
    there = elsewhere(archive, tmp_path)

    assert store.get_labeled_images() == there.get_labeled_images() == [phantom.series]
    assert len(store.get_unlabeled_images()) == 3
    assert there.labels == {"vessel": 1, "organ": 2}
    for datastore in (store, there):
        mask = read_mask(Path(datastore.get_label_uri(phantom.series, "final")))
        np.testing.assert_array_equal(mask[0].numpy(), np.choose(phantom.mask, [0, 2, 1]))
        np.testing.assert_allclose(mask.affine.numpy(), phantom.affine, atol=0.01)
        info = datastore.get_label_info(phantom.series, "final")
        assert info["author"] == "anna"
        assert info["voxels"] == {"vessel": int((phantom.mask == 2).sum()), "organ": int((phantom.mask == 1).sum())}
    assert {Path(pair["label"]).name for pair in there.datalist()} == {f"{phantom.series}.nii.gz"}


def test_stated_labels_number_the_values_and_refuse_other_names(
    store: DicomWebDatastore, archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    phantom = phantoms[0]
    store.save_label(phantom.series, str(mask_of(phantom, tmp_path)), "final", INFO)

    there = elsewhere(archive, tmp_path, labels={"organ": 1, "vessel": 2})
    mask = read_mask(Path(there.get_label_uri(phantom.series, "final")))
    stranger = elsewhere(archive, tmp_path, labels={"organ": 1})

    np.testing.assert_array_equal(mask[0].numpy(), phantom.mask)
    assert stranger.get_labeled_images() == []
    assert "'vessel' is not known" in stranger.status()["problems"][0]


def test_a_segmentation_stored_by_a_viewer_becomes_the_label_with_author_and_history(
    store: DicomWebDatastore, archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    phantom, labelled = phantoms[0], []
    store.on_label = labelled.append
    mask_file = mask_of(phantom, tmp_path)
    store.save_label(phantom.series, str(mask_file), "final", INFO)
    other = elsewhere(archive, tmp_path)
    empty = MetaTensor(torch.zeros(1, *phantom.mask.shape, dtype=torch.uint8), affine=torch.from_numpy(phantom.affine))

    other.save_label(phantom.series, str(write_volume(mask_file, empty)), "final", {**INFO, "client_id": "bert"})
    store.refresh()

    assert labelled == [phantom.series]
    assert [v.author for v in store.label_history(phantom.series)] == ["anna"]
    assert not read_mask(Path(store.get_label_uri(phantom.series, "final"))).any()
    info = store.get_label_info(phantom.series, "final")
    assert info["author"] == "bert"
    assert "the label is empty" in info["remarks"][0]

    store.restore_label(phantom.series, "final", 1, "carla")
    other.refresh()
    assert other.get_label_info(phantom.series, "final")["author"] == "carla"
    restored = read_mask(Path(other.get_label_uri(phantom.series, "final")))
    np.testing.assert_array_equal(restored[0].numpy(), np.choose(phantom.mask, [0, 2, 1]))


def test_a_segmentation_removed_from_the_archive_does_not_count_any_more(
    store: DicomWebDatastore, archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    phantom = phantoms[0]
    store.save_label(phantom.series, str(mask_of(phantom, tmp_path)), "final", INFO)

    archive.remove_series(store.get_label_info(phantom.series, "final")["archive"]["series"])
    store.refresh()

    assert store.get_labeled_images() == []
    assert [v.author for v in store.label_history(phantom.series)] == ["anna"]


def test_a_segmentation_that_comes_back_counts_again(
    store: DicomWebDatastore, archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    phantom = phantoms[0]
    store.save_label(phantom.series, str(mask_of(phantom, tmp_path)), "final", INFO)
    place = store.get_label_info(phantom.series, "final")["archive"]
    (ds,) = store.archive.objects(SeriesEntry(place["series"], place["study"], "SEG"))

    archive.remove_series(place["series"])
    store.refresh()
    away = store.get_labeled_images()
    store.archive.store(ds)
    store.refresh()

    assert (away, store.get_labeled_images()) == ([], [phantom.series])
    assert store.get_label_info(phantom.series, "final")["author"] == "anna"
    again = read_mask(Path(store.get_label_uri(phantom.series, "final")))
    np.testing.assert_array_equal(again[0].numpy(), np.choose(phantom.mask, [0, 2, 1]))


def test_where_the_newest_is_deleted_in_the_archive_the_one_before_counts_again(
    store: DicomWebDatastore, archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    phantom, mask = phantoms[0], mask_of(phantoms[0], tmp_path)
    store.save_label(phantom.series, str(mask), "final", INFO)
    empty = MetaTensor(torch.zeros(1, *phantom.mask.shape, dtype=torch.uint8), affine=torch.from_numpy(phantom.affine))
    store.save_label(phantom.series, str(write_volume(mask, empty)), "final", {**INFO, "client_id": "bert"})

    archive.remove_series(store.get_label_info(phantom.series, "final")["archive"]["series"])
    store.refresh()

    assert store.get_label_info(phantom.series, "final")["author"] == "anna"
    again = read_mask(Path(store.get_label_uri(phantom.series, "final")))
    np.testing.assert_array_equal(again[0].numpy(), np.choose(phantom.mask, [0, 2, 1]))
    assert [v.author for v in store.label_history(phantom.series)] == ["anna", "bert"]


def test_what_cannot_be_used_is_refused_and_reaches_no_archive(
    store: DicomWebDatastore, archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    far = torch.from_numpy(phantoms[0].affine.copy())
    far[:3, 3] += 10_000
    mask = write_volume(tmp_path / "far.nii.gz", MetaTensor(torch.ones(1, 8, 8, 8, dtype=torch.uint8), affine=far))

    with pytest.raises(UnusableInputError, match="outside its image"):
        store.save_label(phantoms[0].series, str(mask), "final", INFO)
    with pytest.raises(ConflictError, match="store the DICOM images there"):
        store.add_image("x", str(mask), {})
    with pytest.raises(NotFoundError):
        store.get_image_uri("1.2.3")

    assert Archive(archive.dicomweb).series(Modality="SEG") == []


def test_a_damaged_segmentation_is_taken_back_with_its_reason(
    store: DicomWebDatastore, archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    phantom = phantoms[0]
    store.get_image_uri(phantom.series)
    grid, header = store.source(phantom.series)
    ds = segmentation(phantom.mask, {"organ": 1, "vessel": 2}, grid, header)
    for frame in ds.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
    Archive(archive.dicomweb).store(ds)
    store.refresh()
    assert store.get_labeled_images() == [phantom.series]

    assert store.get_label_uri(phantom.series, "final") == ""

    assert store.get_labeled_images() == []
    assert "does not tell where its frames lie" in store.status()["problems"][0]


def test_weak_labels_and_predictions_stay_in_our_store(
    store: DicomWebDatastore, archive: Orthanc, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    phantom = phantoms[0]
    weak = {"extent": {"left": 12.5}, "by": "anna"}

    store.update_image_info(phantom.series, {"weak": weak})
    store.save_label(phantom.series, str(mask_of(phantom, tmp_path)), "original", INFO)
    again = DicomWebDatastore(Archive(archive.dicomweb), tmp_path / "here")

    assert again.get_image_info(phantom.series)["weak"] == weak
    assert again.get_labeled_images("original") == [phantom.series]
    assert again.get_labeled_images() == []
    assert Archive(archive.dicomweb).series(Modality="SEG") == []


def test_an_archive_that_is_away_leaves_what_was_seen(
    store: DicomWebDatastore, phantoms: list[DicomPhantom], tmp_path: Path
) -> None:
    away = Archive("http://127.0.0.1:9/dicom-web")

    with pytest.raises(ConflictError, match="does not answer"):
        DicomWebDatastore(away, tmp_path / "new")
    again = DicomWebDatastore(away, tmp_path / "here")

    assert len(again.list_images()) == 4
    with pytest.raises(ConflictError, match="does not answer"):
        again.get_image_uri(phantoms[0].series)


def test_segmentations_of_another_program_in_the_archive(archive: Orthanc, data_dir: Path, tmp_path: Path) -> None:
    archive.clear()
    archive.upload(data_dir / "dicom" / "dcmqi" / "24x38x3")

    store = elsewhere(archive, tmp_path)

    (image,) = store.get_labeled_images()
    mask = read_mask(Path(store.get_label_uri(image, "final")))
    assert store.labels == {"Liver": 1}
    assert store.get_label_info(image, "final")["author"] == "John Doe"
    assert int(mask.sum()) == 315
    ds = pydicom.dcmread(data_dir / "dicom" / "dcmqi" / "24x38x3" / "seg" / "label.seg")
    assert int((ds.pixel_array > 0).sum()) == 315


def test_real_series_are_fetched_labelled_and_read_again_elsewhere(
    archive: Orthanc, data_dir: Path, tmp_path: Path
) -> None:
    archive.clear()
    folders = ("ct_small", "mr_hcrop", "highdicom")
    uploaded = sum(archive.upload(data_dir / "dicom" / name) for name in folders)
    store = elsewhere(archive, tmp_path)
    info = {"client_id": "anna", "label_info": [{"name": "bone", "idx": 1}]}
    saved = {}

    for series in store.list_images():
        image = read_image(Path(store.get_image_uri(series)))
        mask = torch.zeros(image.shape, dtype=torch.uint8)
        mask[(0, *(slice(n // 4, n // 4 + max(n // 4, 1)) for n in image.shape[1:]))] = 1
        file = write_volume(tmp_path / "mask.nii.gz", MetaTensor(mask, affine=image.affine))
        store.save_label(series, str(file), "final", info)
        saved[tuple(image.shape[1:])] = (series, mask)
    cold = elsewhere(archive, tmp_path)

    assert uploaded == 82
    assert {(88, 128, 17), (34, 50, 40), (211, 169), (128, 128, 1)} == set(saved)
    for series, mask in saved.values():
        read = read_mask(Path(cold.get_label_uri(series, "final")))
        np.testing.assert_array_equal(read.numpy(), mask.numpy() * cold.labels["bone"])
        np.testing.assert_allclose(read.affine, read_image(Path(store.get_image_uri(series))).affine, atol=1e-3)
        assert cold.get_label_info(series, "final")["author"] == "anna"
    assert cold.status()["problems"] == []
