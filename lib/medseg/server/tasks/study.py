"""What the tasks of one study share: settings, labels, folders, models, scores, leases."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.acquisition.leases import LeaseBook
from medseg.acquisition.score_store import ScoreStore, StoredScore
from medseg.cases import Case, image_suffix, patient_of
from medseg.domains import TAGS, assign_domains
from medseg.errors import MedsegError, NotFoundError, UnusableInputError
from medseg.label_maps import NAMES_FILE, read_file
from medseg.methods import method_class
from medseg.methods.base import Method, MethodConfig, Supervision
from medseg.server.settings import AppSettings
from medseg.stamps import case_stamp, file_stamp
from medseg.training.registry import ModelRegistry
from medseg.training.split import Split, SplitManifest, with_groups
from medseg.training.study import study_key
from medseg.transforms.io import read_mask
from medseg.weak import WeakLabels, parse_weak

logger = logging.getLogger(__name__)

MASKS_READ = 8  # ours: masks looked at for values that nobody named; reading all would delay the start


class Study:
    """One studies folder (or DICOMweb server) as the tasks see it.

    Args:
        settings: settings of the app.
        model_dir: folder of all studies' models.
        studies: folder or URL of the images.
        datastore: MONAI Label datastore over them.

    Attributes:
        key: name of the study's folder in `model_dir`.
    """

    def __init__(self, settings: AppSettings, model_dir: Path, studies: str, datastore: Any) -> None:
        self.settings = settings
        self.studies = studies
        self.datastore = datastore
        self.key = study_key(studies)
        self.folder = Path(model_dir) / self.key
        self.registry = ModelRegistry(Path(model_dir), study=self.key, tracking_uri=settings.tracking_uri)
        self.leases = LeaseBook(self.folder / "leases.json", settings.lease_minutes)
        self.split_lock = threading.Lock()
        self._scores: dict[str, ScoreStore] = {}
        self._fixed = fixed_labels(settings, studies)
        self._highest: dict[str, int] = {}

    @property
    def is_folder(self) -> bool:
        """Whether the images are files here; else each look at one asks a DICOMweb server."""
        return "://" not in self.studies

    @property
    def labels(self) -> dict[str, int]:
        """Label name -> 1..N.

        `fixed_labels` where there are some. Else the names that annotators saved; values of masks that nobody named
        are `label_1`, `label_2`, ...; an empty study has the single label `label_1`.
        """
        if self._fixed:
            return dict(self._fixed)
        named = dict(getattr(self.datastore, "labels", {}))
        indices = {index: name for name, index in named.items()}
        masks = self.labelled()[:MASKS_READ] if self.is_folder else []
        count = max([1, *indices, *(self._highest_value(identifier) for identifier in masks)])
        return {indices.get(index, f"label_{index}"): index for index in range(1, count + 1)}

    def scores(self, method: str) -> ScoreStore:
        """Acquisition scores by one method's champion."""
        return self._scores.setdefault(method, ScoreStore(self.folder / "scores" / f"{method}.json"))

    def failures(self, method: str | None = None) -> dict[str, str]:
        """Image id -> why the served model could not score it; images that changed since are left out.

        Args:
            method: whose model; None: of every method, without the images that one of them scored.
        """
        failed: dict[str, StoredScore] = {}
        scored: set[str] = set()
        for name in [method] if method else self.settings.models:
            champion = self.registry.champion(name)
            for score in self.scores(name).all().values() if champion else ():
                if champion and score.version == champion.number:
                    if score.value is None:
                        failed.setdefault(score.id, score)
                    else:
                        scored.add(score.id)
        there = sorted((failed.keys() - scored) & set(self.datastore.list_images())) if failed else []
        stamps = self.stamps(there)
        return {i: failed[i].error or "scoring failed" for i in there if stamps.get(i) == failed[i].stamp}

    def runs(self, method: str) -> Path:
        """Folder of the method's training runs."""
        return self.folder / method / "runs"

    # -- images ------------------------------------------------------------------------------------------------------

    def image(self, identifier: str) -> Path:
        """Path of an image.

        Raises:
            NotFoundError: no such image.
        """
        try:
            uri = self.datastore.get_image_uri(identifier) if identifier else ""
        except (IndexError, KeyError):  # MONAI Label's own datastores on an image that is not there
            uri = ""
        if not uri:
            raise NotFoundError(
                f"there is no image {identifier!r} in this study; GET /datastore/?output=all lists them"
            )
        return Path(uri)

    def unlabelled(self) -> list[str]:
        """Ids of images without a final label, in order."""
        return sorted(self.datastore.get_unlabeled_images())

    def labelled(self) -> list[str]:
        """Ids of images with a final label, in order."""
        return sorted(self.datastore.get_labeled_images())

    def stamps(self, identifiers: list[str]) -> dict[str, str]:
        """Image id -> stamp of what a score depends on, of images that are there: image, regions, weak labels.

        Regions in a DICOMweb archive count by what is known of them: nothing is fetched to ask.
        """
        return {i: self._stamp(i, Path(uri)) for i in identifiers if (uri := self._local_uri(i))}

    def _stamp(self, identifier: str, image: Path) -> str:
        outline = self._outline(identifier, image)
        if self.is_folder:
            return case_stamp(replace(outline, regions=self._label(identifier, "regions")))
        return f"{case_stamp(outline)} {self.datastore.get_label_info(identifier, 'regions').get('sha256', '')}"

    def _local_uri(self, identifier: str) -> str:
        """Path of an image; for a DICOMweb study the id, whose images never change and must not be fetched to ask."""
        return self.datastore.get_image_uri(identifier) if self.is_folder else identifier

    # -- cases -------------------------------------------------------------------------------------------------------

    def case(self, identifier: str) -> Case:
        """Everything known of an image."""
        outline = self._outline(identifier, self.image(identifier))
        return replace(outline, label=self._label(identifier, "final"), regions=self._label(identifier, "regions"))

    def is_taught(self, identifier: str, methods: Sequence[str]) -> bool:
        """Whether an image's weak labels tell each of the methods what a mask would (`Method.is_labelled`)."""
        outline = self._outline(identifier, Path(identifier))
        return all(method_class(name).is_labelled(outline) for name in methods)

    def _outline(self, identifier: str, image: Path) -> Case:
        """What an image's info tells of it; no file is looked at."""
        info = self.datastore.get_image_info(identifier) or {}
        weak = _weak(info, identifier)
        return Case(
            id=identifier,
            image=image,
            weak=weak,
            domain=weak.domain if weak else None,
            patient=str(info.get("patient") or patient_of(identifier, self.settings.patient_pattern)),
            dataset=self.key,
            tags={name: str(info[name]) for name in TAGS if info.get(name)} or None,
        )

    def cases(self) -> list[Case]:
        """All images, labelled or not, in order of their ids."""
        return [self.case(identifier) for identifier in sorted(self.datastore.list_images())]

    def usable_cases(self, kind: type[Method]) -> tuple[list[Case], dict[str, str]]:
        """The images that a method can learn from, in order of their ids; and why others are left out.

        Of an archive, unlabelled images are fetched only for methods that learn from them.
        """
        cases, skipped = [], {}
        for identifier in sorted(self.datastore.list_images()):
            try:
                if self.is_folder or self._teaches(identifier, kind):
                    cases.append(self.case(identifier))
            except (UnusableInputError, NotFoundError) as error:
                logger.warning("image %s is left out: %s", identifier, error)
                skipped[identifier] = str(error)
        return cases, skipped

    def _teaches(self, identifier: str, kind: type[Method]) -> bool:
        tags = ("final", "regions")
        if Supervision.UNLABELLED in kind.supervision or any(self._has_label(identifier, tag) for tag in tags):
            return True
        return self._outline(identifier, Path(identifier)).weak is not None

    def strata(self) -> dict[str, str]:
        """Image id -> its imaging domain; where all images have the same, its patient."""
        domains = self.domains()
        if len(set(domains.values())) > 1:
            return domains
        return {case.id: case.patient for case in self._outlines()}

    def domains(self, method: str | None = None) -> dict[str, str]:
        """Image id -> its imaging domain; "" for images of which nothing tells it, in a study that has domains.

        Args:
            method: whose rule; None: of the first of the study's methods that knows domains.
        """
        cases = self._outlines()
        names = [method] if method else self.settings.models
        names = [name for name in names if Supervision.DOMAIN in method_class(name).supervision]
        if names:
            found = method_class(names[0]).group_cases(cases, self.settings.config(names[0]))
        else:
            found = assign_domains(cases)
        learnt = {found[identifier] for identifier in self.labelled() if identifier in found}
        if self.key in learnt or set(found.values()) == {self.key}:
            return found
        return {identifier: "" if domain == self.key else domain for identifier, domain in found.items()}

    def _outlines(self) -> list[Case]:
        images = sorted(self.datastore.list_images())
        return [self._outline(identifier, Path(self._local_uri(identifier))) for identifier in images]

    def grouped(self, cases: Sequence[Case], kind: type[Method], config: MethodConfig | None = None) -> list[Case]:
        """The cases with their `group` as all images of the study tell it, also those that nobody has labelled."""
        return with_groups(cases, kind, config, among=self._outlines())

    def split(self, cases: list[Case], kind: type[Method], config: MethodConfig | None = None) -> Split:
        """Training and frozen validation cases; new labelled patients get their role now, for ever."""
        explicit = self.settings.validation
        outlines = [self._outline(i, Path(i)) for i in self.datastore.list_images()] if explicit else []
        known = {case.id for case in outlines} | {case.patient for case in outlines}
        missing = [identifier for identifier in explicit if identifier not in known]
        if missing:
            raise NotFoundError(f"--conf validation names {', '.join(missing)}, which is no image of this study")
        with self.split_lock:
            manifest = SplitManifest(self.folder / "split.json", self.settings.validation_fraction, explicit)
            return manifest.assign(cases, kind, config)

    def _highest_value(self, identifier: str) -> int:
        """Highest value of an image's mask; 1 where it cannot be read. Read once per file."""
        label = self._label(identifier, "final")
        stamp = f"{label}-{file_stamp(label)}" if label else ""
        if label and stamp not in self._highest:
            try:
                self._highest[stamp] = int(read_mask(label).max())
            except MedsegError:
                self._highest[stamp] = 1
        return self._highest.get(stamp, 1)

    def _has_label(self, identifier: str, tag: str) -> bool:
        return bool(self.datastore.get_label_by_image_id(identifier, tag))

    def _label(self, identifier: str, tag: str) -> Path | None:
        label = self.datastore.get_label_by_image_id(identifier, tag)
        uri = self.datastore.get_label_uri(label, tag) if label else ""
        return Path(uri) if uri and image_suffix(Path(uri)) and Path(uri).exists() else None


