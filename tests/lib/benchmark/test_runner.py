"""Whole benchmarks of a tiny method on phantoms."""

from __future__ import annotations

import re
import threading
from dataclasses import replace

import numpy as np
import pytest

from medseg.benchmark import plan, runner
from medseg.benchmark.request import BenchmarkRequest
from medseg.benchmark.runner import run_benchmark
from medseg.benchmark.trial import same_identity
from medseg.errors import MedsegError
from medseg.files import read_json, write_json
from medseg.methods.base import Arm, ArmGroup
from medseg.sources import code_hash
from medseg.training.device import usable_cores


def test_summary_is_complete_and_its_means_are_those_of_its_cases(request_for, pictures):
    request = request_for(pictures)

    summary = run_benchmark(request)

    assert summary == read_json(request.out / "summary.json")
    assert (summary["metric"], list(summary["arms"]), summary["complete"]) == ("dice", ["plain", "full"], True)
    arm = summary["arms"]["full"]
    assert (arm["iterations"], arm["seeds"], len(arm["cases"])) == (4, 2, 3)
    by_seed = [np.mean(list(arm["cases_by_seed"][seed].values())) for seed in ("0", "1")]
    assert arm["mean"] == pytest.approx(np.mean(by_seed))
    assert arm["sd"] == pytest.approx(np.std(by_seed, ddof=1))
    assert arm["seconds"] > 0
    assert arm["peak_memory_mb"] > 50
    assert summary["differences"]["full"]["mean"] == pytest.approx(arm["mean"] - summary["arms"]["plain"]["mean"])


def test_no_held_out_case_is_trained_on_and_masks_of_the_pool_are_hidden(request_for, pictures, tiny):
    summary = run_benchmark(request_for(pictures, seeds=1))

    trained = {identifier for identifier, _ in tiny.seen}
    assert not trained & set(summary["held_out"][0])
    assert {i for i, labelled in tiny.seen if labelled} == set(summary["labelled"][0]) == {"s_000", "s_001"}
    assert len(trained) == 5


def test_report_shows_arms_cases_curves_and_overlays(request_for, pictures):
    request = request_for(pictures, seeds=1)

    run_benchmark(request)

    text = (request.out / "report.html").read_text(encoding="utf-8")
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", text)
    assert titles == ["Arms", "Cases", "Training", "Held-out cases", "Settings"]
    assert text.count("data:image/png") == 1 + 1 + 2 * 3
    assert "Not complete" not in text


def test_second_call_runs_nothing_and_more_seeds_run_only_those(request_for, pictures, monkeypatch):
    first = run_benchmark(request_for(pictures, seeds=1))
    ran: list[str] = []
    original = runner.run_trial
    monkeypatch.setattr(runner, "run_trial", lambda trial: (ran.append(trial.name), original(trial))[1])

    again = run_benchmark(request_for(pictures, seeds=1))
    more = run_benchmark(request_for(pictures, seeds=2))

    assert again == first
    assert ran == ["plain_seed1", "full_seed1"]
    assert more["arms"]["full"]["mean_by_seed"]["0"] == first["arms"]["full"]["mean"]


def test_killed_benchmark_keeps_its_finished_runs(request_for, pictures, monkeypatch):
    original = runner.run_trial

    def die_at_second(trial):
        if trial.name == "full_seed0":
            raise KeyboardInterrupt
        return original(trial)

    monkeypatch.setattr(runner, "run_trial", die_at_second)
    request = request_for(pictures, seeds=1)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(request)

    kept = read_json(request.out / "summary.json")
    assert (list(kept["arms"]), kept["complete"]) == (["plain"], False)


def test_other_settings_in_the_same_folder_are_refused_and_named(request_for, pictures):
    run_benchmark(request_for(pictures, seeds=1))

    with pytest.raises(MedsegError, match=r"plain_seed0 was made with other settings .*iterations 4 -> 6.*--out"):
        run_benchmark(request_for(pictures, seeds=1, iterations=6))


def test_failing_arm_is_reported_and_the_others_go_on(request_for, pictures):
    request = request_for(pictures, seeds=2, arms=("plain", "broken"))

    summary = run_benchmark(request)

    assert (list(summary["arms"]), summary["complete"]) == (["plain"], False)
    assert summary["failed"] == {"broken": "this arm is broken on purpose"}
    assert "broken on purpose" in (request.out / "report.html").read_text(encoding="utf-8")


