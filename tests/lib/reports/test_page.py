"""The report page: everything inside one file, all text escaped."""

from __future__ import annotations

import base64
import re

from matplotlib.figure import Figure

from medseg.reports.page import Fold, Page, Plot, write_page
from medseg.reports.tables import make_table


def tiny_figure() -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1], [0, 1])
    return figure


def test_page_holds_sections_tables_plots_and_nothing_from_outside(tmp_path):
    page = Page("Bench <caml>", "Full wins.", {"seeds": "2"})
    page.section("Arms", Plot(tiny_figure(), "the arms"), make_table(["arm", "dice"], [["a", 0.5]]))
    page.section("Cases", "All of them.", Fold("each case", make_table(["case"], [["c<1>"]])))
    page.section("Curves", Fold("loss", Plot(tiny_figure())))

    text = write_page(tmp_path / "report.html", page).read_text(encoding="utf-8")

    assert re.findall(r"<h2 id=\"s\d\">([^<]+)</h2>", text) == ["Arms", "Cases", "Curves"]
    assert "Bench &lt;caml&gt;" in text
    assert "c&lt;1&gt;" in text
    assert "<td>0.5000</td>" in text
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)
    assert [base64.b64decode(picture)[:8] for picture in pictures] == [b"\x89PNG\r\n\x1a\n"] * 2
    assert "http" not in text
    assert "<script" not in text


def test_best_cell_is_marked(tmp_path):
    page = Page("Bench")
    page.section("Arms", make_table(["arm", "dice"], [["a", 0.5], ["b", 0.75]], best={"dice": True}))

    text = write_page(tmp_path / "report.html", page).read_text(encoding="utf-8")

    assert re.findall(r"<td class=\"best\">([^<]+)</td>", text) == ["0.7500"]
