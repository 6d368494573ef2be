"""The index: what is known of every image and label, and how one change of the journal alters it.

On disk it is MONAI Label's `datastore_v2.json` with one more key, `medseg`: how far into the journal it reaches, and
what is known of files that are not there at present (an unmounted disk must not cost the weak labels of its images).
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastoreModel
from pydantic import ValidationError

from medseg.files import write_json
from medseg.server.journal import Entry, make_entry

logger = logging.getLogger(__name__)

OWN_KEY = "medseg"

Record = dict[str, Any]
"""`{"image": {"ext", "info"}, "labels": {tag: {"ext", "info"}}}`"""


@dataclass
class IndexState:
    """Everything the journal says.

    Attributes:
        name: name of the data set.
        description: its description.
        records: image id -> record, also of files that are absent at present.
    """

    name: str = "new-dataset"
    description: str = "New Dataset"
    records: dict[str, Record] = field(default_factory=dict)

    def replay(self, entries: Iterable[Entry]) -> None:
        """Make changes in their order; an entry that lacks a field is skipped with a warning."""
        for entry in entries:
            try:
                self.apply(entry)
            except (KeyError, TypeError, AttributeError) as error:
                logger.warning("journal entry %s of %s is skipped: %r", entry["change"], entry.get("time"), error)

    def apply(self, entry: Entry) -> None:
        """Make one change. A change of something unknown is ignored: its removal came first.

        Changes: `dataset` (name, description), `image_added` (image, ext, info), `image_info` (image, info),
        `image_removed` (image), `label_saved` (image, tag, ext, info), `label_info` (image, tag, info),
        `label_removed` (image, tag). Other fields (time, author, sha256) are for readers.
        """
        entry = copy.deepcopy(entry)
        change, image = entry["change"], str(entry.get("image", ""))
        if change == "dataset":
            self.name, self.description = entry["name"], entry["description"]
        elif change == "image_added":
            record = self.records.setdefault(image, {"image": {"ext": "", "info": {}}, "labels": {}})
            record["image"]["ext"] = entry["ext"]
            record["image"]["info"].update(entry["info"])
        elif image in self.records:
            self._apply_to(self.records[image], entry)

    def changes_towards(self, other: IndexState) -> list[Entry]:
        """Journal entries that add to this state what the other one has beyond it."""
        entries = []
        if (self.name, self.description) != (other.name, other.description):
            entries.append(make_entry("dataset", name=other.name, description=other.description))
        for image, record in other.records.items():
            mine = self.records.get(image, {"image": None, "labels": {}})
            if mine["image"] != record["image"]:
                entries.append(make_entry("image_added", image=image, **record["image"]))
            for tag, label in record["labels"].items():
                if mine["labels"].get(tag) != label:
                    entries.append(make_entry("label_saved", image=image, tag=tag, **label))
        return entries

    def _apply_to(self, record: Record, entry: Entry) -> None:
        change, labels = entry["change"], record["labels"]
        if change == "image_info":
            record["image"]["info"].update(entry["info"])
        elif change == "image_removed":
            del self.records[entry["image"]]
        elif change == "label_saved":
            labels[entry["tag"]] = {"ext": entry["ext"], "info": entry["info"]}
        elif change == "label_info" and entry["tag"] in labels:
            labels[entry["tag"]]["info"].update(entry["info"])
        elif change == "label_removed":
            labels.pop(entry["tag"], None)


@dataclass(frozen=True)
class StoredIndex:
    """An index file that could be read.

    Attributes:
        state: what it says.
        journal: bytes of the journal it includes; None where another program wrote the file.
    """

    state: IndexState
    journal: int | None


def read_index(path: Path) -> StoredIndex | None:
    """Read an index file; None where it is missing, cut off or not an index."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model = LocalDatastoreModel.model_validate(content)
        own = content.get(OWN_KEY) or {}
        state = IndexState(model.name, model.description, {k: v.model_dump() for k, v in model.objects.items()})
        absent = LocalDatastoreModel(name="", description="", objects=own.get("absent") or {}).objects
        state.records.update({k: v.model_dump() for k, v in absent.items()})
        journal = own.get("journal")
        return StoredIndex(state, journal if isinstance(journal, int) else None)
    except FileNotFoundError:
        return None
    except (ValueError, ValidationError, AttributeError) as error:
        logger.warning("index %s cannot be read and is rebuilt from the journal: %s", path, str(error).splitlines()[0])
        return None


def write_index(path: Path, view: LocalDatastoreModel, records: Mapping[str, Record], journal: int) -> None:
    """Write the index atomically.

    Args:
        path: the index file.
        view: the images and labels whose files are there.
        records: everything known.
        journal: bytes of the journal that are included.
    """
    content = view.model_dump(exclude={"base_path"})
    absent = {k: record for k, record in records.items() if content["objects"].get(k) != record}
    write_json(path, {**content, OWN_KEY: {"journal": journal, "absent": absent}})
