"""Tables of the report beside that of the arms: parts of a union, paired tests, and ratios."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medseg.reports.tables import Table, make_table

INFINITE = "\N{INFINITY}"


def group_table(arms: Mapping[str, Any], higher: bool) -> Table | None:
    """Mean of every arm in every group, and over groups; None where the cases are of one group."""
    known = {name: arm for name, arm in arms.items() if arm.get("groups")}
    if not known:
        return None
    sizes: dict[str, int] = {}
    for arm in known.values():
        sizes |= {group: max(of["cases"], sizes.get(group, 0)) for group, of in arm["groups"].items()}
    titles = {group: f"{group} ({sizes[group]})" for group in sorted(sizes)}
    rows = [
        [name, *(arm["groups"].get(group, {}).get("mean") for group in titles), *arm["over_groups"].values()]
        for name, arm in known.items()
    ]
    header = ["arm", *titles.values(), "mean over groups", "sd over seeds"]
    best = dict.fromkeys(header[1:-1], higher)
    return make_table(
        header, rows, best, "By data set or domain, with its number of cases; the last mean counts each alike."
    )


def paired_tables(tests: Mapping[str, Any]) -> list[Table]:
    """One arm against each of the others: over all patients, and in each part of a union."""
    if not tests:
        return []
    rows = [
        [tests["tested"], name, d["mean"], interval(d["ci95"]), f"{d['p']:.4f}", f"{d['p_holm']:.4f}", _higher(d)]
        for name, d in tests["against"].items()
    ]
    caption = (
        "Paired by patient, mean over cases and seeds: Wilcoxon's signed-rank test, two-sided, corrected by Holm for "
        "the number of arms; the interval is a bootstrap over patients."
    )
    header = ["arm", "against", "difference", "95% interval", "p", "p (Holm)", "higher in patients"]
    tables = [make_table(header, rows, caption=caption)]
    parts = [
        [tests["tested"], name, group, d["mean"], interval(d["ci95"]), _higher(d)]
        for name, other in tests["against"].items()
        for group, d in other.get("groups", {}).items()
    ]
    if parts:
        header = ["arm", "against", "data set or domain", "difference", "95% interval", "higher in patients"]
        caption = "The same differences by data set or domain, too few patients for tests of their own."
        tables.append(make_table(header, parts, caption=caption))
    return tables


def ratio_table(ratios: list[dict[str, Any]]) -> Table:
    """The declared ratios."""
    rows = [
        [f"{r['arm']} / {r['to']}", r["metric"], _shown(r["ratio"]), " to ".join(map(_shown, r["ci95"])), r["cases"]]
        for r in ratios
    ]
    caption = "Ratio of the means over the cases that both arms have; the interval is a bootstrap over these cases."
    return make_table(["ratio", "metric", "value", "95% interval", "cases"], rows, caption=caption)


def _shown(value: float | None) -> str:
    return INFINITE if value is None else f"{value:.3f}"


def interval(ends: list[float] | None) -> str | None:
    """Both ends of an interval."""
    return None if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def _higher(difference: Mapping[str, Any]) -> str:
    return f"{difference['higher']} of {difference['patients']}"
