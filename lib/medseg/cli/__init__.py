"""The command line. It only reads arguments and shows results; the work is done below."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated

import typer

from medseg import __version__
from medseg.cli.experiments import bench, simulate
from medseg.cli.learning import evaluate, predict, train
from medseg.cli.serving import import_weak, models, phantom, serve
from medseg.errors import MedsegError

app = typer.Typer(
    name="medseg",
    help="Learn medical image segmentation from few labels, weak labels and unlabelled scans.",
    epilog="Try it: medseg serve --demo. Settings of the methods, data and server: docs/ of the project.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for example, command in (
    ("medseg serve --studies DIR --models caml --conf preset=cpu", serve),
    ("medseg train caml --data DIR --out RUN --labelled 8", train),
    ("medseg evaluate --model RUN --data OTHER_DIR --json table.json", evaluate),
    ("medseg predict image.nii.gz --model RUN --out MASKS --overlay", predict),
    ("medseg bench caml --data DIR --out BENCH --labelled 4", bench),
    ("medseg simulate --data DIR --method caml --strategies random,caml --rounds 3 --out SIM", simulate),
    ("medseg import-weak extents.csv --studies DIR", import_weak),
    ("medseg models; medseg models caml --rollback 1", models),
    ("medseg phantom DIR --count 12 --labelled 4", phantom),
):
    app.command(epilog=f"Example: {example}")(command)


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
