"""The MONAI Label app of medseg: tasks over the Method interface, on one studies folder."""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from monailabel.config import settings as monai_settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.utils.async_tasks.utils import processes, tasks

from medseg import __version__
from medseg.cases import IMAGE_SUFFIXES
from medseg.errors import MedsegError, NotFoundError
from medseg.methods import method_class
from medseg.server.datastore import MedsegDatastore
from medseg.server.dicom.datastore import DicomWebDatastore
from medseg.server.dicom.setup import open_archive
from medseg.server.intake import FINAL
from medseg.server.settings import AppSettings
from medseg.server.tasks.auto_scoring import AutoScoring
from medseg.server.tasks.batch import MedsegBatchInfer
from medseg.server.tasks.clicks import ClickInfer
from medseg.server.tasks.infer import MarkupInfer, MedsegInfer, is_true
from medseg.server.tasks.next_step import next_step
from medseg.server.tasks.scoring import MedsegScoring
from medseg.server.tasks.strategy import MedsegStrategy, make_strategies
from medseg.server.tasks.study import Study, fixed_labels
from medseg.server.tasks.train import SERVER_PID, MedsegTrain
from medseg.server.weak_labels import derive_weak, import_weak

logger = logging.getLogger(__name__)

JOBS = ("train", "scoring", "batch_infer")


