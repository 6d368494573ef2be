"""Two processes that share a batch (gloo, CPU) against one process with the same total batch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_method
from safetensors.torch import load_file

from medseg.files import read_json
from medseg.training.run import READ_TERMS_EVERY

# instance norm and no dropout: then no sample's result depends on which process, or which neighbours, it had
SETTINGS = {
    "patch": "32,16,16",
    "width": 4,
    "scale": 1,
    "amp": "off",
    "epoch_iterations": 4,
    "validation_fraction": 0,
    "norm": "instance",
    "dropout": 0,
    "labelled_batch": 4,
}
ITERATIONS = 12
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]


def arguments(method: str, data: Path, out: Path, **settings: object) -> list[str]:
    pairs = [f"--set={key}={value}" for key, value in {**SETTINGS, **settings}.items()]
    head = ["train", method, "--data", str(data), "--out", str(out), "--device", "cpu"]
    return [*head, "--iterations", str(ITERATIONS), *pairs]


def losses(run: Path, term: str) -> dict[int, float]:
    history = read_json(run / "metrics.json")["history"]
    return {entry["iteration"]: entry[term] for entry in history if term in entry}


ONE_PROCESS = """
import sys
from pathlib import Path
from medseg import methods
methods.METHODS["sharded"] = "toy_method:Sharded"
from medseg.cli import main
main()
"""


def one_process(method: str, data: Path, out: Path) -> Path:
    """In a process of its own, as torchrun's are: threads that other tests leave behind draw random numbers too."""
    command = [sys.executable, "-c", ONE_PROCESS, *arguments(method, data, out, network="vnet")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(toy_method.__file__).parent)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_two_processes_reach_the_loss_of_one(phantoms: Path, tmp_path: Path) -> None:
    """To rounding, against one process whose loss is the mean over the two halves of its batch, which is what data
    parallelism computes; to 5 % at every reading against the usual loss, whose Dice sums over the whole batch at once.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "medseg"]
    command += arguments("supervised", phantoms, tmp_path / "two", network="vnet")
    two = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    halves = one_process("sharded", phantoms, tmp_path / "halves")
    whole = one_process("supervised", phantoms, tmp_path / "whole")

    output, _ = two.communicate()
    assert two.returncode == 0, output
    assert read_json(tmp_path / "two" / "metrics.json")["processes"] == 2
    reached = losses(tmp_path / "two", "supervised")
    assert sorted(reached) == [4, 8, 10, 12]
    assert reached == pytest.approx(losses(halves, "supervised"), rel=1e-4)
    assert reached == pytest.approx(losses(whole, "supervised"), rel=0.05)
    ours, theirs = (load_file(run / "model.safetensors") for run in (tmp_path / "two", halves))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4, msg=name)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_two(start: Any, argv: list[str]) -> list[Any]:
    """Two processes with the environment that torchrun gives."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared |= {"TORCHELASTIC_RUN_ID": "test"}
    return [start(argv, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in (0, 1)]


@pytest.mark.slow
def test_caml_in_two_processes_stays_near_one(start: Any, phantoms: Path, tmp_path: Path) -> None:
    """Not to rounding: attention across samples and the drawn voxels see each process's half of the batch only."""
    settings = {"labelled_batch": 2, "unlabelled_batch": 2, "attention_dropout": 0, "drop_batch": 1}

    children = start_two(start, arguments("caml", phantoms, tmp_path / "two", **settings))
    one = start(arguments("caml", phantoms, tmp_path / "one", **settings))

    for child in (*children, one):
        assert child.wait() == 0, child.output
    assert read_json(tmp_path / "two" / "metrics.json")["unlabelled"] == 2
    for term, tolerance in (("supervised", 0.08), ("mutual", 0.15)):
        assert losses(tmp_path / "two", term) == pytest.approx(losses(tmp_path / "one", term), rel=tolerance), term


def test_uneven_batch_is_one_sentence_in_every_process(start: Any, phantoms: Path, tmp_path: Path) -> None:
    children = start_two(start, arguments("supervised", phantoms, tmp_path / "run", labelled_batch=3, network="vnet"))

    for child in children:
        assert child.wait() == 2, child.output
        assert "3 labelled samples per batch do not divide among 2 processes" in child.output
        assert "Traceback" not in child.output
    assert "multiple of 2" in read_json(tmp_path / "run" / "progress.json")["error"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_signal_to_one_process_ends_both_with_a_checkpoint(
    start: Any, phantoms: Path, tmp_path: Path, rank: int
) -> None:
    run = tmp_path / "run"
    argv = arguments("supervised", phantoms, run, network="vnet", epoch_iterations=1000)
    children = start_two(start, [*argv, "--iterations", "100000"])
    children[rank].wait_until(lambda: (read_json(run / "progress.json", default={}).get("iteration") or 0) >= 3)
    children[rank].send(signal.SIGTERM)

    assert [child.wait() for child in children] == [2, 2], children[1 - rank].output
    assert "because it received SIGTERM; its checkpoint is kept" in children[rank].output
    assert "because another process of the run was asked to stop" in children[1 - rank].output
    done = torch.load(run / "checkpoint.pt", weights_only=True)["iteration"]
    assert done % READ_TERMS_EVERY == 0 < done < 100000  # where all ask each other
    progress = read_json(run / "progress.json")
    assert (progress["state"], progress["iteration"]) == ("stopped", done)
