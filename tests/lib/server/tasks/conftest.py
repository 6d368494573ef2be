"""An app in this process over a tiny phantom study, with and without a trained model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medseg.phantoms.study import StudyOptions, write_study
from medseg.server.app import MedsegApp

CONF = {
    "models": "supervised",
    "set": "iterations=6,epoch_iterations=3,width=4,patch=16,16,16,amp=off",
    "device": "cpu",
    "tracking_uri": "off",
}
PHANTOMS = StudyOptions(shape=(24, 24, 16))

MakeApp = Callable[..., MedsegApp]


@pytest.fixture(scope="session")
def phantom_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 images, 3 labelled. Tests work on copies."""
    return write_study(tmp_path_factory.mktemp("phantoms") / "study", count=5, labelled=3, options=PHANTOMS)


@pytest.fixture
def make_app(phantom_study: Path, tmp_path: Path) -> MakeApp:
    """Makes an app on a copy of the study, the same copy at every call; keyword arguments are `--conf` keys."""

    def make(**conf: Any) -> MedsegApp:
        studies = tmp_path / "study"
        if not studies.exists():
            shutil.copytree(phantom_study, studies)
        settings = {**CONF, "model_dir": str(tmp_path / "model"), **{key: str(value) for key, value in conf.items()}}
        return MedsegApp(str(tmp_path / "app"), str(studies), settings)

    return make


@pytest.fixture(scope="session")
def trained_once(phantom_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study and its models after one training."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(phantom_study, folder / "study")
    app = MedsegApp(str(folder / "app"), str(folder / "study"), {**CONF, "model_dir": str(folder / "model")})
    app.train({"model": "supervised"})
    return folder / "model" / app.study.key


@pytest.fixture
def trained_app(make_app: MakeApp, trained_once: Path, tmp_path: Path) -> MedsegApp:
    """An app on a copy of the study, with a model of version 1."""
    app = make_app()
    shutil.copytree(trained_once, tmp_path / "model" / app.study.key, dirs_exist_ok=True)
    return make_app()