def fixed_labels(settings: AppSettings, studies: str) -> dict[str, int]:
    """The labels that somebody stated: `--conf labels`, or `labels.json` in the studies folder; {} where nobody did.

    Raises:
        MedsegError: `labels.json` is not a list of names or an object {name: 1..N}.
    """
    if settings.labels:
        return _numbered(settings.labels)
    stated = Path(studies) / NAMES_FILE
    return _stated_labels(stated) if "://" not in studies and stated.is_file() else {}


def _weak(info: Mapping[str, Any], identifier: str) -> WeakLabels | None:
    """The image's weak labels. The datastore refuses bad ones; those another program wrote must not stop a training."""
    try:
        return parse_weak(info["weak"], f"image {identifier}") if info.get("weak") else None
    except MedsegError as error:
        logger.warning("%s; its weak labels are left out", error)
        return None


def _numbered(names: tuple[str, ...] | list[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(names, start=1)}


def _stated_labels(file: Path) -> dict[str, int]:
    names = read_file(file)
    labels = {name: value for value, name in names.items()}
    if not labels:
        raise MedsegError(f'{file} names no label; write {{"atrium": 1}}, or remove it')
    if sorted(names) != list(range(1, len(labels) + 1)):
        given = ", ".join(f"{name} {value}" for value, name in names.items())
        raise MedsegError(f"{file} must number its labels 1..{len(labels)}, one value for each, got {given}")
    return dict(sorted(labels.items(), key=lambda item: item[1]))
