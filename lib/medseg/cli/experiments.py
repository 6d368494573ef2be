"""bench, simulate: experiments with methods and strategies."""

from __future__ import annotations

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
    preset_for,
)
from medseg.errors import MedsegError
from medseg.methods import METHODS


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
        str | None,
        typer.Option("--task", help="Group of arms to run.", show_default="the method's first"),
    ] = None,
    labelled: Annotated[
        int | None,
        typer.Option("--labelled", min=1, help="Labelled training cases.", show_default="the preset's"),
    ] = None,
    scale: ScaleOption = None,
    iterations: IterationsOption = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, help="Seeds per arm.", show_default="the preset's"),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option("--held-out", min=1, help="Cases to report on, which never train.", show_default="the preset's"),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option("--folds", min=1, help="Cross-validation folds; 1 holds out once.", show_default="the preset's"),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Runs at a time.", show_default="one per core on a CPU, else one"),
    ] = None,
    device: DeviceOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """A method beside its baselines and ablations at equal budget; writes summary.json and report.html.

    METHOD `session` measures instead how long an annotator waits at each step of a session with a real server; of the
    options it takes --data, --out, --device and --set.
    """
    if method == "session":
        others = {
            "--preset": preset, "--arms": arms, "--task": task, "--labelled": labelled, "--scale": scale,
            "--iterations": iterations, "--seeds": seeds, "--held-out": held_out, "--folds": folds, "--jobs": jobs,
        }  # fmt: skip
        if given := [name for name, value in others.items() if value not in (None, "")]:
            raise MedsegError(f"bench session has no {', '.join(given)}; method settings go by --set key=value")
        _bench_session(data, out, device, set_)
        return
    from medseg.benchmark.runner import BenchmarkRequest, run_benchmark

    request = BenchmarkRequest(
        method=method,
        data=tuple(data),
        out=out,
        preset=preset or preset_for(device),
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
        settings=pairs(set_),
    )
    summary = run_benchmark(request)
    for name, arm in summary["arms"].items():
        typer.echo(f"{name:>16}  {summary['metric']} {arm['mean']:.4f} ± {arm['sd']:.4f}  {arm['seconds']:.0f} s")
    written = [str(out / name) for name in ("summary.json", "report.html") if (out / name).exists()]
    typer.echo(f"written: {', '.join(written)}")
    if failed := summary.get("failed"):
        name, reason = next(iter(failed.items()))
        raise MedsegError(f"{len(failed)} of the runs failed; {name}: {reason}")


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
        int | None,
        typer.Option("--validation", min=1, help="Frozen validation cases.", show_default="a tenth, at most 8"),
    ] = None,
    test: Annotated[
        int | None,
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
        preset=preset or preset_for(device),
        scale=scale,
        iterations=iterations,
        device=device,
        settings=pairs(set_),
    )
    run_simulation(request)
    typer.echo(f"{out}/summary.json and {out}/report.html are written")


def _bench_session(data: list[Path], out: Path, device: str | None, settings: list[str]) -> None:
    from medseg.simulation.session import SessionBench, bench_session

    summary = bench_session(SessionBench(tuple(data), out, settings=tuple(settings), device=device))
    for name, arm in summary["arms"].items():
        spread = f"± {arm['sd']:.2f}, median {arm['median']:.2f}, n = {len(arm['values'])}"
        typer.echo(f"{name:>20}  {arm['mean']:7.2f} s  {spread}")
    typer.echo(f"{out}/summary.json and {out}/report.html are written")
