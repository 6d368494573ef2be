"""The command line. It only reads arguments and shows results; the work is done below."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from medseg import __version__
from medseg.errors import MedsegError
from medseg.methods import METHODS

app = typer.Typer(
    name="medseg",
    help="Learn medical image segmentation from few labels, weak labels and unlabelled scans.",
    epilog="Try it: medseg serve --demo. Settings of the methods, data and server: docs/ of the project.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataOption = Annotated[
    list[Path],
    typer.Option(
        "--data",
        help="Folder with images/ and labels/ (equal file names; no mask: unlabelled), a MONAI Label studies folder, "
        "or a run's cases.json; repeat for a union.",
    ),
]
DeviceOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option("--device", help="cpu, cuda or cuda:1.", show_default="a GPU where there is one"),
]
PresetOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--preset",
        help="Committed budget: cpu, or paper (the paper's protocol).",
        show_default="paper on a GPU, else cpu",
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="A setting of the method, key=value, for example patch=64,64,32; repeat. An unknown key is answered with "
        "the nearest known ones.",
        show_default="the preset's",
    ),
]
ScaleOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--scale",
        help="0.5 works at half resolution; 0 halves until an image has at most a million voxels.",
        show_default="the preset's",
    ),
]
IterationsOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--iterations", min=1, help="Training iterations.", show_default="the preset's"),
]
MethodArgument = Annotated[str, typer.Argument(help=f"One of {', '.join(METHODS)}.")]


def main() -> None:
    """Run the command line; errors for people are one sentence and exit status 2."""
    # Before torch is loaded: OpenMP threads that spin for long while they wait make a shared machine ten times slower,
    # and threads that do not spin at all make a quiet one half as slow again.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # MONAI's sliding window on new torch
    try:
        app(prog_name="medseg")
    except MedsegError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("stopped", err=True)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _settings(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More log lines.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("ignite", "alembic", "mlflow", "matplotlib", "urllib3", "httpx", "numexpr"):
        logging.getLogger(noisy).setLevel(logging.INFO if verbose else logging.WARNING)


@app.command(epilog="Example: medseg serve --studies DIR --models caml --conf preset=cpu")
def serve(
    studies: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--studies", help="Folder of images, or the URL of a DICOMweb archive.", show_default="none"),
    ] = None,
    models: Annotated[
        str,
        typer.Option("--models", help="Methods to serve, comma-separated.", show_default=f"all: {','.join(METHODS)}"),
    ] = "",
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 127.0.0.1 answers this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8000,
    conf: Annotated[
        list[str],
        typer.Option(
            "--conf",
            help="A setting of the app or of a method, key=value (preset=cpu, caml.iterations=400); repeat. "
            "All keys: docs/server.md.",
            show_default="none",
        ),
    ] = [],  # noqa: B006
    demo: Annotated[bool, typer.Option("--demo", help="Serve a small phantom study, made in demo/study.")] = False,
    app_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--app", help="Folder of the app.", show_default="apps/medseg of this checkout"),
    ] = None,
) -> None:
    """Start the MONAI Label server with this app."""
    from medseg.server.launch import start_server
    from medseg.training.settings import parse_pairs

    settings = {**({"models": models} if models else {}), **parse_pairs(conf)}
    if demo and studies is None:
        studies = str(_demo_study(Path("demo") / "study"))
        settings = {"caml.iterations": "200", "supervised.iterations": "200", **settings}  # a first round in minutes
    if studies is None:
        raise MedsegError("--studies is missing; give a folder of images or a DICOMweb URL, or try --demo")
    announce = partial(_explain_next_steps, studies, host, port, settings.get("models", "caml"))
    start_server(app_dir or default_app(), studies, host=host, port=port, conf=settings, announce=announce)


@app.command(epilog="Example: medseg train caml --data DIR --out RUN --labelled 8")
def train(
    method: MethodArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Run folder: model.safetensors, config.json, metrics.json.")],
    preset: PresetOption = None,
    labelled: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--labelled",
            min=1,
            help="Only the first N masks are used; other images count as unlabelled.",
            show_default="all masks",
        ),
    ] = None,
    iterations: IterationsOption = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--seed", min=0, help="Seed of weights, crops and batches.", show_default="0"),
    ] = None,
    scale: ScaleOption = None,
    device: DeviceOption = None,
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--config",
            help="YAML or JSON file of settings, or a run's config.json; --set and options win.",
            show_default="none",
        ),
    ] = None,
    set_: SetOption = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the finished run in --out.")] = False,
    watch_pid: Annotated[list[int], typer.Option("--watch-pid", hidden=True)] = [],  # noqa: B006
    split: Annotated[Optional[Path], typer.Option("--split", hidden=True)] = None,  # noqa: UP045
) -> None:
    """Train a method outside the server.

    Several GPUs share one batch: torchrun --standalone --nproc-per-node 2 -m medseg train ...
    """
    from medseg.training.command import TrainRequest, train_command

    request = TrainRequest(
        method=method,
        data=tuple(data),
        out=out,
        preset=preset,
        labelled=labelled,
        typed={"iterations": iterations, "seed": seed, "scale": scale, **_pairs(set_)},
        device=device,
        config=config,
        resume=resume,
        overwrite=overwrite,
        watch_pids=tuple(watch_pid),
        split=split,
    )
    metrics = train_command(request)
    validation = metrics["validation"]
    shown = f"validation quality {validation['quality']:.4f}" if validation else "no validation case"
    typer.echo(f"{out}/model.safetensors: {metrics['iterations']} iterations, {metrics['seconds']:.0f} s, {shown}")


@app.command(epilog="Example: medseg evaluate --model RUN --data OTHER_DIR --json table.json")
def evaluate(
    model: Annotated[Path, typer.Option("--model", help="Folder that `medseg train` wrote.")],
    data: DataOption,
    json: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--json", help="File for the table as JSON.", show_default="not written"),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Per-case metrics on images that the model never saw.

    A case whose files cannot be used is left out and named at the end; the exit status is then 2.
    """
    from tqdm import tqdm

    from medseg.cases import load_cases
    from medseg.files import read_json, write_json
    from medseg.inference.evaluation import evaluate as evaluate_cases
    from medseg.inference.predictor import Predictor
    from medseg.training.device import pick_device

    predictor = Predictor.from_folder(model, str(pick_device(device)))
    cases = [case for case in load_cases(data) if predictor.method.is_labelled(case)]
    metrics = read_json(model / "metrics.json", default={}) or {}
    ours = {case.id for case in cases}
    for what, key in (("learnt from the labels", "labelled"), ("learnt from the images", "unlabelled_ids")):
        if seen := sorted(ours & set(metrics.get(key, []))):
            typer.secho(f"warning: the model {what} of {len(seen)} of these cases: {', '.join(seen[:5])}", err=True)
    with tqdm(total=len(cases), unit="case", disable=not sys.stderr.isatty()) as bar:
        result = evaluate_cases(predictor, cases, progress=lambda *_: bar.update(1), go_on=True)
    _show_table(result.cases, result.mean)
    typer.echo(f"missed structures: {result.missed}")
    if json:
        write_json(json, result.to_dict())
    for identifier, reason in result.skipped.items():
        typer.secho(f"left out: {identifier}, {reason}", err=True)
    if result.skipped:
        raise MedsegError(
            f"{len(result.skipped)} of {len(cases)} cases could not be evaluated; the means leave them out"
        )