def test_only_failing_arms_end_in_their_sentence(request_for, pictures):
    with pytest.raises(MedsegError, match="no arm of the benchmark ended well; broken: this arm is broken"):
        run_benchmark(request_for(pictures, seeds=1, arms=("broken",)))


def test_arm_that_is_a_function_gives_its_own_metric(request_for, pictures):
    summary = run_benchmark(request_for(pictures, arms=("speed",)))

    arm = summary["arms"]["ours"]
    assert (summary["metric"], summary["higher_is_better"], summary["unit"]) == ("seconds_per_step", False, "s")
    assert (arm["mean"], arm["sd"], arm["seconds"], arm["cases"]) == (3.5, 0.0, 7.0, {})
    assert arm["extra"]["note"] == "tiny on cpu"


def test_arm_that_trains_by_itself_is_evaluated_on_the_held_out_cases(request_for, pictures):
    summary = run_benchmark(request_for(pictures, seeds=1, arms=("full", "inside")))

    assert summary["arms"]["inside"]["cases"].keys() == summary["arms"]["full"]["cases"].keys()
    assert summary["arms"]["inside"]["iterations"] == 2


def test_seconds_of_an_arm_that_trains_by_itself_are_those_of_its_training(request_for, pictures, tmp_path):
    """Also after an interruption: what was trained before it counts, loading and evaluating do not."""
    request = request_for(pictures, seeds=1, arms=("inside",))
    [trial] = plan.plan_benchmark(request).trials
    write_json(trial.out / "trial.json", trial.to_dict())
    runner.run_trial(trial)
    file = trial.out / "model" / "metrics.json"
    write_json(file, {**read_json(file), "seconds": 4321.0, "code": ["older"]})  # a long training, finished earlier
    (trial.out / "result.json").unlink()

    summary = run_benchmark(request)

    assert summary["arms"]["inside"]["seconds"] == 4321.0
    assert read_json(trial.out / "result.json")["code"] == ["older", code_hash()]


def test_report_tells_the_parts_of_a_union_and_what_cannot_be_compared(request_for, pictures, tmp_path):
    for name in ("images", "labels"):
        (tmp_path / "more" / name).mkdir(parents=True)
        for file in sorted((pictures / name).iterdir()):
            (tmp_path / "more" / name / f"t{file.name[1:]}").write_bytes(file.read_bytes())
    request = replace(request_for(pictures, seeds=1, held_out=4), data=(pictures, tmp_path / "more"))
    arm = run_benchmark(request)["arms"]["full"]
    kept = request.out / "runs" / "plain_seed0" / "result.json"
    result = read_json(kept)
    gone = result["cases"].popitem()[0]
    write_json(kept, {**result, "code": ["older"]})

    summary = run_benchmark(request)

    means = {name: np.mean([v for c, v in arm["cases"].items() if c[0] == name]) for name in "st"}
    groups = {"s": pictures.name, "t": "more"}
    assert {group: arm["groups"][group]["mean"] for group in groups.values()} == pytest.approx(
        {groups[name]: mean for name, mean in means.items()}
    )
    assert arm["over_groups"]["mean"] == pytest.approx(np.mean(list(means.values())))
    by_code, by_cases = summary["remarks"]
    assert f"plain_seed0 by older; full_seed0 by {code_hash()}" in by_code
    assert f"Arm plain was judged on 3 of 4 cases, without {gone}" in by_cases
    assert summary["differences"]["full"]["cases"] == 3
    text = (request.out / "report.html").read_text(encoding="utf-8")
    assert by_cases in text
    assert "mean over groups" in text


def test_a_region_mask_belongs_to_the_identity_of_a_trial(request_for, pictures, tmp_path):
    [trial] = plan.plan_benchmark(request_for(pictures, seeds=1, arms=("full",))).trials
    (tmp_path / "regions.png").write_bytes(b"123")
    case = replace(trial.held_out[0], regions=tmp_path / "regions.png")
    other = replace(trial, held_out=(case, *trial.held_out[1:]))

    assert same_identity(trial.identity(), other.identity()) == ["held_out"]
    (tmp_path / "regions.png").write_bytes(b"1234")
    assert same_identity(other.identity(), trial.identity()) == ["held_out"]
    assert other.identity()["held_out"][0][-1] == 4


