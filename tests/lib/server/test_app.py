from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from monailabel.config import settings as monai_settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.others.class_utils import get_class_of_subclass_from_file

from medseg.errors import MedsegError, NotFoundError
from medseg.phantoms.study import StudyOptions, write_study
from medseg.server import app as app_module
from medseg.server.app import MedsegApp

APP = Path(__file__).parents[3] / "apps" / "medseg"


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study", count=3, labelled=1, options=StudyOptions(shape=(16, 16, 8)))


def make(studies: Path, **conf: str) -> MedsegApp:
    common = {"models": "caml,supervised", "tracking_uri": "off", "device": "cpu"}
    settings = {**common, "model_dir": str(studies.parent / "model"), **conf}
    return MedsegApp(str(studies.parent / "app"), str(studies), settings)


def test_monai_label_finds_the_app_in_main() -> None:
    found = get_class_of_subclass_from_file("main", str(APP / "main.py"), "MONAILabelApp")

    assert found is MedsegApp
    assert MedsegApp.__bases__ == (MONAILabelApp,)


def test_main_is_wiring_only() -> None:
    assert len((APP / "main.py").read_text().splitlines()) < 20


def test_every_method_is_registered_everywhere(studies: Path) -> None:
    app = make(studies)

    assert list(app._trainers) == list(app._scoring_methods) == ["caml", "supervised"]
    clicks = ["caml_deepedit", "caml_deepgrow", "supervised_deepedit", "supervised_deepgrow"]
    assert list(app._infers) == ["caml", "supervised", *clicks]
    assert list(make(studies, models="supervised", clicks="false")._infers) == ["supervised"]


def test_models_of_two_studies_do_not_meet(studies: Path, tmp_path: Path) -> None:
    other = write_study(tmp_path / "b" / "study", count=1, labelled=1, options=StudyOptions(shape=(16, 16, 8)))

    first, second = make(studies), make(other)

    assert first.study.folder.name.startswith("study-")
    assert first.study.folder.name != second.study.folder.name


def test_wrong_defaults_of_monai_label_are_corrected(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_AUTO_UPDATE_SCORING", True)
    monkeypatch.setenv("MONAI_LABEL_AUTO_UPDATE_SCORING", "True")
    monkeypatch.setenv("PATH", "/usr/bin")

    app = make(studies)

    assert app._auto_update_scoring is False
    assert os.environ["MONAI_LABEL_AUTO_UPDATE_SCORING"] == "False"
    assert "*.mha" in monai_settings.MONAI_LABEL_DATASTORE_FILE_EXT
    assert "*.svs" not in monai_settings.MONAI_LABEL_DATASTORE_FILE_EXT
    assert str(Path(sys.executable).parent) in os.environ["PATH"].split(os.pathsep)


def test_info_lists_labels_in_their_order(studies: Path) -> None:
    app = make(studies, labels="wall,atrium")

    info = app.info()

    assert info["labels"] == ["wall", "atrium"]
    assert info["models"] == {}
    assert info["loop"]["labelled"] == 1


def test_latest_training_comes_first_in_train_stats(studies: Path) -> None:
    app = make(studies)
    assert list(app.info()["train_stats"]) == ["caml", "supervised"]
    with pytest.raises(MedsegError):
        app.train({"model": "supervised", "iterations": "x"})

    assert list(app.info()["train_stats"]) == ["supervised", "caml"]


@pytest.mark.parametrize("call", ["infer", "train", "batch_infer"])
def test_unknown_names_are_answered_with_the_known_ones(studies: Path, call: str) -> None:
    with pytest.raises(NotFoundError, match="known: caml, supervised"):
        getattr(make(studies), call)({"model": "x", "image": "organ_000"})
    with pytest.raises(NotFoundError, match="known: caml, supervised"):
        make(studies).scoring({"method": "x"})


def test_several_gpus_of_a_request_become_processes(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make(studies)
    monkeypatch.setattr(app_module.torch.cuda, "is_available", lambda: True)
    params: dict[str, Any] = {"gpus": "0,1,3", "device": "cpu", "labelled_batch": 3, "unlabelled_batch": 6}

    app.prepare_job("train", "caml", params)

    assert params["processes"] == 3
    with pytest.raises(MedsegError, match="2 labelled and 6 unlabelled samples does not divide among 3 processes"):
        app.prepare_job("train", "caml", params | {"labelled_batch": 2})


def test_a_job_process_ends_with_one_sentence(studies: Path) -> None:
    env = {
        **os.environ,
        "MONAI_LABEL_APP_DIR": str(APP),
        "MONAI_LABEL_STUDIES": str(studies),
        "MONAI_LABEL_APP_CONF": f'{{"models": "supervised", "tracking_uri": "off", "model_dir": "{studies.parent}/m"}}',
    }
    words = [sys.executable, "-m", "monailabel.interfaces.utils.app", "-m", "train", "-r"]

    done = subprocess.run(
        [*words, '{"model": "supervised", "labelled": 9}'], env=env, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 2
    assert "labelled is 9; this study has 1 labelled images that may train" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_trainers_named_in_a_request_for_all_are_no_settings(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make(studies)
    seen: list[dict[str, Any]] = []
    monkeypatch.setitem(app._trainers, "supervised", lambda request, datastore: seen.append(request))

    app.train({"model": "supervised", "supervised": {"iterations": 5}, "caml": {}, "iterations": 5})  # as OHIF sends it

    assert seen == [{"model": "supervised", "iterations": 5}]
