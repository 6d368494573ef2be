"""`medseg models`: the versions in a model folder, and going back to one of them."""

from __future__ import annotations

from pathlib import Path

from medseg.errors import MedsegError, NotFoundError
from medseg.training.registry import ModelRegistry
from medseg.training.study import study_key


def study_folders(root: Path, studies: str | None = None) -> list[str]:
    """Names of the studies that have models below `root`; only those that `studies` (a path, URL or name) means."""
    found = (
        sorted(p.name for p in root.iterdir() if p.is_dir() and ModelRegistry(root, p.name).methods())
        if root.is_dir()
        else []
    )
    if studies is None:
        return found
    wanted = {studies, study_key(studies)}
    return [name for name in found if name in wanted]


def list_models(root: Path, method: str | None, studies: str | None) -> list[str]:
    """One line per version, newest last; `*` marks the one that is served.

    Raises:
        NotFoundError: there are models, but none of this method or study.
    """
    lines = []
    everywhere = study_folders(root)
    chosen = study_folders(root, studies)
    if everywhere and not chosen:
        raise NotFoundError(f"there is no model of the studies {studies}; known: {', '.join(everywhere)}")
    known = sorted({name for study in chosen for name in ModelRegistry(root, study).methods()})
    if known and method not in (None, *known):
        raise NotFoundError(f"there is no model of {method!r} below {root}; known: {', '.join(known)}")
    for study in chosen:
        for version in ModelRegistry(root, study).versions(method):
            quality = version.metrics.get("quality")
            shown = f"quality {quality:.4f}" if isinstance(quality, float) else "not validated"
            mark = "*" if version.champion else " "
            what = f"{version.method}  version {version.number}"
            created = version.created[:16].replace("T", " ") + " UTC"
            lines.append(f"{mark} {study}  {what}  {shown}  {created}  {version.note}")
    return lines or [f"no model below {root} yet; label images and train"]


def roll_back(root: Path, method: str, number: int, studies: str | None, tracking_uri: str | None) -> str:
    """Make an older version the served one.

    Raises:
        NotFoundError: no study has such a version.
        MedsegError: several studies have models of the method.
    """
    having = [s for s in study_folders(root, studies) if ModelRegistry(root, s).versions(method)]
    if not having:
        raise NotFoundError(f"there is no model of {method!r} below {root}")
    if len(having) > 1:
        raise MedsegError(f"several studies have models of {method}: {', '.join(having)}; choose one with --studies")
    version = ModelRegistry(root, having[0], tracking_uri).rollback(method, number)
    return f"{having[0]}: {method} version {version.number} is served now"
