from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medseg.errors import MedsegError, NotFoundError, UnusableInputError
from medseg.files import read_json, write_json
from medseg.inference.model_folder import load_model, save_model
from medseg.methods.supervised.config import SupervisedConfig
from medseg.methods.supervised.method import Supervised


@pytest.fixture
def method() -> Supervised:
    config = SupervisedConfig.from_dict(
        {"dimension": 2, "channels": 1, "patch": (32, 16), "width": 4, "spacing": (1.0, 2.0), "seed": 9}
    )
    return Supervised(config, {"a": 1, "b": 2})


def test_round_trip_gives_the_same_method(tmp_path: Path, method: Supervised) -> None:
    save_model(tmp_path, method, {"note": "x"})

    loaded = load_model(tmp_path)

    assert type(loaded) is Supervised
    assert (loaded.config, loaded.labels) == (method.config, method.labels)
    assert not loaded.network.training
    ours, theirs = method.network.state_dict(), loaded.network.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert read_json(tmp_path / "config.json")["note"] == "x"


def test_missing_model_is_one_sentence(tmp_path: Path, method: Supervised) -> None:
    with pytest.raises(NotFoundError, match=r"holds no model; expected model\.safetensors and config\.json"):
        load_model(tmp_path)
    save_model(tmp_path, method)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="holds no model"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 5000])
def test_damaged_weights_are_one_sentence(tmp_path: Path, method: Supervised, keep: int) -> None:
    save_model(tmp_path, method)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])

    with pytest.raises(UnusableInputError, match=r"model\.safetensors does not fit its config\.json or is damaged"):
        load_model(tmp_path)


def test_damaged_config_is_one_sentence(tmp_path: Path, method: Supervised) -> None:
    save_model(tmp_path, method)
    config = tmp_path / "config.json"
    config.write_text(config.read_text()[:40])

    with pytest.raises(UnusableInputError, match=r"config\.json is damaged"):
        load_model(tmp_path)


def test_weights_of_another_config_are_refused(tmp_path: Path, method: Supervised) -> None:
    save_model(tmp_path, method)
    description = read_json(tmp_path / "config.json")
    description["config"]["width"] = 8
    write_json(tmp_path / "config.json", description)

    with pytest.raises(UnusableInputError, match="does not fit"):
        load_model(tmp_path)


@pytest.mark.parametrize(("key", "value", "words"), [("format", 99, "format 99"), ("method", "x", "no method 'x'")])
def test_other_formats_and_methods_are_named(
    tmp_path: Path, method: Supervised, key: str, value: object, words: str
) -> None:
    save_model(tmp_path, method)
    write_json(tmp_path / "config.json", {**json.loads((tmp_path / "config.json").read_text()), key: value})

    with pytest.raises(MedsegError, match=words):
        load_model(tmp_path)