class MedsegApp(MONAILabelApp):
    """Registers infer, train, scoring and strategies for each method (`--conf models`, see `settings`)."""

    studies: str
    study: Study

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        correct_monai_settings()
        self.settings = AppSettings.from_conf(conf)
        self.model_dir = Path(self.settings.model_dir or Path(app_dir) / "model").absolute()
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf),
            name="medseg",
            description="Learns segmentation from few labels, weak labels and unlabelled scans",
            version=__version__,
        )
        logger.info("study %s: models %s, labels %s", self.study.key, ", ".join(self._infers), self.study.labels)

    # -- wiring ------------------------------------------------------------------------------------------------------

    def init_datastore(self) -> Any:
        """Our own datastore for a folder or a DICOMweb archive, MONAI Label's for XNAT and DSA; the study over it."""
        if self.studies.startswith(("http://", "https://")):
            self.studies = self.studies.strip().rstrip("/")
            labels = fixed_labels(self.settings, self.studies)
            own = monai_settings.MONAI_LABEL_DATASTORE.lower() not in ("xnat", "dsa")
            datastore = (
                open_archive(self.settings, self.model_dir, self.studies, labels)
                if own
                else self.init_remote_datastore()
            )
        else:
            datastore = MedsegDatastore(
                self.studies,
                fixed_labels(self.settings, self.studies),
                extensions=monai_settings.MONAI_LABEL_DATASTORE_FILE_EXT,
                auto_reload=monai_settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
                read_only=monai_settings.MONAI_LABEL_DATASTORE_READ_ONLY,
            )
        self.study = Study(self.settings, self.model_dir, self.studies, datastore)
        if isinstance(datastore, DicomWebDatastore):
            datastore.on_label = self.study.leases.release
            datastore.holder = self._holder
        if self.settings.weak_labels and not in_job_process():
            import_weak(datastore, Path(self.settings.weak_labels), only_missing=True)
        return datastore

    def _holder(self, image_id: str) -> str:
        lease = self.study.leases.of(image_id)
        return lease.client if lease else ""

    def init_infers(self) -> dict[str, MedsegInfer]:
        """One per method; others for clicks (`<method>_deepedit`, `_deepgrow`), or points and lines (`_markups`)."""
        infers = {name: MedsegInfer(self.study, name) for name in self.settings.models}
        drawn = [name for name in infers if method_class(name).markups]
        further: dict[str, MedsegInfer] = {f"{name}_markups": MarkupInfer(infers[name]) for name in drawn}
        for name in infers if self.settings.clicks else ():
            if name not in drawn:
                further[f"{name}_deepedit"] = ClickInfer(infers[name], single=False)
                further[f"{name}_deepgrow"] = ClickInfer(infers[name], single=True)
        return {**infers, **further}

    def init_trainers(self) -> dict[str, MedsegTrain]:
        """One per method."""
        return {name: MedsegTrain(self.study, name) for name in self.settings.models}

    def init_strategies(self) -> dict[str, MedsegStrategy]:
        """Two per method, and `random` and `first`."""
        return make_strategies(self.study)

    def init_scoring_methods(self) -> dict[str, MedsegScoring]:
        """One per method."""
        return {name: MedsegScoring(self.study, name) for name in self.settings.models}

    def init_batch_infer(self) -> BatchInferTask:
        """Works without a GPU, too."""
        return MedsegBatchInfer()

    def on_init_complete(self) -> None:
        """The server starts: guard, errors and routes are installed, scoring is watched."""
        os.environ[SERVER_PID] = str(os.getpid())
        super().on_init_complete()
        from medseg.server.install import install  # needs monailabel.app, which jobs must not import

        install(self)
        if self.settings.auto_scoring and self._scoring_methods:
            self.auto_scoring = AutoScoring(self._scoring_methods, job_waits_or_runs, self.async_scoring)
            self.auto_scoring.run()

    # -- what clients ask --------------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """MONAI Label's answer, with the labels in order, the latest training first, and the state of the loop."""
        self.labels = list(self.study.labels)
        meta: dict[str, Any] = super().info()
        stats = meta["train_stats"]  # viewers look at the first entry only
        meta["train_stats"] = dict(sorted(stats.items(), key=lambda item: item[1].get("updated", ""), reverse=True))
        meta["loop"] = self.loop_state()
        return meta

    def loop_state(self) -> dict[str, Any]:
        """Where the annotate-retrain loop stands, per method."""
        labelled, pool = len(self.study.labelled()), set(self.study.unlabelled())
        methods = {}
        for name in self.settings.models:
            task = self._infers[name]
            champion = task.cache.champion()
            scores = [s for s in self.study.scores(name).all().values() if s.id in pool]
            methods[name] = {
                "version": champion.number if champion else None,
                "quality": champion.metrics.get("quality") if champion else None,
                "note": champion.note if champion else None,
                "next_step": None if champion else next_step(self.study, name),
                "scored": sum(1 for s in scores if champion and s.version == champion.number and s.value is not None),
                "failed": len(pool & self.study.failures(name).keys()),
            }
        running = [job for job in JOBS if processes(job)]
        return {"labelled": labelled, "unlabelled": len(pool), "running": running, "methods": methods}

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Predict an image of the datastore (by its id) or a file the server received (by its path)."""
        name = str(request.get("model") or "")
        task = self.known(self._infers, name, "model")
        datastore = datastore or self.datastore()
        asked = copy.deepcopy(dict(request))
        image = str(asked.get("image") or "")
        uploaded = Path(image).is_absolute()  # ids hold no slash; the guard keeps paths of clients out
        asked["image_id"] = None if uploaded else image
        asked["image"] = image if uploaded else str(self.study.image(image))
        file, result = task(asked)
        saved = None
        if file and not uploaded and is_true(asked.get("save_label")):
            tag = asked.get("label_tag") or "original"
            info = {"model": name, "params": result, "client_id": str(asked.get("client_id") or "")}
            try:
                saved = datastore.save_label(image, file, tag, info)
            except Exception:
                Path(file).unlink(missing_ok=True)  # nobody learns of it
                raise
        return {"label": saved or file, "tag": asked.get("label_tag") or "original", "file": file, "params": result}

    def batch_infer(self, request: Mapping[str, Any], datastore: Any = None) -> Any:
        """Predict many images and save the masks."""
        self.known(self._infers, str(request.get("model") or ""), "model")
        return self._job(lambda: super(MedsegApp, self).batch_infer(request, datastore))

    def train(self, request: Mapping[str, Any]) -> Any:
        """Train one method."""
        task = self.known(self._trainers, str(request.get("model") or ""), "trainer")
        # MONAI Label's `POST /train/ {trainer: params}`, which OHIF sends, leaves the trainers' names in the request
        asked = {key: value for key, value in copy.deepcopy(dict(request)).items() if key not in self._trainers}
        return self._job(lambda: task(asked, self.datastore()))

    def scoring(self, request: Mapping[str, Any], datastore: Any = None) -> Any:
        """Score the unlabelled images with one method."""
        task = self.known(self._scoring_methods, str(request.get("method") or ""), "scoring method")
        return self._job(lambda: task(copy.deepcopy(dict(request)), datastore or self.datastore()))

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The next image for an annotator; {} where none is left."""
        task = self.known(self._strategies, str(request.get("strategy") or "random"), "strategy")
        sample = task(request, self.datastore())
        return {**sample, "path": str(self.study.image(sample["id"]))} if sample else {}

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """Reply to a saved label: remarks on its quality. The image is no longer leased."""
        self.study.leases.release(image_id)
        store = self.datastore()
        remarks = store.saved_remarks(image_id) if isinstance(store, MedsegDatastore) else []
        derive_weak(self.study, image_id, str(store.get_label_info(image_id, FINAL).get("author", "")))
        for remark in remarks:
            logger.info("label of %s: %s", image_id, remark)
        return {"remarks": remarks, "labelled": len(self.study.labelled()), "unlabelled": len(self.study.unlabelled())}

    def on_image_info(self, image_id: str) -> None:
        """The image is no longer leased once weak labels tell all methods what a mask would."""
        if self.study.is_taught(image_id, self.settings.models):
            self.study.leases.release(image_id)

    def prepare_job(self, kind: str, name: str, params: dict[str, Any]) -> None:
        """Refuse a job that cannot work before it is queued, and note what the job would no longer see.

        MONAI Label turns `gpus` into an environment variable of the job; the number of processes must be told.

        Raises:
            MedsegError: unknown name, bad setting, nothing to learn from, no model to score with.
        """
        if kind == "train":
            gpus = str(params.get("gpus") or "all")
            if gpus != "all" and torch.cuda.is_available():
                params.setdefault("processes", len(gpus.split(",")))
            self.known(self._trainers, name, "trainer").check(params)
        elif kind == "scoring":
            task = self.known(self._scoring_methods, name, "scoring method")
            task.cache.require()
        else:
            self.known(self._infers, name, "model").cache.require()

    def known(self, tasks: Mapping[str, Any], name: str, kind: str) -> Any:
        """A task by its name.

        Raises:
            NotFoundError: no such task; names those there are.
        """
        if name not in tasks:
            raise NotFoundError(f"there is no {kind} {name!r}; known: {', '.join(tasks)}")
        return tasks[name]

    def _job(self, work: Callable[[], Any]) -> Any:
        """Run a job. In a process of its own, a failure ends as one sentence, the last line of the task record."""
        if not in_job_process():
            return work()
        try:
            return work()
        except MedsegError as error:
            logger.error("%s", error)
        except Exception as error:
            logger.exception("job failed")
            logger.error("failed: %s: %s", type(error).__name__, error)
        raise SystemExit(2)


