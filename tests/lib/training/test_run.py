from __future__ import annotations

import logging
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ignite.engine import Engine
from safetensors.torch import load_file

from medseg import methods
from medseg.cases import Case, load_cases
from medseg.errors import MedsegError
from medseg.files import read_json
from medseg.inference.evaluation import evaluate
from medseg.inference.predictor import Predictor
from medseg.methods.base import Batch, StepOutput
from medseg.methods.caml.config import CAMLConfig
from medseg.methods.caml.method import CAML
from medseg.methods.supervised.config import SupervisedConfig
from medseg.methods.supervised.method import Supervised
from medseg.sources import code_hash
from medseg.training import run as run_module
from medseg.training.processes import alive
from medseg.training.run import Run, TrainingJob, TrainingStoppedError, explain, pick_device, train
from medseg.weak import WeakLabels

SMALL = {"patch": (16, 16, 16), "width": 4, "amp": "off", "iterations": 12, "epoch_iterations": 3}


def job(phantoms: Path, out: Path, **settings: object) -> TrainingJob:
    config = SupervisedConfig.from_dict({**SMALL, "network": "vnet", "labelled_batch": 2, **settings})
    cases = tuple(load_cases(phantoms))
    return TrainingJob("supervised", config, {"atrium": 1}, cases[1:], cases[:1], out, "cpu")


def caml_job(phantoms: Path, out: Path, training: tuple[Case, ...], **settings: object) -> TrainingJob:
    config = CAMLConfig.from_dict({**SMALL, "iterations": 3, "labelled_batch": 2, "unlabelled_batch": 1, **settings})
    return TrainingJob("caml", config, {"atrium": 1}, training, (), out, "cpu")


