from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.server.journal import Journal, make_entry, plain


def test_entries_come_back_in_order_and_reading_goes_on_from_the_offset(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([make_entry("image_added", image="a"), make_entry("image_added", image="b")])
    first, offset = journal.read()
    journal.append([make_entry("image_removed", image="a")])
    second, end = journal.read(offset)
    assert [e["image"] for e in first] == ["a", "b"]
    assert [(e["change"], e["image"]) for e in second] == [("image_removed", "a")]
    assert end == journal.size()


def test_each_line_tells_time_and_change(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([make_entry("label_saved", image="a", tag="final", author="anna")])
    line = json.loads(journal.path.read_text().splitlines()[0])
    assert {"time", "change", "image", "tag", "author"} <= set(line)
    assert line["time"].endswith("+00:00")


def test_a_journal_cut_at_any_byte_keeps_every_whole_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([make_entry("image_added", image=name) for name in "abc"])
    content = journal.path.read_bytes()
    for cut in range(len(content) + 1):
        journal.path.write_bytes(content[:cut])
        entries, offset = journal.read()
        assert [e["image"] for e in entries] == list("abc")[: content[:cut].count(b"\n")]
        assert offset == content[:cut].rfind(b"\n") + 1


def test_appending_after_a_torn_line_loses_nothing_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([make_entry("image_added", image="a"), make_entry("image_added", image="b")])
    journal.path.write_bytes(journal.path.read_bytes()[:-7])
    journal.append([make_entry("image_added", image="c")])
    assert [e["image"] for e in journal.read()[0]] == ["a", "c"]
    assert "damaged line" in caplog.text


def test_a_failed_append_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([make_entry("image_added", image="a")])
    before = journal.path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        journal.append([make_entry("image_added", image="b")])
    assert journal.path.read_bytes() == before


def test_numpy_and_torch_numbers_become_numbers() -> None:
    value = plain(
        {
            "dice": np.float32(0.5),
            "n": np.int64(3),
            "ok": np.bool_(True),
            "v": np.array([1.5, np.nan]),
            "t": torch.tensor(2.0),
            "p": Path("x"),
            1: (math.inf,),
        }
    )
    assert value == {"dice": 0.5, "n": 3, "ok": True, "v": [1.5, None], "t": 2.0, "p": "x", "1": [None]}
    assert type(value["dice"]) is float
    assert json.loads(json.dumps(value, allow_nan=False)) == value
