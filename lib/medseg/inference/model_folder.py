"""A model on disk: `model.safetensors` beside the `config.json` that rebuilds the method around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from medseg import __version__
from medseg.errors import MedsegError, NotFoundError, UnusableInputError
from medseg.files import read_json, write_atomically, write_json
from medseg.methods import method_class
from medseg.methods.base import Method
from medseg.sources import code_hash

FORMAT = 1


def save_model(folder: Path, method: Method, extra: dict[str, Any] | None = None) -> None:
    """Write a method's weights and config; each file is replaced atomically, the weights last.

    Args:
        folder: created where it is missing.
        method: what to save.
        extra: further entries for `config.json` (data, split, environment).
    """
    folder = Path(folder)
    write_json(folder / "config.json", describe(method, extra))
    state = {key: value.detach().cpu().contiguous() for key, value in method.network.state_dict().items()}
    write_atomically(folder / "model.safetensors", lambda path: save_file(state, path))


def describe(method: Method, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of `config.json`."""
    return {
        "format": FORMAT,
        "medseg": __version__,
        "code": code_hash(),
        "method": method.name,
        "labels": method.labels,
        "config": method.config.to_dict(),
        **(extra or {}),
    }


def load_model(folder: Path, device: str = "cpu") -> Method:
    """Rebuild a method from its folder, in eval mode on `device`.

    Raises:
        NotFoundError: the folder holds no model.
        UnusableInputError: the files do not belong together or are damaged.
    """
    folder = Path(folder)
    try:
        description = read_json(folder / "config.json")
    except json.JSONDecodeError as error:
        raise UnusableInputError(f"{folder / 'config.json'} is damaged: {error}") from error
    weights = folder / "model.safetensors"
    if description is None or not weights.exists():
        raise NotFoundError(f"{folder} holds no model; expected model.safetensors and config.json")
    if description.get("format") != FORMAT:
        raise MedsegError(f"{folder} has model format {description.get('format')}; this version reads format {FORMAT}")
    kind = method_class(description["method"])
    method = kind(kind.config_class.from_dict(description["config"]), description["labels"])
    try:
        method.network.load_state_dict(load_file(weights), strict=True)
    except Exception as error:  # safetensors and torch raise different types for the same fact
        reason = str(error).strip().splitlines()[0]
        raise UnusableInputError(f"{weights} does not fit its config.json or is damaged: {reason}") from error
    method.network.to(device).eval()
    return method