def gone_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def calm(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of `job`."""
    out = tmp_path_factory.mktemp("calm")
    train(job(phantoms, out))
    return out


def test_run_leaves_model_config_metrics_and_progress(phantoms: Path, calm: Path) -> None:
    metrics, progress = read_json(calm / "metrics.json"), read_json(calm / "progress.json")

    assert (metrics["method"], metrics["iterations"], metrics["device"], metrics["processes"]) == (
        "supervised",
        12,
        "cpu",
        1,
    )
    assert (metrics["labelled"], metrics["unlabelled"]) == (["organ_001", "organ_002", "organ_003"], 0)  # not used
    assert [entry["iteration"] for entry in metrics["history"]] == [3, 6, 9, 10, 12, 12]
    assert metrics["history"][-1]["validation"] == metrics["validation"]["quality"]
    assert metrics["peak_memory_mb"] > 10
    expected = {"state": "done", "epoch": 4, "epochs": 4, "iteration": 12, "iterations": 12, "error": None}
    assert {key: progress[key] for key in expected} == expected
    assert progress["eta_seconds"] == 0.0
    assert progress["validation"]["quality"] == metrics["validation"]["quality"]
    case = load_cases(phantoms)[0]
    again = evaluate(Predictor.from_folder(calm), [case])
    assert again.to_dict() == metrics["validation"]


@pytest.mark.parametrize(
    "settings", [{"epoch_iterations": 5}, {"validate_every": 1}, {"workers": 1}, {"cache_gb": 0}], ids=str
)
def test_how_a_run_is_watched_and_fed_does_not_change_it(
    phantoms: Path, calm: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    train(job(phantoms, tmp_path, **settings))

    assert same_weights(calm, tmp_path)


def test_seed_changes_it(phantoms: Path, calm: Path, tmp_path: Path) -> None:
    train(job(phantoms, tmp_path, seed=1))

    assert not same_weights(calm, tmp_path)


def stop_after_one(of: TrainingJob) -> None:
    usual = Run._after_iteration

    def ask_first(run: Run, engine: Engine) -> None:
        run.stop("a test asked for it")
        usual(run, engine)

    with (
        patch.object(Run, "_after_iteration", ask_first),
        pytest.raises(TrainingStoppedError, match="because a test asked for it; its checkpoint is kept"),
    ):
        train(of)


def test_run_that_nobody_waits_for_reads_no_further_image(phantoms: Path, tmp_path: Path) -> None:
    orphan = replace(job(phantoms, tmp_path), watch_pids=(gone_pid(),))
    with (
        patch.object(run_module.CaseCache, "get", autospec=True, side_effect=run_module.CaseCache.get) as read,
        pytest.raises(TrainingStoppedError, match=r"while it read images because process \d+, which"),
    ):
        train(orphan)

    assert read.call_count == 1
    assert read_json(tmp_path / "progress.json")["state"] == "stopped"
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("validate_every", [0, 2])
def test_orphan_stops_amid_a_validation_and_resumes_after_it(
    phantoms: Path, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validate_every: int
) -> None:
    cases = load_cases(phantoms)
    of = replace(job(phantoms, tmp_path, validate_every=validate_every), validation=tuple(cases[:2]))
    boss = subprocess.Popen(["sleep", "1000"])
    measured: list[str] = []

    def evaluate_until_it_dies(predictor: Predictor, some: Any, progress: Any) -> Any:
        def after(case: Case, metrics: dict[str, float]) -> None:
            measured.append(case.id)
            boss.kill()
            boss.wait()
            progress(case, metrics)

        return evaluate(predictor, some, after)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "evaluate", evaluate_until_it_dies)
        stopped = 6 if validate_every else 12
        with pytest.raises(TrainingStoppedError, match=f"at iteration {stopped} of 12 because process {boss.pid}"):
            train(replace(of, watch_pids=(boss.pid,)))

    assert measured == [cases[0].id]
    assert not (tmp_path / "metrics.json").exists()
    metrics = train(replace(of, resume=True))
    assert list(metrics["validation"]["cases"]) == [case.id for case in cases[:2]]
    assert same_weights(calm, tmp_path)


@pytest.mark.parametrize(("damage", "resumed"), [("newest", 1), ("both", 0), ("none", 2)])
def test_damaged_checkpoint_gives_way_to_the_one_before(
    phantoms: Path, calm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, resumed: int
) -> None:
    caplog.set_level(logging.INFO)
    stop_after_one(job(phantoms, tmp_path))
    stop_after_one(replace(job(phantoms, tmp_path), resume=True))
    names = {"newest": ["checkpoint.pt"], "both": ["checkpoint.pt", "checkpoint.pt.previous"], "none": []}
    for name in names[damage]:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(content[: len(content) // 2])

    train(replace(job(phantoms, tmp_path), resume=True))

    assert (f"resuming at iteration {resumed}" in caplog.text) == (resumed > 0)
    assert same_weights(calm, tmp_path)


def test_resuming_with_other_settings_is_one_sentence(phantoms: Path, calm: Path, tmp_path: Path) -> None:
    stop_after_one(job(phantoms, tmp_path))

    with pytest.raises(MedsegError, match="made with other settings or other cases; start anew without --resume"):
        train(replace(job(phantoms, tmp_path, learning_rate=0.5), resume=True))
    assert read_json(tmp_path / "progress.json")["state"] == "failed"
    other_cases = job(phantoms, tmp_path)
    with pytest.raises(MedsegError, match="other cases"):
        train(replace(other_cases, training=other_cases.training[1:], resume=True))
    train(replace(job(phantoms, tmp_path), resume=True))
    assert same_weights(calm, tmp_path)


def relabelled(of: TrainingJob, folder: Path) -> TrainingJob:
    """The same job with a copy of its first label, which a test may correct."""
    folder.mkdir()
    case = of.training[0]
    label = folder / case.label.name
    label.write_bytes(case.label.read_bytes())
    return replace(of, training=(replace(case, label=label), *of.training[1:]))


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_whose_label_was_corrected_is_not_continued(phantoms: Path, tmp_path: Path, finished: bool) -> None:
    of = relabelled(job(phantoms, tmp_path / "run", iterations=3), tmp_path / "labels")
    if finished:
        train(of)
    else:
        stop_after_one(of)
    label = of.training[0].label
    os.utime(label, ns=(1, 1))

    with pytest.raises(MedsegError, match=r"learnt from organ_001 before its files or weak labels were changed; start"):
        train(replace(of, resume=True))
    weak = replace(of.training[1], weak=WeakLabels(extent={"1": 3.0}))
    with pytest.raises(MedsegError, match="learnt from organ_001 and 1 more before"):
        train(replace(of, resume=True, training=(of.training[0], weak, *of.training[2:])))


def test_longer_budget_is_told_when_a_run_resumes(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop_after_one(job(phantoms, tmp_path, iterations=3))
    train(replace(job(phantoms, tmp_path, iterations=3), resume=True))
    assert "iterations changed" not in caplog.text

    train(replace(job(phantoms, tmp_path, iterations=4), resume=True))

    assert "iterations changed from 3 to 4: schedules and stages that follow the budget are stretched" in caplog.text


def test_run_tells_the_code_of_every_start(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after_one(job(phantoms, tmp_path, iterations=3))
    monkeypatch.setattr(run_module, "code_hash", lambda: "newer")

    metrics = train(replace(job(phantoms, tmp_path, iterations=3), resume=True))

    assert metrics["code"] == [code_hash(), "newer"]
    assert read_json(tmp_path / "config.json")["code"] == code_hash()


def test_finished_run_is_not_repeated_and_not_passed_off_as_another(phantoms: Path, tmp_path: Path) -> None:
    first = train(job(phantoms, tmp_path))
    stamp = (tmp_path / "model.safetensors").stat().st_mtime_ns

    again = train(replace(job(phantoms, tmp_path), resume=True))

    assert again["history"] == first["history"]
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(MedsegError, match="made with other settings"):
        train(replace(job(phantoms, tmp_path, seed=4), resume=True))


def test_finished_run_goes_on_when_more_iterations_are_asked_for(phantoms: Path, calm: Path, tmp_path: Path) -> None:
    train(job(phantoms, tmp_path, iterations=6))
    train(replace(job(phantoms, tmp_path), resume=True))

    assert same_weights(calm, tmp_path)


def test_new_run_in_an_old_folder_forgets_the_old_checkpoint(phantoms: Path, calm: Path, tmp_path: Path) -> None:
    train(job(phantoms, tmp_path, seed=5))
    with pytest.raises(MedsegError, match="at least 1 labelled case"):  # dies before its first checkpoint
        train(replace(job(phantoms, tmp_path), training=tuple(c.without_label() for c in load_cases(phantoms))))

    train(replace(job(phantoms, tmp_path), resume=True))

    assert same_weights(calm, tmp_path)


def test_nan_loss_is_one_sentence_and_the_checkpoint_before_it_stays(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Supervised.training_step

    def explode(self: Supervised, batch: Batch, iteration: int) -> StepOutput:
        output = step(self, batch, iteration)
        factor = float("nan") if iteration >= 7 else 1.0
        return StepOutput(output.loss * factor, {"supervised": output.loss.detach() * factor})

    monkeypatch.setattr(Supervised, "training_step", explode)
    with pytest.raises(MedsegError, match=r"became NaN or infinite near iteration 9; lower learning_rate \(now 0.01\)"):
        train(job(phantoms, tmp_path))

    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 6
    progress = read_json(tmp_path / "progress.json")
    assert progress["state"] == "failed"
    assert "loss, supervised became NaN" in progress["error"]
    assert not (tmp_path / "model.safetensors").exists()


def test_huge_learning_rate_ends_in_the_same_sentence(phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match=r"became NaN or infinite near iteration \d+; lower learning_rate"):
        train(job(phantoms, tmp_path, learning_rate=1e30, network="unet", norm="instance", patch=(32, 16, 16)))

    assert read_json(tmp_path / "progress.json")["state"] == "failed"


def test_weights_that_are_not_finite_are_never_stored(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finite loss can have a gradient that is not: the square root at 0."""
    step = Supervised.training_step

    def poison(self: Supervised, batch: Batch, iteration: int) -> StepOutput:
        output = step(self, batch, iteration)
        if iteration == 5:
            weight = next(self.network.parameters())
            return StepOutput(output.loss + torch.sqrt((weight * 0).sum()), output.terms)
        return output

    monkeypatch.setattr(Supervised, "training_step", poison)
    with pytest.raises(MedsegError, match="the weights became NaN or infinite near iteration 6"):
        train(job(phantoms, tmp_path))

    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 3


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
            r"out of memory at patch \(16, 16, 16\); lower patch, width or the batch, or set cache_gb below 4.0",
        ),
        (MemoryError(), "out of memory at patch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory at patch"),
        (KeyError("x"), "training failed: KeyError: 'x'"),
        (ZeroDivisionError(), "training failed: ZeroDivisionError: ZeroDivisionError"),
    ],
)
def test_any_failure_is_one_sentence(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(self: Supervised, batch: Batch, iteration: int) -> StepOutput:
        raise error

    monkeypatch.setattr(Supervised, "training_step", fail)
    with pytest.raises(MedsegError, match=words) as caught:
        train(job(phantoms, tmp_path))

    progress = read_json(tmp_path / "progress.json")
    assert (progress["state"], progress["error"]) == ("failed", str(caught.value))
    assert progress["passing"] is words.startswith("out of memory"), "only what may be gone later is gone on from"
    assert "\n" not in str(caught.value)


def damaged(case: Case, folder: Path, what: str) -> Case:
    source: Path = getattr(case, what)
    folder.mkdir(exist_ok=True)
    file = folder / f"{case.id}_{what}.nii.gz"
    file.write_bytes(source.read_bytes()[:200])
    return replace(case, **{what: file})


def test_damaged_volumes_are_left_out_and_named(phantoms: Path, tmp_path: Path) -> None:
    plain = job(phantoms, tmp_path / "run", iterations=2)
    one, two, *rest = plain.training
    training = (damaged(one, tmp_path, "image"), damaged(two, tmp_path, "label"), *rest)
    broken = replace(plain.validation[0], id="broken", label=tmp_path / f"{two.id}_label.nii.gz")

    metrics = train(replace(plain, training=training, validation=(*plain.validation, broken)))

    assert [entry["case"] for entry in metrics["skipped"]] == [one.id, two.id, "broken"]
    assert "cannot be read, it seems damaged" in metrics["skipped"][0]["reason"]
    assert metrics["labelled"] == ["organ_003"]
    assert set(metrics["validation"]["cases"]) == {"organ_000"}
    assert read_json(tmp_path / "run" / "progress.json")["skipped"] == metrics["skipped"]


def test_nothing_usable_is_one_sentence(phantoms: Path, tmp_path: Path) -> None:
    plain = job(phantoms, tmp_path / "run")
    training = tuple(damaged(case, tmp_path, "label") if case.label else case for case in plain.training)

    with pytest.raises(MedsegError, match=r"none of the 3 labelled cases can be used; the first: organ_001_label"):
        train(replace(plain, training=training))
    with pytest.raises(MedsegError, match="needs at least 1 labelled case, got 0"):
        train(replace(plain, training=tuple(case.without_label() for case in plain.training)))


def test_caml_without_unlabelled_images_learns_from_masks_alone(phantoms: Path, tmp_path: Path) -> None:
    labelled = tuple(case for case in load_cases(phantoms) if case.label)

    metrics = train(caml_job(phantoms, tmp_path / "few", labelled))
    with pytest.raises(MedsegError, match="CAML needs at least 1 labelled case, got 0 among 4"):
        train(caml_job(phantoms, tmp_path / "none", tuple(case.without_label() for case in labelled)))

    assert metrics["unlabelled"] == 0
    assert {"supervised", "mutual", "correlation"} <= set(metrics["history"][-1])
    assert isinstance(Predictor.from_folder(tmp_path / "few").method, CAML)


def test_run_starts_from_another_model(phantoms: Path, calm: Path, tmp_path: Path) -> None:
    train(job(phantoms, tmp_path, iterations=1, learning_rate=0.0, init=str(calm / "model.safetensors")))

    first, second = (load_file(folder / "model.safetensors") for folder in (calm, tmp_path))
    trained = [key for key in first if key.endswith("weight") and first[key].ndim > 1]
    assert len(trained) > 20
    assert all(torch.equal(first[key], second[key]) for key in trained)


def test_one_term_is_read_every_ten_iterations(phantoms: Path, tmp_path: Path) -> None:
    metrics = train(job(phantoms, tmp_path, iterations=25, epoch_iterations=100))

    assert [entry["iteration"] for entry in metrics["history"]][:-1] == [10, 20, 25]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "toy", "toy_method:Toy")


