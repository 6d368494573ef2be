from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from medseg.errors import ConflictError, MedsegError
from medseg.files import read_json
from medseg.server.folders import StudyFolders
from medseg.server.journal import Entry, make_entry
from medseg.server.store import StudyStore


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def _open(root: Path, **kwargs: object) -> StudyStore:
    return StudyStore(StudyFolders(root), **kwargs)  # type: ignore[arg-type]


def _info(image: str, **info: object) -> Entry:
    return make_entry("image_info", image=image, info=info)


def _set(store: StudyStore, image: str, **info: object) -> None:
    with store.writing():
        store.commit(_info(image, **info))


def _infos(store: StudyStore) -> dict[str, dict[str, object]]:
    objects = store.snapshot().model.objects
    return {k: {n: v for n, v in r.image.info.items() if n not in ("ts", "name")} for k, r in objects.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _touch(tmp_path, "a.nii.gz", "b.nii.gz")
    return tmp_path


def test_two_open_stores_see_each_others_changes_at_once(root: Path) -> None:
    one, two = _open(root), _open(root)
    _set(one, "a", x=1)
    _set(two, "a", y=2)
    _set(one, "b", z=3)
    assert _infos(one) == _infos(two) == {"a": {"x": 1, "y": 2}, "b": {"z": 3}}


def _hammer(root: Path, me: str, count: int, start: Any) -> None:
    store = _open(root)
    start.wait()
    for number in range(count):
        _set(store, "ab"[number % 2], **{f"{me}{number}": number})


def test_no_write_of_two_processes_is_lost(root: Path) -> None:
    watcher, count = _open(root), 60
    context = multiprocessing.get_context("fork")  # each opens its own store after the fork
    start = context.Barrier(2)
    processes = [context.Process(target=_hammer, args=(root, name, count, start)) for name in ("server", "child")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    wanted = {
        image: {f"{name}{n}": n for name in ("server", "child") for n in range(count) if "ab"[n % 2] == image}
        for image in "ab"
    }
    assert _infos(watcher) == wanted
    stored = read_json(root / "datastore_v2.json")["objects"]
    assert {k: {n: v for n, v in r["image"]["info"].items() if n[-1].isdigit()} for k, r in stored.items()} == wanted


def _count_aloud(root: Path, told: Any) -> None:
    store = _open(root)
    for number in range(10**6):
        _set(store, "a", **{f"n{number}": number})
        told.send(number)


def test_what_was_acknowledged_before_a_kill_is_there_afterwards(root: Path) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        reader, told = context.Pipe(duplex=False)
        process = context.Process(target=_count_aloud, args=(root, told))
        process.start()
        acknowledged = [reader.recv() for _ in range(5)]
        process.kill()
        process.join()
        told.close()
        while reader.poll():
            try:
                acknowledged.append(reader.recv())
            except EOFError:
                break
        assert {f"n{number}" for number in acknowledged} <= set(_infos(_open(root, lock_timeout=1.0))["a"])


def test_an_index_cut_at_any_byte_is_rebuilt(root: Path) -> None:
    (root / "b.nii.gz").unlink()
    store = _open(root)
    _set(store, "a", weak={"extent": {"lung": 12.5}})
    _touch(root, "labels/final/a.nii.gz")
    with store.writing():
        store.commit(make_entry("label_saved", image="a", tag="final", ext=".nii.gz", info={"author": "anna"}))
    before = store.snapshot().model.model_dump()
    content = (root / "datastore_v2.json").read_bytes()
    for cut in range(len(content)):
        (root / "datastore_v2.json").write_bytes(content[:cut])
        assert _open(root).snapshot().model.model_dump() == before, cut
    assert json.loads((root / "datastore_v2.json").read_bytes())["objects"] == before["objects"]
    (root / "datastore_v2.json").unlink()
    assert _open(root).snapshot().model.model_dump() == before


@pytest.mark.parametrize(
    "content", ["null", "[]", "3", '{"objects": 3}', '{"name": "x", "objects": {"a": {}}}', "\x00"]
)
def test_an_index_of_another_form_is_rebuilt(root: Path, content: str) -> None:
    _set(_open(root), "a", x=1)
    (root / "datastore_v2.json").write_text(content)
    assert _infos(_open(root)) == {"a": {"x": 1}, "b": {}}


def test_a_change_that_reached_the_journal_but_not_the_index_counts(root: Path) -> None:
    store = _open(root)
    index = (root / "datastore_v2.json").read_bytes()
    _set(store, "a", x=1)
    (root / "datastore_v2.json").write_bytes(index)
    assert _infos(_open(root))["a"] == {"x": 1}


def test_a_journal_with_a_cut_last_line_opens_and_goes_on(root: Path) -> None:
    store = _open(root)
    _set(store, "a", x=1)
    _set(store, "a", y=2)
    journal = root / ".medseg" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])
    (root / "datastore_v2.json").unlink()
    again = _open(root)
    assert _infos(again)["a"] == {"x": 1}
    _set(again, "a", z=3)
    assert _infos(_open(root))["a"] == {"x": 1, "z": 3}