@app.command(epilog="Example: medseg predict image.nii.gz --model RUN --out MASKS --overlay")
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images, or folders of images.")],
    model: Annotated[Path, typer.Option("--model", help="Folder that `medseg train` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the masks and measurements.")],
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Write the uncertainty map too.")] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write a PNG that shows the mask on the image.")] = False,
    device: DeviceOption = None,
) -> None:
    """Masks on each image's own grid, measurements as JSON.

    An image that cannot be used is named and the others are predicted; the exit status is then 2.
    """
    from medseg.inference.command import predict_images
    from medseg.training.device import pick_device

    for line in predict_images(model, images, out, str(pick_device(device)), uncertainty=uncertainty, overlay=overlay):
        typer.echo(line)


@app.command(epilog="Example: medseg bench caml --data DIR --out BENCH --labelled 4")
def bench(
    method: MethodArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for summary.json, report.html and the runs.")],
    preset: PresetOption = None,
    arms: Annotated[
        str,
        typer.Option("--arms", help="Arms or groups of arms, comma-separated.", show_default="the preset's"),
    ] = "",
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--task", help="Group of arms to run.", show_default="the method's first"),
    ] = None,
    labelled: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--labelled", min=1, help="Labelled training cases.", show_default="the preset's"),
    ] = None,
    scale: ScaleOption = None,
    iterations: IterationsOption = None,
    seeds: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--seeds", min=1, help="Seeds per arm.", show_default="the preset's"),
    ] = None,
    held_out: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--held-out", min=1, help="Cases to report on, which never train.", show_default="the preset's"),
    ] = None,
    folds: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--folds", min=1, help="Cross-validation folds; 1 holds out once.", show_default="the preset's"),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Runs at a time.", show_default="one per core on a CPU, else one"),
    ] = None,
    device: DeviceOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """A method beside its baselines and ablations at equal budget; writes summary.json and report.html."""
    from medseg.benchmark.runner import BenchmarkRequest, run_benchmark

    request = BenchmarkRequest(
        method=method,
        data=tuple(data),
        out=out,
        preset=preset or _preset_for(device),
        arms=tuple(name for name in arms.split(",") if name),
        task=task,
        labelled=labelled,
        scale=scale,
        iterations=iterations,
        seeds=seeds,
        held_out=held_out,
        folds=folds,
        jobs=jobs,
        device=device,
        settings=_pairs(set_),
    )
    summary = run_benchmark(request)
    for name, arm in summary["arms"].items():
        typer.echo(f"{name:>16}  {summary['metric']} {arm['mean']:.4f} ± {arm['sd']:.4f}  {arm['seconds']:.0f} s")
    typer.echo(f"{out}/summary.json and {out}/report.html are written")
    if failed := summary.get("failed"):
        name, reason = next(iter(failed.items()))
        raise MedsegError(f"{len(failed)} of the runs failed; {name}: {reason}")


