"""The report of a simulation: learning curves, the validation staircase, masks before and after, and every choice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg.cases import Case
from medseg.reports.overlays import Overlay, draw_overlay
from medseg.reports.page import Fold, Page, Plot, write_page
from medseg.reports.tables import Table, make_table
from medseg.simulation.figures import BASELINE, learning_figure, staircase
from medseg.transforms.grid import spacing_of
from medseg.transforms.io import read_image, read_mask


def write_report(path: Path, summary: Mapping[str, Any], test: Mapping[str, Case]) -> Path:
    """Write `report.html`.

    Args:
        path: the report; the curves' folders lie beside it.
        summary: content of `summary.json`.
        test: id -> test case.
    """
    method, metric = summary["method"], summary["metric"]
    page = Page(f"{method}: learning with a simulated annotator", _lead(summary), _facts(summary))
    page.section(
        "Learning curves",
        Plot(
            learning_figure(summary["curves"], metric),
            f"{metric} of the published model on {len(summary['cases']['test'])} cases that the server never saw; the "
            "band goes from the lowest to the highest seed.",
        ),
        _strategy_table(summary),
    )
    page.section(
        "Published model on the validation cases",
        Plot(
            staircase(summary["curves"], metric),
            "Steps: the published model. Dots: candidates, filled where the gate published them. The validation list "
            "is frozen, so a published model is never worse on it than the one before.",
        ),
        *[
            Fold(f"Rounds of {curve['strategy']}, seed {curve['seed']}", _round_table(curve))
            for curve in summary["curves"]
        ],
    )
    pictures = _pictures(path.parent, summary, test)
    if pictures:
        page.section("First and last model on test cases", *pictures)
    page.section(
        "What was chosen, and why", *[_choices(curve) for curve in summary["curves"] if len(curve["rounds"]) > 1]
    )
    return write_page(path, page)


def _lead(summary: Mapping[str, Any]) -> str:
    metric, strategies = summary["metric"], summary["strategies"]
    first = [curve["rounds"][0]["test"]["quality"] for curve in summary["curves"]]
    counts = [curve["rounds"][-1]["labels"] for curve in summary["curves"]]
    parts = [f"{name} {values['final']['mean']:.4f}" for name, values in strategies.items()]
    start = summary["request"]["initial"]
    return (
        f"From {start} to {max(counts)} labels, {metric} on the test cases went from {np.mean(first):.4f} to "
        f"{', '.join(parts)}."
    )


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    request, cases = summary["request"], summary["cases"]
    facts = {
        "method": summary["method"],
        "labels": ", ".join(summary["labels"]),
        "rounds": f"{request['rounds']} of {request['per_round']} images, after {request['initial']} initial labels",
        "seeds": str(request["seeds"]),
        "cases": ", ".join(f"{len(cases[role])} {role}" for role in ("pool", "validation", "test")),
        "preset": str(request["preset"]),
    }
    facts |= {key: str(request[key]) for key in ("iterations", "scale") if request[key] is not None}
    return facts | dict(request["settings"])


def _strategy_table(summary: Mapping[str, Any]) -> Table:
    rows = []
    base = summary["strategies"].get(BASELINE)
    for name, values in summary["strategies"].items():
        gain = values["area"]["mean"] - base["area"]["mean"] if base and name != BASELINE else None
        area, final = values["area"], values["final"]
        rows.append([name, values["seeds"], area["mean"], area["sd"], gain, final["mean"], final["sd"]])
    header = ["strategy", "seeds", "area", "sd", "over random", "last round", "sd of last"]
    caption = "Area: mean quality over the learning curve. Differences within about one sd are no result."
    return make_table(header, rows, best={"area": True, "last round": True}, caption=caption)


def _round_table(curve: Mapping[str, Any]) -> Table:
    rows = [
        [
            entry["round"],
            entry["labels"],
            entry["validation"]["candidate"],
            entry["validation"]["champion"],
            entry["version"],
            entry["test"]["quality"],
            entry["seconds"].get("train"),
            entry["seconds"].get("infer"),
            entry["reason"],
        ]
        for entry in curve["rounds"]
    ]
    header = ["round", "labels", "candidate", "published", "version", "test", "train s", "infer s", "gate"]
    return make_table(header, rows)


def _choices(curve: Mapping[str, Any]) -> Fold:
    rows = [
        [entry["round"], choice["id"], choice["why"], choice["score"], choice["pre_annotation_dice"]]
        for entry in curve["rounds"]
        for choice in entry["chosen"]
    ]
    table = make_table(
        ["round", "image", "why", "score", "pre-annotation"],
        rows,
        caption="Pre-annotation: Dice of the mask the annotator was offered against the one that was submitted.",
    )
    return Fold(f"{curve['strategy']}, seed {curve['seed']}: {len(rows)} images", table)


def _pictures(folder: Path, summary: Mapping[str, Any], test: Mapping[str, Case]) -> list[Plot | Fold]:
    """The first test case by the first and the last model of each curve; the other kept cases folded away."""
    found: list[Plot | Fold] = []
    for curve in summary["curves"]:
        predictions = folder / f"{curve['strategy']}-{curve['seed']}" / "predictions"
        for identifier in summary["cases"]["test"]:
            files = sorted(predictions.glob(f"round_[0-9]*_{identifier}.*"))
            for file in dict.fromkeys([*files[:1], *files[-1:]]):
                number = int(file.name.split("_")[1])
                title = f"{curve['strategy']}, seed {curve['seed']}: {identifier} by the model of round {number}"
                plot = Plot(draw_overlay(_overlay(test[identifier], file, title), summary["labels"]))
                first = identifier == summary["cases"]["test"][0] and curve["seed"] == 0
                found.append(plot if first else Fold(title, plot))
    return found


def _overlay(case: Case, prediction: Path, title: str) -> Overlay:
    assert case.label is not None
    image = read_image(case.image)
    values = image.as_tensor().numpy()
    is_colour = values.shape[0] == 3 and values.ndim == 3
    truth, predicted = read_mask(case.label)[0].numpy(), read_mask(prediction)[0].numpy()
    return Overlay(
        image=np.moveaxis(values, 0, -1).astype(np.uint8) if is_colour else values[0],
        truth=truth if truth.shape == predicted.shape else None,
        prediction=predicted,
        spacing=spacing_of(image),
        title=title,
    )
