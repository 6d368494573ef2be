"""A report as one HTML file that needs nothing beside it: plots are embedded, no script, no address outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from medseg.files import write_text
from medseg.reports.style import png_base64
from medseg.reports.tables import Table
from medseg.reports.template import PAGE


@dataclass(frozen=True)
class Plot:
    """A figure with its caption."""

    figure: Figure
    caption: str = ""


@dataclass(frozen=True)
class Fold:
    """A table or plot that is shown only when its summary line is opened."""

    summary: str
    content: Table | Plot


Block = str | Table | Plot | Fold
"""A paragraph, a table, a plot, or one of them folded away."""


@dataclass
class Section:
    """A headed part of the report."""

    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Page:
    """A report.

    Attributes:
        title: headline.
        lead: one or two sentences with the result.
        facts: settings and figures shown beside the headline, name -> text.
        sections: in order; with more than two, a table of contents is shown.
    """

    title: str
    lead: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)

    def section(self, title: str, *blocks: Block) -> Section:
        """Append a section."""
        made = Section(title, list(blocks))
        self.sections.append(made)
        return made


def write_page(path: Path, page: Page) -> Path:
    """Render `page` and write it atomically."""
    return write_text(Path(path), render_page(page))


def render_page(page: Page) -> str:
    """The page as HTML; all text is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(page=page, kind=_kind, png=png_base64)


def _kind(block: Block) -> str:
    """The name by which the template chooses how to draw a block."""
    return {str: "text", Table: "table", Plot: "plot", Fold: "fold"}[type(block)]
