"""The status page: what an engineer wants to see at a glance. One HTML file, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template

from medseg.training.progress import duration

WIDTH, HEIGHT, MARGIN = 420, 150, 30


@cache
def _template() -> Template:
    folder = Path(__file__).parent / "templates"
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(duration=duration, when=when)
    return environment.get_template("status.html")


def render_status(state: Mapping[str, Any]) -> str:
    """HTML of `medseg.server.routes.state`."""
    curves = {name: curve_points(points) for name, points in state["curve"].items()}
    return _template().render(state=state, curves=curves, width=WIDTH, height=HEIGHT, margin=MARGIN)


def when(stamp: str | None) -> str:
    """Day and minute of an ISO time, on the server's clock; empty for None."""
    return f"{datetime.fromisoformat(stamp).astimezone():%Y-%m-%d %H:%M}" if stamp else ""


def curve_points(decisions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Places of a learning curve's points: quality (0..1, upwards) over the number of labelled training images."""
    known = [d for d in decisions if d.get("quality") is not None]
    most = max((d["labelled"] for d in known), default=1)
    return [
        {
            "x": round(MARGIN + (WIDTH - 2 * MARGIN) * d["labelled"] / max(most, 1), 1),
            "y": round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * min(max(d["quality"], 0.0), 1.0), 1),
            "labelled": d["labelled"],
            "quality": d["quality"],
            "published": d["published"],
        }
        for d in known
    ]
