"""Options that several commands share, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.methods import METHODS

DataOption = Annotated[
    list[Path],
    typer.Option(
        "--data",
        help="Folder with images/ and labels/ (equal file names; no mask: unlabelled), a MONAI Label studies folder, "
        "or a run's cases.json; repeat for a union.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda or cuda:1.", show_default="a GPU where there is one"),
]
PresetOption = Annotated[
    str | None,
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
    float | None,
    typer.Option(
        "--scale",
        help="0.5 works at half resolution; 0 halves until an image has at most a million voxels.",
        show_default="the preset's",
    ),
]
IterationsOption = Annotated[
    int | None,
    typer.Option("--iterations", min=1, help="Training iterations.", show_default="the preset's"),
]
MethodArgument = Annotated[str, typer.Argument(help=f"One of {', '.join(METHODS)}.")]


def pairs(items: list[str]) -> dict[str, Any]:
    """Settings of `--set key=value`."""
    from medseg.training.settings import parse_pairs

    return dict(parse_pairs(items))


def preset_for(device: str | None) -> str:
    """The preset where none was asked for: the paper's budget needs a GPU."""
    from medseg.training.device import pick_device

    return "paper" if pick_device(device).type == "cuda" else "cpu"
