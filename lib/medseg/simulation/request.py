"""What is asked of a simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.acquisition.names import strategy_names
from medseg.cases import Case, load_cases
from medseg.errors import MedsegError
from medseg.methods import method_class
from medseg.training.labels import name_labels


@dataclass(frozen=True)
class SimulationRequest:
    """Annotate and retrain against a real server, with an annotator who knows the truth.

    Attributes:
        method: name in the table of methods.
        data: data folders; cases without a mask are left out.
        out: folder of the summary, the report and the runs.
        strategies: names the server offers: `random`, `stratified`, `first`, `<method>`, `<method>_diverse`, ...
        rounds: labelling rounds after the first training.
        per_round: images labelled in each of them.
        seeds: number of seeds; a seed has its own initial labels, the same for all strategies.
        initial: labels of the first training.
        validation: number of validation cases, labelled from the beginning; None: a tenth, 1 to 8.
        test: number of test cases, which the server never sees; None: a fifth, 1 to 10.
        preset: name of the method's preset; None: the method's defaults.
        iterations: training iterations of every round.
        scale: 0.5 works at half resolution.
        settings: further settings of the method.
        device: "cpu", "cuda" or "cuda:1"; None: a GPU where there is one.
        port: of the server on 127.0.0.1; None: a free one.
        app: folder of the MONAI Label app; None: `apps/medseg` beside the package.
    """

    method: str
    data: tuple[Path, ...]
    out: Path
    strategies: tuple[str, ...] = ("random",)
    rounds: int = 3
    per_round: int = 2
    seeds: int = 1
    initial: int = 4
    validation: int | None = None
    test: int | None = None
    preset: str | None = "cpu"
    iterations: int | None = None
    scale: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    port: int | None = None
    app: Path | None = None

    def method_settings(self) -> dict[str, str]:
        """Settings of the method as the server takes them, after a check.

        Raises:
            MedsegError: unknown preset, setting or value.
        """
        kind = method_class(self.method)
        if self.preset and self.preset not in kind.presets:
            raise MedsegError(f"{self.method} has no preset {self.preset!r}; known presets: {', '.join(kind.presets)}")
        chosen = {"iterations": self.iterations, "scale": self.scale}
        values = {**{key: value for key, value in chosen.items() if value is not None}, **self.settings}
        preset = kind.presets[self.preset].config if self.preset else {}
        kind.config_class.from_dict({**preset, **values})
        return {key: _text(value) for key, value in values.items()}

    def check(self) -> None:
        """Check what can be checked before anything is written.

        Raises:
            MedsegError: a number out of range, no or a repeated strategy, a bad setting.
        """
        least = {"rounds": 0, "per_round": 1, "seeds": 1, "initial": 1}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise MedsegError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give at least {limit}")
        if not self.strategies or len(set(self.strategies)) != len(self.strategies):
            raise MedsegError(f"--strategies is {', '.join(self.strategies) or 'empty'}; name each strategy once")
        offered = strategy_names([self.method])
        for name in self.strategies:  # becomes a folder
            if name not in offered:
                raise MedsegError(f"there is no strategy {name!r}; {self.method} offers {', '.join(offered)}")
        self.method_settings()

    def load(self) -> tuple[list[Case], dict[str, int]]:
        """The cases with a mask, in list order, and the labels in their masks.

        Raises:
            MedsegError: missing folders, or no mask.
        """
        pattern = self.settings.get("patient_pattern")
        kind = method_class(self.method)
        masked = [case for case in load_cases(self.data, pattern) if case.label is not None]
        cases, found = name_labels(self.data, masked, kind)
        return cases, kind.fit_labels(found)

    def identity(self) -> dict[str, Any]:
        """What must be equal for a simulation to be continued; strategies, seeds and rounds may be added."""
        keys = ("method", "per_round", "initial", "preset", "iterations", "scale")
        settings = {key: _text(value) for key, value in sorted(self.settings.items())}
        return {**{key: getattr(self, key) for key in keys}, "settings": settings}


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
