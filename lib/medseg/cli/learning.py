"""train, evaluate, predict: a model outside the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import (
    DataOption,
    DeviceOption,
    IterationsOption,
    MethodArgument,
    PresetOption,
    ScaleOption,
    SetOption,
    pairs,
)
from medseg.errors import MedsegError


def train(
    method: MethodArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Run folder: model.safetensors, config.json, metrics.json.")],
    preset: PresetOption = None,
    labelled: Annotated[
        int | None,
        typer.Option(
            "--labelled",
            min=1,
            help="Only the first N masks are used; other images count as unlabelled.",
            show_default="all masks",
        ),
    ] = None,
    iterations: IterationsOption = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Seed of weights, crops and batches.", show_default="0"),
    ] = None,
    scale: ScaleOption = None,
    device: DeviceOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="YAML or JSON file of settings, or a run's config.json; --set and options win.",
            show_default="none",
        ),
    ] = None,
    set_: SetOption = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    watch_pid: Annotated[list[int], typer.Option("--watch-pid", hidden=True)] = [],  # noqa: B006
    split: Annotated[Path | None, typer.Option("--split", hidden=True)] = None,
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
        typed={"iterations": iterations, "seed": seed, "scale": scale, **pairs(set_)},
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


def evaluate(
    model: Annotated[Path, typer.Option("--model", help="Folder that `medseg train` wrote, or a served version's.")],
    data: DataOption,
    json: Annotated[
        Path | None,
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
    run = metrics.get("training", metrics)  # a served version keeps its run's metrics under this key
    if "labelled" not in run:
        typer.secho(
            "warning: the model does not say which cases it learnt from; some of these may be among them", err=True
        )
    ours = {case.id for case in cases}
    for what, key in (("learnt from the labels", "labelled"), ("learnt from the images", "unlabelled_ids")):
        if seen := sorted(ours & set(run.get(key, []))):
            some = ", ".join(seen[:5]) + ", ..." * (len(seen) > 5)
            typer.secho(f"warning: the model {what} of {len(seen)} of these cases: {some}", err=True)
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


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images, or folders of images.")],
    model: Annotated[Path, typer.Option("--model", help="Folder that `medseg train` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the masks and measurements.")],
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Write the uncertainty map too.")] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write a PNG that shows the mask on the image.")] = False,
    domain: Annotated[
        str | None,
        typer.Option(
            "--domain", help="Imaging domain of the images, for models of several.", show_default="recognised"
        ),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Masks on each image's own grid, measurements as JSON.

    An image that cannot be used is named and the others are predicted; the exit status is then 2.
    """
    from medseg.inference.command import predict_images
    from medseg.training.device import pick_device

    chosen = str(pick_device(device))
    for line in predict_images(model, images, out, chosen, uncertainty=uncertainty, overlay=overlay, domain=domain):
        typer.echo(line)


def _show_table(cases: dict[str, dict[str, float]], mean: dict[str, float]) -> None:
    keys = [key for key in ("dice", "jaccard", "hd95_mm", "asd_mm", "hd95_px", "asd_px") if key in mean] or list(mean)[
        :6
    ]
    width = max(8, *(len(identifier) for identifier in cases))
    typer.echo("  ".join([" " * width, *(f"{key:>10}" for key in keys)]))
    for identifier, metrics in [*cases.items(), ("mean", mean)]:
        values = (f"{metrics[key]:>10.4f}" if key in metrics else " " * 10 for key in keys)
        typer.echo("  ".join([f"{identifier:<{width}}", *values]))