@app.command(epilog="Example: medseg simulate --data DIR --method caml --strategies random,caml --rounds 3 --out SIM")
def simulate(
    data: DataOption,
    method: Annotated[str, typer.Option("--method", help=f"Method that learns: {', '.join(METHODS)}.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for summary.json, report.html and the servers' files.")],
    strategies: Annotated[
        str, typer.Option("--strategies", help="Strategies to compare, comma-separated.", show_default="random,METHOD")
    ] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of labelling and training.")] = 3,
    per_round: Annotated[int, typer.Option("--per-round", min=1, help="Images labelled in each round.")] = 2,
    initial: Annotated[int, typer.Option("--initial", min=1, help="Labels before the first round.")] = 4,
    validation: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--validation", min=1, help="Frozen validation cases.", show_default="a tenth, at most 8"),
    ] = None,
    test: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--test", min=1, help="Cases kept from the server for the curves.", show_default="a fifth, at most 10"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Repetitions of every strategy.")] = 1,
    preset: PresetOption = None,
    scale: ScaleOption = None,
    iterations: IterationsOption = None,
    device: DeviceOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """The annotate-retrain loop against a real server, with a simulated annotator."""
    from medseg.simulation.run import SimulationRequest, run_simulation

    request = SimulationRequest(
        data=tuple(data),
        method=method,
        out=out,
        strategies=tuple(name for name in strategies.split(",") if name) or ("random", method),
        rounds=rounds,
        per_round=per_round,
        initial=initial,
        validation=validation,
        test=test,
        seeds=seeds,
        preset=preset or _preset_for(device),
        scale=scale,
        iterations=iterations,
        device=device,
        settings=_pairs(set_),
    )
    run_simulation(request)
    typer.echo(f"{out}/summary.json and {out}/report.html are written")


@app.command("import-weak", epilog="Example: medseg import-weak extents.csv --studies DIR")
def import_weak(
    table: Annotated[Path, typer.Argument(help="CSV: image, extent_REGION (per cent), score_REGION (0-5), ...")],
    studies: Annotated[Path, typer.Option("--studies", help="The studies folder that is served.")],
) -> None:
    """Read a table of weak labels into a studies folder: all rows, or none if one is bad."""
    from medseg.server.datastore import MedsegDatastore
    from medseg.server.weak_labels import import_weak as run_import

    if not studies.is_dir():
        raise MedsegError(f"studies folder {studies} does not exist; give the folder that is served")
    updated = run_import(MedsegDatastore(studies), table)
    typer.echo(f"weak labels of {len(updated)} images are in {studies}: {', '.join(updated)}")


