"""Names of the query strategies, for who has to know them before a server runs."""

from __future__ import annotations

from collections.abc import Sequence

from medseg.acquisition.cold_start import COLD_START
from medseg.methods import method_class
from medseg.methods.base import Supervision

ALWAYS = ("random", "stratified", "first")


def strategy_names(methods: Sequence[str]) -> tuple[str, ...]:
    """What a server with these methods offers: those of each method, those of cold start, those without a model."""
    names = []
    for method in methods:
        names += [method, f"{method}_diverse"]
        if Supervision.DOMAIN in method_class(method).supervision:
            names.append(f"{method}_weakest")
    if any(method_class(method).describes for method in methods):
        names += COLD_START
    return (*names, *ALWAYS)
