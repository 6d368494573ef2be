"""Weak labels of a served study: imported from a table, and derived from masks that annotators finish."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError
from medseg.methods import method_class
from medseg.server.tasks.study import Study
from medseg.server.weak_regions import check_regions, region_ids
from medseg.weak import WeakLabels, parse_weak
from medseg.weak_import import merged, read_weak_table
from medseg.weak_table import TableRow

logger = logging.getLogger(__name__)


def import_weak(datastore: Any, file: Path, *, only_missing: bool = False) -> list[str]:
    """Write a table's weak labels and patients into the images' info: all rows, or none if one is bad.

    Args:
        datastore: of a studies folder.
        file: CSV, see `medseg.weak_table`.
        only_missing: of an image leave alone the kinds of labels that it has already (a table that is read at every
            start must not undo what readers changed since).

    Returns:
        Ids of the images that were updated.

    Raises:
        MedsegError: names file, line, column and reason; nothing was written.
    """
    images = {identifier: Path(datastore.get_image_uri(identifier)) for identifier in datastore.list_images()}
    changes: dict[str, dict[str, Any]] = {}
    for identifier, row in read_weak_table(file, images).items():
        before = _present(datastore, identifier)
        row = unsaid(row, before) if only_missing and before else row
        if row.weak is None and before and only_missing:
            continue
        _check_row(datastore, identifier, row)
        weak = merged(before, row)
        info = {"weak": weak.model_dump(mode="json", exclude_none=True)} if weak else {}
        changes[identifier] = {**info, **({"patient": row.patient} if row.patient else {})}
    for identifier, info in changes.items():
        datastore.update_image_info(identifier, info)
    logger.info("weak labels of %d images were read from %s", len(changes), file)
    return list(changes)


def unsaid(row: TableRow, before: WeakLabels) -> TableRow:
    """What a row says beyond what is known of its image. Extents and scores are one kind: two forms of one reading."""
    known = before.model_dump()
    known["extent"] = known["scores"] = {**before.extent, **before.scores}
    labels = {kind: {} if known[kind] else values for kind, values in row.labels.items()}
    return replace(row, labels=labels, domain=None if before.domain else row.domain)


def derive_weak(study: Study, image_id: str, author: str = "") -> dict[str, WeakLabels]:
    """Let every served method derive weak labels from the image's finished mask, and store what they find.

    Returns:
        What was stored, by method. A method that derives nothing, or fails, is left out with a line in the log.
    """
    found: dict[str, WeakLabels] = {}
    for name in study.settings.models:
        try:
            case = study.case(image_id)
            kind = method_class(name)
            if case.label is None:
                continue
            weak = kind.derive_weak(case, kind.fit_labels(study.labels), study.settings.config(name))
        except MedsegError as error:
            logger.warning("no weak labels of %s for %s: %s", image_id, name, error)
            continue
        if weak is not None:
            values = {**weak.model_dump(mode="json", exclude_none=True), **({"by": author} if author else {})}
            study.datastore.update_image_info(image_id, {"weak": values})
            found[name] = weak
    return found


def _present(datastore: Any, identifier: str) -> WeakLabels | None:
    info: Mapping[str, Any] = datastore.get_image_info(identifier) or {}
    return parse_weak(info["weak"], f"image {identifier}") if info.get("weak") else None


def _check_row(datastore: Any, identifier: str, row: TableRow) -> None:
    """Refuse regions that the image's region mask, where there is one, does not have; the column is named."""
    ids = region_ids(datastore, identifier)
    for kind, column in (("extent", "extent"), ("scores", "score")):
        values = row.labels[kind]
        for region, value in values.items():
            check_regions({region: value}, ids, f"{row.where}, column '{column}_{region}'")
        check_regions(values, ids, row.where)
