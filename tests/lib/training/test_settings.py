from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import MedsegError, NotFoundError
from medseg.files import write_json
from medseg.training.settings import build_config, find_preset, parse_pairs, read_settings


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("iterations: 70\nwidth: 8\npatch: [32, 32, 16]\n")

    config = build_config("supervised", "cpu", file, {"width": "4", "seed": None, "amp": "off"})

    assert (config.iterations, config.width, config.patch) == (70, 4, (32, 32, 16))
    assert (config.labelled_batch, config.seed, config.amp) == (
        4,
        0,
        "off",
    )  # the preset's, the default, what was typed


def test_config_of_a_run_is_a_settings_file(tmp_path: Path) -> None:
    config = build_config("supervised", "cpu", None, {"width": 4, "spacing": "1,1,2"})
    file = write_json(tmp_path / "config.json", {"format": 1, "config": config.to_dict()})

    assert build_config("supervised", "paper", file) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "is not valid YAML"), ("- 1", "must hold `key: value` lines"), ("", "must hold")],
)
def test_broken_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "s.yaml").write_text(text)

    with pytest.raises(MedsegError, match=words):
        read_settings(tmp_path / "s.yaml")
    with pytest.raises(NotFoundError, match=r"settings file .*none\.yaml does not exist"):
        read_settings(tmp_path / "none.yaml")


def test_unknown_names_are_one_sentence() -> None:
    with pytest.raises(NotFoundError, match="method caml has no preset 'gpu'; known presets: cpu, paper"):
        find_preset("caml", "gpu")
    with pytest.raises(MedsegError, match="CAMLConfig has no setting 'lerning_rate'; did you mean learning_rate"):
        build_config("caml", "cpu", None, {"lerning_rate": 1})


def test_pairs() -> None:
    assert parse_pairs(["a=1", "b = 2,3", "c=x=y"]) == {"a": "1", "b": "2,3", "c": "x=y"}
    for wrong in ("a", "=1"):
        with pytest.raises(MedsegError, match=f"--set '{wrong}' is not key=value"):
            parse_pairs([wrong])
