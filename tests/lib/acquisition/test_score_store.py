from __future__ import annotations

import json
import os
from pathlib import Path

from medseg.acquisition.score_store import ScoreStore, StoredScore


def score(identifier: str, version: int = 1, value: float | None = 0.5, stamp: str = "s") -> StoredScore:
    return StoredScore(identifier, version, stamp, value, why="w", parts={"a": 0.25}, features=(1.0, 2.0))


def test_scores_survive_a_new_store(tmp_path: Path) -> None:
    ScoreStore(tmp_path / "caml.json").update([score("a"), score("b", value=None)])

    again = ScoreStore(tmp_path / "caml.json").all()

    assert again["a"] == score("a")
    assert again["b"].value is None


def test_store_sees_what_another_process_wrote(tmp_path: Path) -> None:
    reader, writer = ScoreStore(tmp_path / "s.json"), ScoreStore(tmp_path / "s.json")
    writer.update([score("a")])
    assert reader.all()["a"].value == 0.5

    writer.update([score("a", value=0.75)])
    os.utime(tmp_path / "s.json", ns=(1, 2))  # file systems with coarse times must not hide the change

    assert reader.all()["a"].value == 0.75


def test_outdated_names_new_images_new_models_and_changed_files(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path / "s.json")
    store.update([score("same"), score("changed"), score("old", version=1)])

    outdated = store.outdated({"same": "s", "changed": "other", "new": "s"}, version=1)

    assert outdated == ["changed", "new"]
    assert store.outdated({"old": "s"}, version=2) == ["old"]
    assert store.is_current("same", 1, "s")
    assert not store.is_current("same", 2, "s")


def test_a_failure_counts_as_up_to_date(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path / "s.json")
    store.update([StoredScore("broken", 3, "s", None, error="cannot be read")])

    assert store.outdated({"broken": "s"}, version=3) == []


def test_update_drops_images_that_left_the_study(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path / "s.json")
    store.update([score("a"), score("b")])

    store.update([score("c")], keep=["a", "c"])

    assert sorted(json.loads((tmp_path / "s.json").read_text())) == ["a", "c"]