def test_folds_on_volumes_report_on_every_masked_case(request_for, volumes):
    request = request_for(volumes, seeds=1, folds=2, labelled=2, arms=("full",), settings={"dimension": 3})

    summary = run_benchmark(request)

    assert sorted(summary["arms"]["full"]["cases"]) == [f"v_00{i}" for i in range(5)]
    assert (request.out / "runs" / "full_seed0_fold1" / "model.safetensors").exists()
    assert {"dice_atrium", "dice_ventricle", "hd95_mm"} <= summary["arms"]["full"]["metrics"].keys()
    text = (request.out / "report.html").read_text(encoding="utf-8")
    assert "atrium" not in summary["failed"]
    assert text.count("data:image/png") == 1 + 1 + 3


def test_preset_for_larger_data_holds_out_fewer_cases(request_for, pictures):
    summary = run_benchmark(request_for(pictures, seeds=1, labelled=6, arms=("full",)))

    assert len(summary["held_out"][0]) == 1


def test_run_in_a_process_of_its_own_gives_the_same(tmp_path, pictures):
    def bench(isolate: bool) -> dict:
        settings = {"patch": "16,16", "width": 4, "labelled_batch": 2}
        options = {"arms": ("vnet",), "labelled": 2, "held_out": 2, "iterations": 2, "scale": 1.0, "seeds": 1}
        out = tmp_path / str(isolate)
        return run_benchmark(
            BenchmarkRequest(
                "supervised", (pictures,), out, device="cpu", settings=settings, isolate=isolate, **options
            )
        )

    inside, outside = bench(isolate=False), bench(isolate=True)

    assert outside["complete"]
    assert outside["arms"]["vnet"]["cases"] == pytest.approx(inside["arms"]["vnet"]["cases"], abs=1e-4)


def test_several_runs_at_a_time_are_all_counted(request_for, pictures, monkeypatch):
    together = threading.Barrier(2, timeout=20)  # breaks unless two runs are under way at the same time
    one_by_one = threading.Lock()

    threads_given = []

    def run_here(trial, threads):
        threads_given.append(threads)
        together.wait()
        with one_by_one:
            runner.run_trial(trial)

    monkeypatch.setattr(runner, "_run_in_child", run_here)

    summary = run_benchmark(request_for(pictures, isolate=True, jobs=2))

    assert summary["complete"]
    assert summary["arms"]["full"]["seeds"] == 2
    assert set(threads_given) == {max(1, usable_cores() // 2)}


@pytest.mark.parametrize(("timed", "device", "jobs"), [(False, "cpu", 6), (True, "cpu", 1), (False, "cuda:0", 1)])
def test_runs_share_the_cores_unless_time_is_measured_or_a_gpu_is_used(monkeypatch, timed, device, jobs):
    monkeypatch.setattr(plan, "usable_cores", lambda: 6)
    assert plan._jobs(ArmGroup((Arm("a"),), "dice", timed=timed), device) == jobs


def test_a_benchmark_on_a_cpu_is_planned_for_all_cores(monkeypatch, request_for, pictures):
    monkeypatch.setattr(plan, "usable_cores", lambda: 6)
    assert plan.plan_benchmark(request_for(pictures)).request.jobs == 6
    assert plan.plan_benchmark(request_for(pictures, jobs=2)).request.jobs == 2


def test_process_that_fails_leaves_its_sentence(tmp_path, pictures):
    broken = tmp_path / "broken"
    for part in ("images", "labels"):
        (broken / part).mkdir(parents=True)
        for file in sorted((pictures / part).iterdir()):
            (broken / part / file.name).write_bytes(b"no picture" if part == "images" else file.read_bytes())

    with pytest.raises(MedsegError, match=r"unet: .*s_00\d\.png cannot be read, it seems damaged"):
        run_benchmark(
            BenchmarkRequest(
                "supervised", (broken,), tmp_path / "out", arms=("unet",), labelled=2, held_out=2, seeds=1, device="cpu"
            )
        )


def test_kept_trial_had_the_default_of_a_setting_that_came_later():
    kept = {"config": {"iterations": 4}}

    assert same_identity({"config": {"iterations": 4, "norm": "batch"}}, kept, {"norm": "batch"}) == []
    assert same_identity({"config": {"iterations": 4, "norm": "x"}}, kept, {"norm": "batch"}) == ["norm batch -> x"]
    assert same_identity({"config": {"iterations": 4}}, kept, {"norm": "batch"}) == []
