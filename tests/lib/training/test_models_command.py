from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medseg.errors import MedsegError, NotFoundError
from medseg.files import write_json
from medseg.training.models_command import list_models, roll_back
from medseg.training.registry import ModelRegistry
from medseg.training.study import study_key


def publish(root: Path, study: str, qualities: list[float], tmp_path: Path) -> None:
    registry = ModelRegistry(root, study, "off")
    for number, quality in enumerate(qualities):
        run = tmp_path / f"run{study}{number}"
        run.mkdir()
        save_file({"w": torch.tensor([quality])}, run / "model.safetensors")
        write_json(run / "config.json", {"method": "caml"})
        write_json(run / "metrics.json", {})
        version = registry.publish("caml", run, {"quality": quality})
        registry.promote("caml", version)


def test_versions_are_listed_and_one_is_served_again(tmp_path: Path) -> None:
    root, studies = tmp_path / "models", str(tmp_path / "heart")
    study = study_key(studies)
    publish(root, study, [0.5, 0.625], tmp_path)

    before = list_models(root, None, None)
    said = roll_back(root, "caml", 1, studies, "off")
    after = list_models(root, "caml", studies)

    assert [line[0] for line in before] == [" ", "*"]
    assert re.search(r"caml  version 2  quality 0\.6250  \d{4}-\d\d-\d\d \d\d:\d\d UTC  ", before[1])
    assert said == f"{study}: caml version 1 is served now"
    assert [line[0] for line in after] == ["*", " "]


def test_ambiguous_and_missing_models_are_one_sentence(tmp_path: Path) -> None:
    root = tmp_path / "models"
    assert list_models(root, None, None) == [f"no model below {root} yet; label images and train"]
    with pytest.raises(NotFoundError, match="there is no model of 'caml'"):
        roll_back(root, "caml", 1, None, "off")
    publish(root, "a", [0.5], tmp_path)
    publish(root, "b", [0.5], tmp_path)
    with pytest.raises(MedsegError, match="several studies have models of caml: a, b; choose one with --studies"):
        roll_back(root, "caml", 1, None, "off")
    with pytest.raises(MedsegError, match="9"):
        roll_back(root, "caml", 9, "b", "off")
    with pytest.raises(NotFoundError, match=r"there is no model of 'calm' below .*; known: caml"):
        list_models(root, "calm", None)
    with pytest.raises(NotFoundError, match="there is no model of the studies c; known: a, b"):
        list_models(root, None, "c")
