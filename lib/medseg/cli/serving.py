"""serve, and what belongs to a server: its studies, its weak labels, its models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from medseg.errors import MedsegError
from medseg.methods import METHODS

DEMO_BUDGET = "iterations=200,validate_every=1"
"""A first round in minutes, which shows validation Dice while it runs."""


def serve(
    studies: Annotated[
        str | None,
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
        Path | None,
        typer.Option("--app", help="Folder of the app.", show_default="apps/medseg of this checkout"),
    ] = None,
) -> None:
    """Start the MONAI Label server with this app."""
    from medseg.server.launch import check_port, start_server
    from medseg.training.settings import parse_pairs

    settings = {**({"models": models} if models else {}), **parse_pairs(conf)}
    if demo and studies is None:
        check_port(host, port)  # before anything is written
        studies = str(_demo_study(Path("demo") / "study"))
        settings["set"] = ",".join(
            filter(None, [DEMO_BUDGET, settings.get("set")])
        )  # the later one wins: what was typed
    if studies is None:
        raise MedsegError("--studies is missing; give a folder of images or a DICOMweb URL, or try --demo")
    announce = partial(_explain_next_steps, studies, host, port, settings.get("models", "caml"))
    start_server(app_dir or default_app(), studies, host=host, port=port, conf=settings, announce=announce)


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


def models(
    method: Annotated[str | None, typer.Argument(help="Only this method.", show_default="all")] = None,
    rollback: Annotated[
        int | None,
        typer.Option("--rollback", help="Version of METHOD to serve again.", show_default="list only"),
    ] = None,
    studies: Annotated[
        str | None,
        typer.Option("--studies", help="Only models of this studies folder.", show_default="all studies"),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", help="Folder of models (--conf model_dir).", show_default="the app's model/"),
    ] = None,
    tracking_uri: Annotated[
        str | None,
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
    folder = Path(__file__).resolve().parents[3] / "apps" / "medseg"
    if not (folder / "main.py").exists():
        raise MedsegError(f"the app is not at {folder}; name its folder with --app (or its models with --store)")
    return folder


def _demo_study(folder: Path) -> Path:
    """The phantom study of `--demo`; one that is there already is kept, with all that was labelled in it."""
    if not folder.exists():
        from medseg.phantoms.study import write_study

        write_study(folder)
        typer.echo(f"made a phantom study in {folder.absolute()}: 12 volumes, 4 of them labelled")
    return folder


def address_to_open(host: str, port: int) -> str:
    """What a browser on this machine opens; no browser opens the addresses that mean all of them."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _explain_next_steps(studies: str, host: str, port: int, models: str) -> None:
    url = address_to_open(host, port)
    model = models.split(",")[0]
    typer.echo(
        f"""
medseg serves {studies}, in ten seconds (on a busy machine half a minute)

  status page   {url}/medseg/
  3D Slicer     MONAI Label module: server {url}, then Next Sample, Submit Label, Train
  OHIF          {url}/ohif/ (for a DICOMweb archive)
  train now     curl -X POST {url}/train/{model} -H 'Content-Type: application/json' -d '{{}}'

The first model appears after the first training. Stop with Ctrl-C; labels and models stay.
"""
    )
