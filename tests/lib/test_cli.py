from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from medseg import __version__, cli
from medseg.cases import load_cases
from medseg.cli import serving
from medseg.files import read_json, write_json
from medseg.phantoms.study import FLAT, write_dataset
from medseg.training.registry import ModelRegistry
from medseg.transforms.io import read_image, read_mask

COMMANDS = ("serve", "train", "evaluate", "predict", "bench", "simulate", "models", "phantom")
TINY = ["--device", "cpu", "--set=network=vnet", "--set=width=4", "--set=norm=instance", "--set=patch=32,32"]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Medseg = Callable[..., Result]


@pytest.fixture
def medseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Medseg]:
    """Runs a command line as `python -m medseg` would."""
    handlers = list(logging.getLogger().handlers)

    def run(*argv: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["medseg", *(str(a) for a in argv)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        streams = capsys.readouterr()
        return Result(code, streams.out, streams.err)

    yield run
    logging.getLogger().handlers[:] = handlers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = replace(FLAT, shape=(48, 40))
    return write_dataset(tmp_path_factory.mktemp("flat") / "data", 8, labelled=6, options=options)


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained by the command line on PNG files."""
    out = tmp_path_factory.mktemp("model") / "run"
    pairs = ["--set=labelled_batch=4", "--set=dropout=0", "--set=learning_rate=0.05", "--set=foreground_crops=1"]
    argv = [
        "medseg",
        "train",
        "supervised",
        "--data",
        str(data),
        "--out",
        str(out),
        "--iterations",
        "60",
        *TINY,
        *pairs,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(medseg: Medseg, command: str) -> None:
    result = medseg(command, "--help")

    assert result.code == 0
    assert "Usage: medseg " + command in result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_with_its_default(command: str) -> None:
    for option in typer.main.get_command(cli.app).commands[command].params:  # type: ignore[attr-defined]
        if option.hidden or option.name == "help":
            continue
        assert option.help, f"{command} {option.name} has no help"
        told = option.required or getattr(option, "is_flag", False) or option.default not in (None, "", [])
        assert told or isinstance(option.show_default, str), f"{command} {option.name} does not tell its default"


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, medseg.cli; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_overview_names_every_command(medseg: Medseg) -> None:
    overview = medseg("--help").out

    assert all(command in overview for command in COMMANDS)
    assert medseg("--version").out.strip() == __version__


def test_module_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "medseg", "--version"], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == __version__


def test_pictures_are_learnt_from_end_to_end(medseg: Medseg, model: Path, data: Path, tmp_path: Path) -> None:
    """Train, evaluate and predict on PNG files, through the command line alone."""
    metrics = read_json(model / "metrics.json")
    assert metrics["iterations"] == 60
    assert metrics["history"][-2]["supervised"] < metrics["history"][0]["supervised"]

    result = medseg("evaluate", "--model", model, "--data", data, "--json", tmp_path / "e.json", "--device", "cpu")

    assert result.code == 0
    table = read_json(tmp_path / "e.json")
    labelled = [case for case in load_cases(data) if case.label]
    assert {"cases", "mean", "missed"} <= set(table) <= {"cases", "mean", "missed", "quality", "skipped"}
    assert set(table["cases"]) == {case.id for case in labelled}
    dices = [metrics["dice"] for metrics in table["cases"].values()]
    assert table["mean"]["dice"] == pytest.approx(sum(dices) / len(dices))
    assert table["mean"]["dice"] > 0.5
    assert table["missed"] == sum(metrics["missed"] for metrics in table["cases"].values())
    assert f"{table['mean']['dice']:.4f}" in result.out
    assert "warning: the model learnt from" in result.err  # these cases are no proof of anything
    version = Path(shutil.copytree(model, tmp_path / "version"))
    for kept, said in (
        ({"training": metrics}, "learnt from the labels of"),
        ({}, "does not say which cases it learnt"),
    ):
        write_json(version / "metrics.json", {"quality": 0.5, **kept})  # as a served version keeps them
        again = medseg("evaluate", "--model", version, "--data", data, "--device", "cpu")
        assert f"warning: the model {said}" in again.err

    image = labelled[0].image
    result = medseg("predict", image, "--model", model, "--out", tmp_path / "out", "--uncertainty", "--device", "cpu")

    assert result.code == 0
    mask, truth = (read_mask(path)[0] > 0 for path in (tmp_path / "out" / image.name, labelled[0].label))
    dice = float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert dice == pytest.approx(table["cases"][labelled[0].id]["dice"], abs=1e-6)
    uncertainty = read_image(tmp_path / "out" / f"{labelled[0].id}_uncertainty.nii.gz")
    assert uncertainty.shape == read_image(image).shape
    assert read_json(tmp_path / "out" / f"{labelled[0].id}.json")["voxels"] == {"atrium": int(mask.sum())}


def test_settings_come_from_preset_file_and_line(medseg: Medseg, data: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("iterations: 3\nseed: 7\nlearning_rate: 0.002\nvalidation_fraction: 0\n")

    result = medseg(
        "train", "supervised", "--data", data, "--out", tmp_path / "run", "--config", settings, "--seed", 9, *TINY
    )

    assert result.code == 0, result.err
    config = read_json(tmp_path / "run" / "config.json")["config"]
    wanted = {"iterations": 3, "seed": 9, "learning_rate": 0.002, "width": 4, "labelled_batch": 4, "patch": [32, 32]}
    assert {key: config[key] for key in wanted} == wanted
    assert "3 iterations" in result.out
    assert "no validation case" in result.out


def test_caml_trains_from_the_line(medseg: Medseg, data: Path, tmp_path: Path) -> None:
    result = medseg(
        "train", "caml", "--data", data, "--out", tmp_path / "run", "--iterations", 2, "--labelled", 3,
        "--device", "cpu", "--set=width=4", "--set=patch=32,32", "--set=amp=off",
    )  # fmt: skip

    assert result.code == 0, result.err
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert metrics["labelled"] == ["slice_000", "slice_001", "slice_002"]
    assert {"supervised", "mutual"} <= set(metrics["history"][0])


def test_resume_of_a_finished_run_changes_nothing(medseg: Medseg, data: Path, tmp_path: Path) -> None:
    line = ["train", "supervised", "--data", data, "--out", tmp_path / "run", "--iterations", 2, *TINY]
    medseg(*line)
    before = load_file(tmp_path / "run" / "model.safetensors")

    assert medseg(*line, "--resume").code == 0
    again = medseg(*line, "--resume", "--seed", 5)

    assert again.code == 2
    assert "was made with other settings or other cases" in again.err
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["train", "cmal"], "there is no method 'cmal'; known methods: caml"),
        (["train", "caml", "--preset", "gpu"], "method caml has no preset 'gpu'; known presets: cpu, paper"),
        (["train", "caml", "--set", "widht=3"], "CAMLConfig has no setting 'widht'; did you mean width"),
        (["train", "caml", "--set", "width"], "--set 'width' is not key=value"),
        (["train", "caml", "--set", "width=big"], "setting width = 'big' is not of type int"),
        (["train", "caml", "--labelled", "9"], "--labelled 9 is outside 1..6"),
        (["train", "caml", "--device", "tpu0"], "device 'tpu0' is unknown"),
        (["train", "caml", "--config", "none.yaml"], "settings file none.yaml does not exist"),
        (["bench", "cmal"], "there is no method 'cmal'"),
    ],
)
def test_wrong_words_are_one_sentence_and_exit_2(
    medseg: Medseg, data: Path, tmp_path: Path, line: list[str], words: str
) -> None:
    device = [] if "--device" in line else ["--device", "cpu"]

    result = medseg(*line, "--data", data, "--out", tmp_path / "run", *device)

    assert result.code == 2
    assert result.err.startswith("error: ")
    assert words in result.err
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["evaluate", "--model", "none", "--data", "DATA"], "none holds no model"),
        (["evaluate", "--model", "MODEL", "--data", "none"], "data folder none does not exist"),
        (["predict", "none.png", "--model", "MODEL", "--out", "x"], "image none.png does not exist"),
        (["models", "--rollback", "1", "--store", "none"], "--rollback 1 needs the method too"),
        (["models", "caml", "--rollback", "1", "--store", "none"], "there is no model of 'caml' below none"),
        (["serve"], "--studies is missing"),
        (["train", "caml", "--out", "x"], "Missing option"),
    ],
)
def test_missing_things_are_one_sentence_and_exit_2(
    medseg: Medseg,
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)

    result = medseg(*({"MODEL": model, "DATA": data}.get(word, word) for word in line))

    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err


def test_evaluation_without_masks_is_one_sentence(medseg: Medseg, model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes((data / "images" / "slice_000.png").read_bytes())

    result = medseg("evaluate", "--model", model, "--data", tmp_path, "--device", "cpu")

    assert result.code == 2
    assert "to compare with; add masks" in result.err


def test_models_lists_and_rolls_back(medseg: Medseg, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    registry = ModelRegistry(store, "heart-123456", "off")
    for number, quality in enumerate((0.5, 0.75)):
        run = Path(shutil.copytree(model, tmp_path / f"run{number}"))
        save_file({"w": torch.tensor([quality])}, run / "model.safetensors")
        registry.promote("supervised", registry.publish("supervised", run, {"quality": quality}))

    listed = medseg("models", "--store", store)
    rolled = medseg("models", "supervised", "--rollback", 1, "--store", store, "--tracking-uri", "off")

    assert listed.code == rolled.code == 0
    assert "* heart-123456  supervised  version 2  quality 0.7500" in listed.out
    assert "heart-123456: supervised version 1 is served now" in rolled.out
    champion = registry.champion("supervised")
    assert champion is not None
    assert champion.number == 1
    assert medseg("models", "--store", tmp_path / "none").out.startswith("no model below")


def test_phantom_makes_both_kinds_of_folder(medseg: Medseg, tmp_path: Path) -> None:
    said = medseg("phantom", tmp_path / "study", "--count", 2, "--labelled", 1).out
    medseg("phantom", tmp_path / "plain", "--count", 2, "--labelled", 1, "--plain")

    assert "2 volumes, 1 of them labelled" in said
    for folder in ("study", "plain"):
        assert [case.label is not None for case in load_cases(tmp_path / folder)] == [True, False]
    assert (tmp_path / "plain" / "images" / "organ_000.nii.gz").exists()


def test_json_of_evaluation_can_go_to_a_new_folder(medseg: Medseg, model: Path, data: Path, tmp_path: Path) -> None:
    cases = [case for case in load_cases(data) if case.id == "slice_000"]
    listed = write_json(tmp_path / "cases.json", [case.to_dict() for case in cases])

    result = medseg(
        "evaluate", "--model", model, "--data", listed, "--json", tmp_path / "a" / "b.json", "--device", "cpu"
    )

    assert result.code == 0
    assert list(read_json(tmp_path / "a" / "b.json")["cases"]) == ["slice_000"]


def test_demo_has_a_small_budget_unless_another_is_asked_for(
    medseg: Medseg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medseg.server import launch
    from medseg.server.settings import AppSettings

    seen: list[AppSettings] = []
    monkeypatch.setattr(launch, "start_server", lambda *args, conf, **more: seen.append(AppSettings.from_conf(conf)))
    monkeypatch.setattr(launch, "check_port", lambda host, port: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo" / "study").mkdir(parents=True)
    head = ["serve", "--demo", "--models", "caml,supervised"]

    for typed in ([], ["--conf", "set=width=4,iterations=20"], ["--conf", "caml.iterations=30"]):
        assert medseg(*head, *typed).code == 0

    budgets = [tuple(settings.config(name).iterations for name in ("caml", "supervised")) for settings in seen]
    assert budgets == [(200, 200), (20, 20), (30, 200)]
    assert seen[1].config("caml").to_dict()["width"] == 4


def test_demo_writes_nothing_where_the_port_is_taken(
    medseg: Medseg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = medseg("serve", "--demo", "--port", taken.getsockname()[1])

    assert result.code != 0
    assert "choose another --port" in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("host", "opens"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("fe80::7", "[fe80::7]"), ("gpu", "gpu")],
)
def test_what_serve_prints_can_be_opened(capsys: pytest.CaptureFixture[str], host: str, opens: str) -> None:
    serving._explain_next_steps("scans", host, 8001, "caml,dram")

    printed = capsys.readouterr().out
    assert f"status page   http://{opens}:8001/medseg/" in printed
    assert f"curl -X POST http://{opens}:8001/train/caml" in printed