def test_new_method_needs_its_folder_and_one_line(toy: None, tmp_path: Path) -> None:
    """Trained, resumed, saved, loaded and evaluated by the same functions as every other."""
    from medseg.phantoms.study import FLAT, write_dataset
    from medseg.training.command import TrainRequest, train_command

    data = write_dataset(tmp_path / "data", 6, options=replace(FLAT, shape=(40, 32)))

    metrics = train_command(TrainRequest("toy", (data,), tmp_path / "run", "cpu", typed={"seed": "1"}, device="cpu"))

    history = [entry["entropy"] for entry in metrics["history"] if "entropy" in entry]
    assert history[-1] < 0.8 * 0.6931  # better than knowing nothing
    result = evaluate(Predictor.from_folder(tmp_path / "run"), load_cases(data))
    assert result.quality > 0.4
    assert metrics["iterations"] == 60
    assert read_json(tmp_path / "run" / "config.json")["config"]["pixels"] == 256


def test_process_is_alive_until_it_ends() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    assert alive(process.pid)
    process.kill()
    while alive(process.pid):  # a zombie counts as gone, although nobody has fetched its status
        pass
    process.wait()
    assert alive(os.getpid())
    assert not alive(process.pid)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert pick_device(None) == torch.device("cpu")
    with pytest.raises(MedsegError, match="device 'cuda' is not available on this machine; use --device cpu"):
        pick_device("cuda")
    with pytest.raises(MedsegError, match="device 'gpu0' is unknown"):
        pick_device("gpu0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(MedsegError, match="device 'cuda:2' does not exist; this machine has 2 GPUs"):
        pick_device("cuda:2")
    assert pick_device("cuda:1") == torch.device("cuda", 1)


def test_explanation_of_an_error_for_people_is_the_error() -> None:
    assert explain(MedsegError("one sentence"), SupervisedConfig()) == "one sentence"
    assert run_module.READ_TERMS_EVERY == 10