def job_waits_or_runs() -> bool:
    """Whether any job is queued or running; a queued one has no process yet."""
    return any(task["status"] in ("SUBMITTED", "RUNNING") for job in JOBS for task in tasks(job))


def in_job_process() -> bool:
    """Whether this is a job that MONAI Label started for train, scoring or batch infer, and not the server."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return spec is not None and spec.name == "monailabel.interfaces.utils.app"


def correct_monai_settings() -> None:
    """Settings of MONAI Label whose defaults are wrong for us, here and, by the environment, in its jobs.

    Scoring on every click, a tracker that fails on `file://`, and image suffixes that leave out ours.
    """
    corrected = {"MONAI_LABEL_AUTO_UPDATE_SCORING": False, "MONAI_LABEL_TRACKING_ENABLED": False}
    for key, value in corrected.items():
        setattr(monai_settings, key, value)
        os.environ[key] = str(value)
    default = type(monai_settings).model_fields["MONAI_LABEL_DATASTORE_FILE_EXT"].default
    if list(monai_settings.MONAI_LABEL_DATASTORE_FILE_EXT) == list(default):
        monai_settings.MONAI_LABEL_DATASTORE_FILE_EXT = [f"*{suffix}" for suffix in IMAGE_SUFFIXES]
    os.environ.setdefault("PYTHONPATH", "")  # a job without it stays SUBMITTED for ever
    programs = str(Path(sys.executable).parent)  # dcmqi's programs; without them a DICOMweb start downloads its own
    if programs not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])