@app.command(epilog="Example: medseg models; medseg models caml --rollback 1")
def models(
    method: Annotated[Optional[str], typer.Argument(help="Only this method.", show_default="all")] = None,  # noqa: UP045
    rollback: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--rollback", help="Version of METHOD to serve again.", show_default="list only"),
    ] = None,
    studies: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--studies", help="Only models of this studies folder.", show_default="all studies"),
    ] = None,
    store: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--store", help="Folder of models (--conf model_dir).", show_default="the app's model/"),
    ] = None,
    tracking_uri: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--tracking-uri", help="MLflow server that mirrors them, or off.", show_default="mlflow.db in the store"
        ),
    ] = None,
) -> None:
    """Model versions with their metrics; with --rollback, go back to one."""
    from medseg.training.models_command import list_models, roll_back

    root = store or default_app() / "model"
    if rollback is not None:
        if method is None:
            raise MedsegError(f"--rollback {rollback} needs the method too: medseg models METHOD --rollback {rollback}")
        typer.echo(roll_back(root, method, rollback, studies, tracking_uri))
        return
    for line in list_models(root, method, studies):
        typer.echo(line)


@app.command(epilog="Example: medseg phantom DIR --count 12 --labelled 4")
def phantom(
    folder: Annotated[Path, typer.Argument(help="Studies folder to make.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Volumes to make.")] = 12,
    labelled: Annotated[int, typer.Option("--labelled", min=0, help="How many of them get their mask.")] = 4,
    plain: Annotated[bool, typer.Option("--plain", help="Write images/ and labels/ instead.")] = False,
) -> None:
    """Make a small study of synthetic volumes with exact truth, to try everything at once."""
    from medseg.phantoms.study import write_dataset, write_study

    (write_dataset if plain else write_study)(folder, count=count, labelled=labelled)
    typer.echo(f"{folder}: {count} volumes, {min(labelled, count)} of them labelled")


def default_app() -> Path:
    """The app's folder in a checkout of this project.

    Raises:
        MedsegError: the package is installed without the checkout.
    """
    folder = Path(__file__).resolve().parents[2] / "apps" / "medseg"
    if not (folder / "main.py").exists():
        raise MedsegError(f"the app is not at {folder}; name its folder with --app (or its models with --store)")
    return folder


def _demo_study(folder: Path) -> Path:
    """The phantom study of `--demo`; one that is there already is kept, with all that was labelled in it."""
    if not folder.exists():
        from medseg.phantoms.study import write_study

        write_study(folder)
        typer.echo(f"made a phantom study in {folder}: 12 volumes, 4 of them labelled")
    return folder


def _explain_next_steps(studies: str, host: str, port: int, models: str) -> None:
    url = f"http://{host}:{port}"
    model = models.split(",")[0]
    typer.echo(
        f"""
medseg serves {studies}, in about ten seconds

  status page   {url}/medseg/
  3D Slicer     MONAI Label module: server {url}, then Next Sample, Submit Label, Train
  OHIF          {url}/ohif/ (for a DICOMweb archive)
  train now     curl -X POST {url}/train/{model} -H 'Content-Type: application/json' -d '{{}}'

The first model appears after the first training. Stop with Ctrl-C; labels and models stay.
"""
    )


def _pairs(items: list[str]) -> dict[str, Any]:
    from medseg.training.settings import parse_pairs

    return dict(parse_pairs(items))


def _preset_for(device: str | None) -> str:
    from medseg.training.device import pick_device

    return "paper" if pick_device(device).type == "cuda" else "cpu"


def _show_table(cases: dict[str, dict[str, float]], mean: dict[str, float]) -> None:
    keys = [key for key in ("dice", "jaccard", "hd95_mm", "asd_mm", "hd95_px", "asd_px") if key in mean] or list(mean)[
        :6
    ]
    width = max(8, *(len(identifier) for identifier in cases))
    typer.echo("  ".join([" " * width, *(f"{key:>10}" for key in keys)]))
    for identifier, metrics in [*cases.items(), ("mean", mean)]:
        values = (f"{metrics[key]:>10.4f}" if key in metrics else " " * 10 for key in keys)
        typer.echo("  ".join([f"{identifier:<{width}}", *values]))
