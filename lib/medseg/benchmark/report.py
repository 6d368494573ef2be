"""`report.html` of a benchmark: the arms compared, every case, training curves, and overlays to look at."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.benchmark.costs import extra_blocks
from medseg.benchmark.plan import Benchmark
from medseg.benchmark.recorder import OVERLAYS, load_overlay, picture_file
from medseg.benchmark.tables import group_table, interval, paired_tables, ratio_table
from medseg.benchmark.trial import Trial
from medseg.methods import method_class
from medseg.metrics.table import higher_is_better
from medseg.reports.bars import Column, compare_arms
from medseg.reports.curves import Curve, training_curves
from medseg.reports.overlays import draw_overlay
from medseg.reports.page import Block, Fold, Page, Plot, write_page
from medseg.reports.style import shown_picture
from medseg.reports.tables import Table, make_table


def write_report(path: Path, benchmark: Benchmark, summary: Mapping[str, Any]) -> Path:
    """Write the report of a summary."""
    page = Page(
        title=f"Benchmark of {summary['method']}: {summary['task']}", lead=_lead(summary), facts=_facts(summary)
    )
    if summary["remarks"]:
        page.section("Remarks", *summary["remarks"])
    if summary["failed"]:
        page.section("Arms that failed", make_table(["arm", "reason"], summary["failed"].items()))
    if summary["arms"]:
        page.section("Arms", *_arms(summary))
        if any(arm["cases"] for arm in summary["arms"].values()):
            page.section("Cases", *_cases(summary))
    details = _details(benchmark, summary)
    if details:
        page.section("Per arm", *details)
    curves = _curves(benchmark)
    if curves:
        page.section("Training", curves)
    overlays = _overlays(benchmark, summary)
    if overlays:
        page.section("Held-out cases", *overlays)
    page.section("Settings", _settings(summary))
    return write_page(path, page)


def _lead(summary: Mapping[str, Any]) -> str:
    """The result in a sentence or two."""
    arms = summary["arms"]
    if not arms:
        return "No arm ended well."
    best = (max if summary["higher_is_better"] else min)(arms, key=lambda name: arms[name]["mean"])
    text = f"Best {summary['metric']}: {best} with {_with_sd(arms[best])}{_unit(summary)}."
    difference = summary["differences"].get(best)
    if difference:
        low, high = difference["ci95"]
        text += (
            f" That is {difference['mean']:+.4f} from {difference['from']} (95% interval over cases {low:+.4f} to "
            f"{high:+.4f}), higher in {difference['cases_higher']} of {difference['cases']} cases."
        )
    return text if summary["complete"] else f"Not complete yet. {text}"


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    held_out = sum(len(ids) for ids in summary["held_out"])
    machine = summary["environment"]
    return {
        "Preset": summary["preset"],
        "Seeds": ", ".join(map(str, summary["seeds"])),
        "Labelled": "; ".join(shlex.join(ids) for ids in summary["labelled"]) + _own_choice(summary),
        "Unlabelled": "; ".join(f"{n} cases without their masks" for n in summary["unlabelled"]),
        "Held out": f"{held_out} cases, never trained on; nothing was selected on them",
        "Code": f"medseg {machine['medseg']}, sources {machine['code']}",
        "Machine": f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, torch {machine['torch']}",
    }


def _own_choice(summary: Mapping[str, Any]) -> str:
    """Says that arms took a part of these; which, stands in the table of `_labelled`."""
    choose = [name for name, arm in summary["arms"].items() if arm.get("labelled_by_seed")]
    return f" (of these, {', '.join(choose)} took the ones listed under Arms)" if choose else ""


def _labelled(arms: Mapping[str, Any]) -> list[Block]:
    """The labelled cases of arms that chose their own, by seed."""
    rows = [
        [name, seed, "; ".join(shlex.join(ids) or "none" for ids in folds)]
        for name, arm in arms.items()
        for seed, folds in arm.get("labelled_by_seed", {}).items()
    ]
    return [Fold("labelled cases of each arm and seed", make_table(["arm", "seed", "labelled"], rows))] if rows else []


def _arms(summary: Mapping[str, Any]) -> list[Block]:
    metric, higher = summary["metric"], summary["higher_is_better"]
    columns = {name: Column(arm["mean"], arm["sd"], arm["cases"]) for name, arm in summary["arms"].items()}
    plot = Plot(
        compare_arms(columns, metric, summary["unit"], higher),
        "Line: mean over cases and seeds. Whisker: one standard deviation over seeds. Dots: cases, mean over seeds.",
    )
    header = ["arm", metric, "sd over seeds", "95% interval", "iterations", "seconds", "peak memory MB", "missed"]
    rows = [
        [name, arm["mean"], arm["sd"], interval(arm["ci95"]), arm["iterations"], arm["seconds"],
         arm["peak_memory_mb"], arm["missed"]]
        for name, arm in summary["arms"].items()
    ]  # fmt: skip
    caption = (
        "Interval: bootstrap over cases. Missed: structures of which nothing was found, per seed; they score worst."
    )
    blocks: list[Block] = [plot, make_table(header, rows, {metric: higher}, caption)]
    if summary["differences"]:
        blocks.append(_difference_table(summary["differences"]))
    for tests in (summary["tests"], *summary["further_tests"]):
        blocks += paired_tables(tests)
    if summary["ratios"]:
        blocks.append(ratio_table(summary["ratios"]))
    if (by_group := group_table(summary["arms"], higher)) is not None:
        blocks.append(by_group)
    names = list(dict.fromkeys(key for arm in summary["arms"].values() for key in arm["metrics"]))
    if names:
        all_rows = [[name, *(arm["metrics"].get(key) for key in names)] for name, arm in summary["arms"].items()]
        best = {key: higher for key in names if (higher := higher_is_better(key)) is not None}
        blocks.append(make_table(["arm", *names], all_rows, best, "All metrics, mean over cases and seeds."))
    return [*blocks, *_labelled(summary["arms"]), *extra_blocks(summary["arms"])]


def _difference_table(differences: Mapping[str, Any]) -> Table:
    rows = [
        [name, d["from"], d["mean"], interval(d["ci95"]), f"{d['cases_higher']} of {d['cases']}"]
        for name, d in differences.items()
    ]
    caption = "Paired by case; the interval is a bootstrap over cases. An interval that holds 0 is no clear difference."
    return make_table(["arm", "against", "difference", "95% interval", "higher in"], rows, caption=caption)


def _cases(summary: Mapping[str, Any]) -> list[Block]:
    arms = summary["arms"]
    names = list(dict.fromkeys(case for arm in arms.values() for case in arm["cases"]))
    rows = [[case, *(arm["cases"].get(case) for arm in arms.values())] for case in names]
    table = make_table(["case", *arms], rows, caption=f"{summary['metric']} per case, mean over seeds.")
    return [Fold(f"{len(names)} cases", table)]


def _details(benchmark: Benchmark, summary: Mapping[str, Any]) -> list[Block]:
    """What the method itself has to show of every arm, from its first seed; the best arm is open, the others folded."""
    kind, arms = method_class(summary["method"]), summary["arms"]
    if not arms:
        return []
    best = (max if summary["higher_is_better"] else min)(arms, key=lambda name: arms[name]["mean"])
    blocks: list[Block] = []
    for name in sorted(arms, key=lambda arm: arm != best):
        found = next(iter(benchmark.of_arm(name).values()))
        for block in kind.report_blocks({c: m for _, result in found for c, m in result["cases"].items()}):
            if isinstance(block, Plot):
                block = replace(block, caption=f"{name}: {block.caption}")
            elif isinstance(block, Fold):
                block = replace(block, summary=f"{name}: {block.summary}")
            blocks.append(block if name == best or not isinstance(block, Plot) else Fold(f"{name}: plot", block))
    return blocks


def _curves(benchmark: Benchmark) -> Plot | None:
    runs: dict[str, dict[str, Curve]] = {}
    for arm in benchmark.arms:
        for seed, found in benchmark.of_arm(arm).items():
            for trial, result in found:
                if seed == benchmark.trials[0].seed and trial.fold == 0 and result["history"]:
                    runs[arm] = _terms(result["history"])
    return Plot(training_curves(runs), "Loss terms of the first seed over the iterations.") if runs else None


def _terms(history: list[dict[str, float]]) -> dict[str, Curve]:
    names = dict.fromkeys(key for entry in history for key in entry if key != "iteration")
    return {name: [(e["iteration"], e[name]) for e in history if name in e] for name in names}


def _overlays(benchmark: Benchmark, summary: Mapping[str, Any]) -> list[Block]:
    """Best, median and worst case of every arm in its first seed; the median one is open, the others folded."""
    blocks: list[Block] = []
    for arm in summary["arms"]:
        found = next(iter(benchmark.of_arm(arm).values()))
        values = {
            case: (trial, metrics[summary["metric"]])
            for trial, result in found
            for case, metrics in result["cases"].items()
            if summary["metric"] in metrics
        }
        ranked = sorted(values, key=lambda case: values[case][1], reverse=summary["higher_is_better"])
        for word, place in _places(len(ranked)).items():
            plot = _overlay(values[ranked[place]][0], ranked[place], summary["labels"])
            if plot:
                summary_line = f"{arm}: {word} case"
                shown = replace(plot, caption=f"{summary_line}, {plot.caption}")
                blocks.append(shown if word in ("median", "only") else Fold(summary_line, shown))
    return blocks


def _places(count: int) -> dict[str, int]:
    """Where the best, median and worst of a ranking stand; fewer than three cases name each once."""
    if count == 0:
        return {}
    if count < 3:
        return {"best": 0, "worst": count - 1} if count == 2 else {"only": 0}
    return {"best": 0, "median": count // 2, "worst": count - 1}


def _overlay(trial: Trial, case: str, labels: Mapping[str, int]) -> Plot | None:
    overlay, own = load_overlay(trial.out / OVERLAYS, case), picture_file(trial.out, case)
    if own.exists():
        return Plot(shown_picture(own), overlay.title if overlay else case)
    return Plot(draw_overlay(overlay, labels), overlay.title) if overlay else None


def _settings(summary: Mapping[str, Any]) -> Block:
    arms = summary["settings"]
    names = list(dict.fromkeys(key for settings in arms.values() for key in settings if key != "seed"))
    rows = [[name, *(_shown(settings.get(name)) for settings in arms.values())] for name in names]
    return Fold("all settings", make_table(["setting", *arms], rows))


def _shown(value: Any) -> str:
    return "\N{EN DASH}" if value is None else str(value)


def _with_sd(arm: Mapping[str, Any]) -> str:
    return f"{arm['mean']:.4f} ± {arm['sd']:.4f}" if arm["seeds"] > 1 else f"{arm['mean']:.4f}"


def _unit(summary: Mapping[str, Any]) -> str:
    return f" {summary['unit']}" if summary["unit"] else ""
