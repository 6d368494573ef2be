from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.cases import Case
from medseg.errors import ConflictError, MedsegError
from medseg.methods.seg4reg.method import Seg4Reg
from medseg.methods.supervised.method import Supervised
from medseg.server.tasks import train as train_module
from medseg.server.tasks.train import _first_labelled
from medseg.training.run import TrainingStoppedError
from medseg.training.split import Split
from medseg.weak import WeakLabels


def test_training_publishes_and_a_second_one_meets_the_gate(make_app: Any) -> None:
    app = make_app()

    first = app.train({"model": "supervised", "client_id": "slicer", "device": ["cpu"]})
    second = app.train({"model": "supervised", "seed": 1})

    assert first["decision"]["published"] is True
    assert first["decision"]["labelled"] + first["decision"]["validation"] == 3
    assert second["decision"]["incumbent"] == pytest.approx(first["decision"]["quality"])
    better = second["decision"]["quality"] > first["decision"]["quality"]
    assert second["decision"]["published"] is better
    assert app.study.registry.champion("supervised").number == (2 if better else 1)
    (cases,) = {len(json.loads((run / "cases.json").read_text())) for run in app._trainers["supervised"].runs.folders()}
    assert cases == 5


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"iteration": 3}, "did you mean iterations"),
        ({"iterations": "x"}, "iterations"),
        ({"labelled": 99}, "labelled images that may train"),
        ({"labelled": "x"}, "whole number"),
        ({"processes": 0}, "whole number"),
        ({"init": "/etc/passwd"}, "--conf init"),
        ({"device": "tpu"}, "no device"),
        ({"amp": "float16"}, "amp = 'float16' is unknown"),
        ({"amp": "fp16"}, "needs a GPU"),
        ({"width": 0}, "must be at least 1"),
        (
            {"processes": 3, "labelled_batch": 4},
            "a batch of 4 labelled samples does not divide among 3 processes, only among 2; ask for 2, or",
        ),
    ],
)
def test_bad_requests_are_one_sentence_and_shown(make_app: Any, request_: dict[str, Any], says: str) -> None:
    app = make_app()

    with pytest.raises(MedsegError, match=says):
        app.train({"model": "supervised", **request_})

    stats = app.info()["train_stats"]["supervised"]
    assert stats["state"] == "failed"
    assert says.split()[-1] in stats["error"]