def test_an_index_of_another_program_is_imported_into_the_journal(root: Path) -> None:
    objects = {"a": {"image": {"ext": ".nii.gz", "info": {"ts": 1, "score": 0.5}}, "labels": {}}}
    foreign = {"name": "old", "description": "d", "images_dir": ".", "labels_dir": "labels", "objects": objects}
    (root / "datastore_v2.json").write_text(json.dumps(foreign))
    store = _open(root)
    assert _infos(store) == {"a": {"score": 0.5}, "b": {}}
    assert store.snapshot().model.name == "old"
    (root / "datastore_v2.json").unlink()
    assert _infos(_open(root)) == {"a": {"score": 0.5}, "b": {}}


def test_a_lost_journal_is_written_anew(root: Path) -> None:
    store = _open(root)
    _set(store, "a", x=1)
    (root / ".medseg" / "journal.jsonl").unlink()
    _set(store, "b", y=2)  # under the running process
    (root / "datastore_v2.json").unlink()
    assert _infos(_open(root)) == {"a": {"x": 1}, "b": {"y": 2}}
    (root / ".medseg" / "journal.jsonl").unlink()  # between two starts
    _set(_open(root), "b", z=3)
    (root / "datastore_v2.json").unlink()
    assert _infos(_open(root)) == {"a": {"x": 1}, "b": {"y": 2, "z": 3}}


@pytest.mark.parametrize("then", ["nothing", "another write"])
def test_a_reader_that_meets_a_lost_journal_first_writes_it_anew(root: Path, then: str) -> None:
    store = _open(root)
    _set(store, "a", weak={"domain": "mr"})
    _touch(root, "labels/final/a.nii.gz")
    with store.writing():
        store.commit(make_entry("label_saved", image="a", tag="final", ext=".nii.gz", info={"author": "anna"}))
    (root / ".medseg" / "journal.jsonl").unlink()
    assert _infos(store)["a"] == {"weak": {"domain": "mr"}}
    if then == "another write":
        _set(store, "b", y=2)
    (root / "datastore_v2.json").unlink()
    again = _open(root)
    assert _infos(again) == {"a": {"weak": {"domain": "mr"}}, "b": {"y": 2} if then == "another write" else {}}
    assert again.snapshot().model.objects["a"].labels["final"].info["author"] == "anna"


def test_an_index_counts_the_bytes_of_the_journal_that_replaced_a_lost_one(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = _open(root)
    for number in range(20):
        _set(store, "a", x=number)
    (root / ".medseg" / "journal.jsonl").write_bytes(b"")
    store.snapshot()
    _set(_open(root), "b", y=2)
    assert _infos(_open(root)) == {"a": {"x": 19}, "b": {"y": 2}}
    assert "damaged line" not in caplog.text


def test_files_that_are_away_for_a_while_keep_what_is_known_of_them(root: Path, tmp_path: Path) -> None:
    store = _open(root)
    _set(store, "a", weak={"domain": "mr"})
    (root / "a.nii.gz").rename(root / "away")
    assert list(_infos(store)) == ["b"]
    assert list(_infos(_open(root))) == ["b"]
    assert list(read_json(root / "datastore_v2.json")["objects"]) == ["b"]
    (root / "away").rename(root / "a.nii.gz")
    assert _infos(store)["a"] == {"weak": {"domain": "mr"}}
    assert _infos(_open(root))["a"] == {"weak": {"domain": "mr"}}


def test_new_files_appear_by_themselves_unless_reloading_is_off(root: Path) -> None:
    watching, still = _open(root), _open(root, auto_reload=False)
    _touch(root, "c.nii.gz")
    assert list(still.snapshot().model.objects) == ["a", "b"]
    assert list(watching.snapshot().model.objects) == ["a", "b", "c"]


def test_a_held_lock_ends_in_one_sentence_and_reading_goes_on(root: Path) -> None:
    store = _open(root, lock_timeout=0.2)
    with FileLock(root / ".medseg" / "lock"):
        with pytest.raises(ConflictError, match=r"has held the lock of .* for 0\.2 s"):
            _set(store, "a", x=1)
        _touch(root, "c.nii.gz")
        assert list(store.snapshot().model.objects) == ["a", "b"]
    assert list(store.snapshot().model.objects) == ["a", "b", "c"]


def test_read_only_writes_nothing(root: Path) -> None:
    before = sorted(p.name for p in root.rglob("*"))
    store = _open(root, read_only=True)
    assert list(store.snapshot().model.objects) == ["a", "b"]
    with pytest.raises(ConflictError, match="read-only"):
        _set(store, "a", x=1)
    store.refresh()
    assert sorted(p.name for p in root.rglob("*")) == before


def test_a_folder_that_cannot_be_written_gives_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def deny(self: Path, *args: int, **kwargs: bool) -> None:  # tests may run as root, whom no mode stops
        if self.name == ".medseg":
            raise OSError(30, os.strerror(30))
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", deny)
    with pytest.raises(MedsegError, match=r"cannot be written \(Read-only file system\).*links to the images"):
        _open(root)


def test_a_folder_is_recognised_through_a_link(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "linked studies"
    link.symlink_to(root, target_is_directory=True)
    linked, direct = _open(link), _open(root)
    _set(linked, "a", x=1)
    assert _infos(direct)["a"] == {"x": 1}
    assert linked.snapshot().scan.images["a"] == link / "a.nii.gz"
