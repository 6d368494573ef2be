"""Start a network from the matching layers of another model, of the same method or of another one.

Layers are matched by name and shape, never by position. Where one network holds the other as a part (the trunk of a
pretrained model, the student of a pair), names differ by a prefix, which is found and said.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from medseg.errors import NotFoundError, UnusableInputError
from medseg.files import read_json
from medseg.methods.base import Method
from medseg.networks.domain_norm import without_slot
from medseg.networks.stem import fit_channels

log = logging.getLogger(__name__)

FEWEST = 8  # ours: tensors that a part must share by name and shape before it is taken for the same part
SHARE = 0.65  # ours: and this share of the part's tensors; a decoder has half of an encoder's levels
LOW = 0.25  # ours: below this share of loaded tensors the account is a warning
NAMED = 6  # ours: names written out in the account

Tensors = Mapping[str, torch.Tensor]


@dataclass
class Account:
    """What was loaded.

    Attributes:
        loaded: names in the network that were filled.
        parts: how names were matched, "" for equal names, for example {"trunk.* as *": 96}.
        adapted: names whose input channels were summed or repeated (grey and colour).
        shape_differs: names in both, of different shape.
        missing: names in the network that nothing in the file matches.
        unused: number of tensors in the file that were not used.
    """

    loaded: list[str] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=dict)
    adapted: list[str] = field(default_factory=list)
    shape_differs: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: int = 0


def adopted_settings(kind: type[Method], init: str | None) -> dict[str, Any]:
    """Settings of the model in `init` that make its layers fit, see `Method.adopt`; {} where nothing tells them."""
    if not init:
        return {}
    path = Path(init)
    about = read_json((path if path.is_dir() else path.parent) / "config.json", default={})
    found = kind.adopt(about["config"]) if isinstance(about.get("config"), dict) else {}
    if found:
        log.info("init %s: %s", init, ", ".join(f"{key}={value}" for key, value in found.items()))
    return found


def load_initial(
    network: nn.Module, path: Path, may_miss: bool = False, inherit: Callable[[Tensors], Tensors] = dict
) -> Account:
    """Copy every tensor that matches.

    Args:
        network: changed in place.
        path: a `model.safetensors`, or a folder that holds one.
        may_miss: a file of which nothing matches is a warning, and the network stays as it is.
        inherit: changes the file's tensors before they are matched, see `Method.inherit`.

    Raises:
        NotFoundError: no such file.
        UnusableInputError: nothing matches, or the file is damaged.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.exists():
        raise NotFoundError(f"init = {path} does not exist; give a model.safetensors or its folder")
    try:
        given: Tensors = load_file(file)
    except Exception as error:
        raise UnusableInputError(f"init = {file} is no readable safetensors file: {error}") from error
    given = _shared(inherit(given))
    own = _shared(network.state_dict())
    sources, parts = match_names(own, given)
    account = Account(parts=parts)
    with torch.no_grad():
        for name, value in own.items():
            _fill(account, name, value, given.get(sources.get(name, "")))
    if not account.loaded:
        sentence = f"init = {file} has no tensor whose name and shape match this network"
        if not may_miss:
            raise UnusableInputError(f"{sentence}; give a model of the same kind of network, or leave init out")
        log.warning("%s; it starts from random weights", sentence)
        return account
    account.unused = len(given) - len({sources[name] for name in account.loaded})
    _tell(account, file, len(own))
    return account


def _shared(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Without a network's own parts, which nobody starts from: those whose name begins with an underscore."""
    return {name: value for name, value in tensors.items() if not name.startswith("_")}


def match_names(own: Tensors, given: Tensors) -> tuple[dict[str, str], dict[str, int]]:
    """Which tensor of the file belongs to which of the network.

    Equal names first. Then parts whose names are equal behind a prefix, largest first: a part counts if at least
    `FEWEST` tensors and `SHARE` of all those below its prefix agree in name and shape. Within a part, a level behind
    which a block was put (`networks.hooks.insert_after` moves its weights to `name.0`) is found as well,
    and all domains' slots of a norm start from a norm that has none.

    Returns:
        Name in the network -> name in the file, and the parts with their number of tensors.
    """
    sources = {name: name for name in own if name in given}
    parts = {"equal names": len(sources)} if sources else {}
    for prefix, other in _parts(own, given):
        below = [name for name in own if name.startswith(prefix)]
        pairs = {name: other + name[len(prefix) :] for name in below if name not in sources}
        pairs = {name: found for name, source in pairs.items() if (found := _find(source, own[name], given))}
        agree = sum(given[source].shape == own[name].shape for name, source in pairs.items())
        if agree >= FEWEST and agree >= SHARE * len(below):
            sources.update(pairs)
            parts[f"{other}* as {prefix}*"] = agree
    return sources, parts


def _parts(own: Tensors, given: Tensors) -> list[tuple[str, str]]:
    """Prefixes (in the network, in the file) by the number of tensors that agree behind them, most first."""
    by_end: dict[str, list[str]] = {}
    for name in given:
        by_end.setdefault(_end(name), []).append(name)
    count: Counter[tuple[str, str]] = Counter()
    for name, value in own.items():
        for source in by_end.get(_end(name), []):
            if given[source].shape == value.shape:
                count.update(_prefixes(name, source))
    return [pair for pair, number in count.most_common() if number >= FEWEST and pair != ("", "")]


def _end(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _prefixes(name: str, source: str) -> set[tuple[str, str]]:
    """What stands before the longest common end of two dotted names.

    Where that is nothing in one of them, the first common component too: a network may share the encoder alone.
    """
    first, second = name.split("."), source.split(".")
    common: list[str] = []
    while first and second and first[-1] == second[-1]:
        common.insert(0, first.pop())
        second.pop()
    found = {(_dotted(first), _dotted(second))}
    if common and not (first and second):
        found.add((_dotted([*first, common[0]]), _dotted([*second, common[0]])))
    return found


def _dotted(parts: list[str]) -> str:
    return "".join(f"{part}." for part in parts)


def _find(source: str, value: torch.Tensor, given: Tensors) -> str | None:
    """`source` where the file has it, else without the slot of a domain, or one `0`, if that has the same shape."""
    for name in (source, without_slot(source)):
        if name in given:
            return name
    parts = source.split(".")
    shorter = (".".join(parts[:i] + parts[i + 1 :]) for i, part in enumerate(parts) if part == "0")
    return next((name for name in shorter if name in given and given[name].shape == value.shape), None)


def _fill(account: Account, name: str, value: torch.Tensor, source: torch.Tensor | None) -> None:
    if source is None:
        account.missing.append(name)
        return
    if source.shape != value.shape:
        fitted = fit_channels(source, value)
        if fitted is None:
            account.shape_differs.append(name)
            return
        account.adapted.append(name)
        source = fitted
    value.copy_(source)
    account.loaded.append(name)


def _tell(account: Account, file: Path, total: int) -> None:
    """The account for people; a warning where little was loaded."""
    loaded = len(account.loaded)
    level = logging.WARNING if loaded < LOW * total else logging.INFO
    parts = "; ".join(f"{part}: {number}" for part, number in account.parts.items())
    log.log(level, "init %s: %d of %d tensors loaded (%s)", file, loaded, total, parts)
    rest: list[tuple[str, Any]] = [
        ("input channels adapted", account.adapted),
        ("of another shape", account.shape_differs),
        ("not in the file", account.missing),
    ]
    for title, names in rest:
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            log.info("init: %s: %s%s", title, ", ".join(names[:NAMED]), more)
    if account.unused:
        log.info("init: %d tensors of the file are not used here", account.unused)