@pytest.mark.parametrize(("batches", "used"), [((2, 2), 2), ((4, 2), 2), ((6, 3), 3), ((1, 4), 1)])
def test_all_gpus_means_as_many_as_the_batches_divide_among(
    make_app: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    batches: tuple[int, int],
    used: int,
) -> None:
    task = make_app(models="caml", gpus="all")._trainers["caml"]
    monkeypatch.setattr(train_module, "resolve_device", lambda *_: "cuda")
    monkeypatch.setattr(train_module.torch.cuda, "device_count", lambda: 3)

    request = task.check({"labelled_batch": batches[0], "unlabelled_batch": batches[1]})

    assert request.processes == used
    words = f"a batch of {batches[0]} labelled and {batches[1]} unlabelled samples does not divide among 3 processes"
    assert (words in caplog.text) == (used < 3)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_another_process_holds_is_waited_for_and_resumed(
    make_app: Any, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    app, tries = make_app(), []

    def held_once(job: Any, *more: int) -> None:
        tries.append((job.resume, *more))
        if len(tries) == 1:
            raise ConflictError("in use")
        raise MedsegError("far enough")

    monkeypatch.setattr(train_module, "train" if processes == 1 else "train_distributed", held_once)
    with pytest.raises(MedsegError, match="far enough"):
        app.train({"model": "supervised", "processes": processes})

    assert tries == ([(False,), (True,)] if processes == 1 else [(False, 2), (True, 2)])


def test_an_orphan_does_not_ask_the_gate(make_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(validation="organ_000")
    server = subprocess.Popen(["sleep", "1000"])
    monkeypatch.setenv(train_module.SERVER_PID, str(server.pid))
    usual = train_module.train

    def train_until_it_dies(job: Any) -> None:
        usual(job)
        server.kill()
        server.wait()

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "train", train_until_it_dies)
        with pytest.raises(TrainingStoppedError, match=f"nothing is published because process {server.pid}"):
            app.train({"model": "supervised"})

    assert app.study.registry.champion("supervised") is None
    assert app.info()["train_stats"]["supervised"]["state"] == "stopped"
    monkeypatch.delenv(train_module.SERVER_PID)
    assert app.train({"model": "supervised"})["decision"]["published"] is True
    assert len(app._trainers["supervised"].runs.folders()) == 1  # the same run, which was only to be compared


def test_zero_labels_say_so_and_the_loop_goes_on(make_app: Any, tmp_path: Path) -> None:
    app = make_app()
    labels = tmp_path / "study" / "labels" / "final"
    kept = {path.name: path.read_bytes() for path in labels.iterdir()}
    for path in labels.iterdir():
        path.unlink()
    app.datastore().refresh()

    with pytest.raises(ConflictError, match=r"no image is labelled; save at least 1 label \(2, so"):
        app.train({"model": "supervised"})

    for name, content in kept.items():
        (labels / name).write_bytes(content)
    app.datastore().refresh()
    assert app.train({"model": "supervised"})["decision"]["published"] is True


def test_an_empty_study_is_refused_at_once(make_app: Any, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    app = make_app(models="local_discrimination", set="")

    with pytest.raises(ConflictError, match=r"study study-\w+ holds no image; add images"):
        app.prepare_job("train", "local_discrimination", {})


def test_one_label_only_trains_without_validation(make_app: Any, tmp_path: Path) -> None:
    app = make_app()
    for name in ("organ_001", "organ_002"):
        (tmp_path / "study" / "labels" / "final" / f"{name}.nii.gz").unlink()
    app.datastore().refresh()

    decision = app.train({"model": "supervised"})["decision"]

    assert (decision["labelled"], decision["validation"], decision["quality"]) == (1, 0, None)
    assert decision["published"] is True


def test_a_damaged_volume_is_left_out_and_named(make_app: Any, tmp_path: Path) -> None:
    app = make_app(validation="organ_001")
    image = tmp_path / "study" / "organ_002.nii.gz"
    image.write_bytes(gzip.compress(b"no header"))

    stats = app.train({"model": "supervised"})

    assert stats["decision"]["published"] is True
    assert "organ_002" in json.dumps(stats["skipped"])


def test_nan_and_out_of_memory_are_sentences_and_the_next_training_works(
    make_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    step = Supervised.training_step

    def nan(self: Supervised, batch: Any, iteration: int) -> Any:
        output = step(self, batch, iteration)
        output.loss = output.loss * float("nan")
        return output

    def memory(self: Supervised, batch: Any, iteration: int) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    for replacement, says in ((nan, "NaN"), (memory, "out of memory at patch")):
        monkeypatch.setattr(Supervised, "training_step", replacement)
        with pytest.raises(MedsegError, match=says):
            app.train({"model": "supervised"})
        assert says in app.info()["train_stats"]["supervised"]["error"]
        assert "Traceback" not in app.info()["train_stats"]["supervised"]["error"]
    monkeypatch.setattr(Supervised, "training_step", step)

    assert app.train({"model": "supervised"})["decision"]["published"] is True
    assert app.info()["train_stats"]["supervised"]["error"] is None


def test_labelled_hides_masks_but_keeps_images(make_app: Any) -> None:
    app = make_app(validation="organ_001")

    decision = app.train({"model": "supervised", "labelled": 1})["decision"]

    assert (decision["labelled"], decision["validation"]) == (1, 1)


def test_init_may_be_the_champion_of_another_method(trained_app: Any, make_app: Any) -> None:
    app = make_app(models="supervised,caml", init="champion:supervised")

    config = app._trainers["caml"].check({}).config

    champion = app.study.registry.champion("supervised")
    assert config.init == str(champion.folder / "model.safetensors")
    assert (
        make_app(models="supervised,caml", init="champion:caml")._trainers["supervised"].check({}).config.init is None
    )


def test_init_champion_starts_from_the_current_weights(trained_app: Any, make_app: Any) -> None:
    task = make_app(init="champion")._trainers["supervised"]

    config = task.check({}).config

    champion = trained_app.study.registry.champion("supervised")
    assert config.init == str(champion.folder / "model.safetensors")
    assert make_app()._trainers["supervised"].check({}).config.init is None


def test_config_offers_what_viewers_can_change(make_app: Any) -> None:
    config = make_app()._trainers["supervised"].config()

    assert config["iterations"] == 6
    assert config["device"] == ["cpu"]
    assert make_app()._trainers["supervised"].check(config).config.iterations == 6  # what a viewer sends back is fine


def test_fewer_labels_hide_whatever_the_method_learns_from() -> None:
    cases = tuple(
        Case(name, Path(name), weak=WeakLabels(angles={"max": 20.0}) if name < "d" else None) for name in "abcde"
    )

    found = _first_labelled(Split(cases, ()), 2, Seg4Reg).training

    assert [bool(case.weak and case.weak.angles) for case in found] == [True, True, False, False, False]
    with pytest.raises(MedsegError, match="has 3 labelled images"):
        _first_labelled(Split(cases, ()), 4, Seg4Reg)
