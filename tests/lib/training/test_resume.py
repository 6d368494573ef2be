"""Training processes that die, are stopped, or meet each other, and what is left of them."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medseg.files import read_json

ITERATIONS = {"supervised": 60, "caml": 24, "local_discrimination": 24}
SETTINGS = {
    "supervised": {"network": "vnet", "labelled_batch": 2},
    # dropout, the bank, the running average and the attention's coin are all state that must survive
    "caml": {"labelled_batch": 1, "unlabelled_batch": 1, "average": 0.9, "perturb": "intensity"},
    # the prototypes' running average; regions begin between two kills
    "local_discrimination": {"image_batch": 2, "patch": "24,24,16", "warmup": 0.4},
}


def arguments(method: str, data: Path, out: Path, *more: object, iterations: int = 0) -> list[object]:
    shared = {
        "patch": "16,16,16",
        "width": 4,
        "scale": 1,
        "amp": "off",
        "epoch_iterations": 4,
        "validation_fraction": 0,
    }
    total = iterations or ITERATIONS[method]
    pairs = [f"--set={key}={value}" for key, value in {**shared, **SETTINGS[method]}.items()]
    return ["train", method, "--data", data, "--out", out, "--device", "cpu", "--iterations", total, *pairs, *more]


def iteration_of(run: Path) -> int:
    """How far a run says it is."""
    return int(read_json(run / "progress.json", default={}).get("iteration", 0))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_killed_three_times_ends_with_the_weights_of_an_undisturbed_run(
    start: Any, phantoms: Path, tmp_path: Path, method: str
) -> None:
    """Bit for bit: batches follow from the iteration, everything else random is in the checkpoint."""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    first = start(arguments(method, phantoms, calm))
    chance = random.Random(f"kill {method}")
    total = ITERATIONS[method]
    moments = [
        total * sixth // 6 + chance.randint(-1, total // 20) for sixth in (1, 2, 3)
    ]  # half is left to be killed in

    for number, moment in enumerate(moments):
        child = start(arguments(method, phantoms, killed, *(["--resume"] if number else [])))
        child.wait_until(lambda moment=moment: iteration_of(killed) >= moment)
        child.send(signal.SIGKILL)
        assert child.wait() is None, child.output
        assert not (killed / "metrics.json").exists(), "it was done before it was killed"
        assert read_json(killed / "progress.json")["state"] == "running"
    last = start(arguments(method, phantoms, killed, "--resume"))

    assert last.wait() == 0, last.output
    assert first.wait() == 0, first.output
    resumed = [line for line in last.output.splitlines() if "resuming at iteration" in line]
    assert int(resumed[0].split()[-1]) >= total // 3  # not from the start
    assert same_weights(calm, killed)
    calm_metrics, metrics = (read_json(run / "metrics.json") for run in (calm, killed))
    assert metrics["history"] == calm_metrics["history"]
    assert metrics["iterations"] == total
    assert read_json(killed / "progress.json")["state"] == "done"


def test_sigterm_leaves_a_checkpoint_of_this_very_iteration(start: Any, phantoms: Path, tmp_path: Path) -> None:
    run, calm = tmp_path / "run", tmp_path / "calm"
    slow = ["--set=epoch_iterations=1000"]  # no epoch ends before the signal
    child = start(arguments("supervised", phantoms, run, *slow, iterations=4000))
    child.wait_until(lambda: iteration_of(run) >= 3)
    child.send(signal.SIGTERM)

    assert child.wait() == 2
    assert "because it received SIGTERM; its checkpoint is kept" in child.output
    progress = read_json(run / "progress.json")
    assert progress["state"] == "stopped"
    done = torch.load(run / "checkpoint.pt", weights_only=True)["iteration"]
    assert progress["iteration"] == done
    more = start(arguments("supervised", phantoms, run, "--resume", *slow, iterations=done + 5))
    other = start(arguments("supervised", phantoms, calm, iterations=done + 5))
    assert more.wait() == 0, more.output
    assert other.wait() == 0, other.output
    assert same_weights(run, calm)


def test_stops_when_the_process_it_works_for_is_gone(start: Any, phantoms: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    boss = subprocess.Popen(["sleep", "1000"])
    child = start(arguments("supervised", phantoms, run, "--watch-pid", boss.pid, iterations=100000))
    child.wait_until(lambda: iteration_of(run) >= 3)
    assert child.running

    boss.kill()
    boss.wait()

    assert child.wait() == 2
    assert f"process {boss.pid}, which asked for it, is gone" in read_json(run / "progress.json")["error"]
    assert (run / "checkpoint.pt").exists()


def test_second_process_on_a_run_is_refused_and_harms_nothing(start: Any, phantoms: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    holder = start(arguments("supervised", phantoms, run, iterations=100000))
    holder.wait_until(lambda: iteration_of(run) >= 3)

    second = start(arguments("supervised", phantoms, run, "--resume"))

    assert second.wait() == 2
    assert f"is in use by process {holder.pid}; wait for it or choose another --out" in second.output
    assert "Traceback" not in second.output
    assert read_json(run / "progress.json")["state"] == "running"
    holder.send(signal.SIGKILL)
    assert holder.wait() is None
