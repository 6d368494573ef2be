"""A DICOMweb archive as medseg uses it: list series, fetch one, store an object."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.session_utils import create_session, create_session_from_gcp_credentials
from dicomweb_client.web import DICOMwebClient
from monailabel.config import settings as monai_settings
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from requests.adapters import HTTPAdapter

from medseg.errors import ConflictError, NotFoundError, UnusableInputError
from medseg.server.ids import is_name

logger = logging.getLogger(__name__)

PAGE = 1000  # ours: series asked for at once; archives cut longer answers off silently
CONNECT_SECONDS, READ_SECONDS = 10.0, 300.0  # ours: an archive may take minutes to fetch a series from tape
FIELDS = ("SeriesInstanceUID", "StudyInstanceUID", "Modality", "PatientID", "StudyDate", "SeriesDescription")


@dataclass(frozen=True)
class SeriesEntry:
    """One series as an archive lists it.

    Attributes:
        uid: Series Instance UID.
        study: Study Instance UID.
        modality: as DICOM has it: CT, MR, SEG.
        patient: Patient ID.
        date: of the study, YYYYMMDD.
        description: of the series.
    """

    uid: str
    study: str
    modality: str
    patient: str = ""
    date: str = ""
    description: str = ""

    def to_dict(self) -> dict[str, str]:
        """JSON form."""
        return asdict(self)


class Archive:
    """A DICOMweb server.

    Args:
        url: its root, `http://127.0.0.1:8042/dicom-web`.
        filters: further conditions on series of images, DICOM keyword -> value.
        session: HTTP session; None: one with the credentials of MONAI Label's settings.
    """

    def __init__(
        self, url: str, filters: dict[str, Any] | None = None, session: requests.Session | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self.session = session or make_session(self.url)
        self._filters = dict(filters or {})
        self._client = _Client(
            url=self.url,
            session=self.session,
            qido_url_prefix=monai_settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=monai_settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=monai_settings.MONAI_LABEL_STOW_PREFIX,
            permissive_uid=True,  # archives hold UIDs that the standard would not allow
        )
        self._client.set_http_retry_params(retry=False)  # it would repeat for a minute while an annotator waits

    def images(self) -> list[SeriesEntry]:
        """Series that pass the filters. Labels are looked for with `series`: a filter says which images count."""
        return self.series(**self._filters)

    def check(self) -> None:
        """Ask for one series.

        Raises:
            ConflictError: nobody answers at the address, or nobody who speaks DICOMweb.
        """
        with self._speaking():
            self._search({}, limit=1)

    def series(self, **conditions: Any) -> list[SeriesEntry]:
        """All series that fulfil the conditions, in pages.

        Raises:
            ConflictError: the archive does not answer.
        """
        found: dict[str, SeriesEntry] = {}
        with self._speaking():
            while True:
                page = self._search(conditions, limit=PAGE, offset=len(found))
                entries = [entry for item in page if (entry := _entry(Dataset.from_json(item))) is not None]
                fresh = {entry.uid: entry for entry in entries if entry.uid not in found}
                found.update(fresh)
                if len(page) < PAGE or not fresh:  # an archive that knows no offset gives the same page again
                    return list(found.values())

    def metadata(self, entry: SeriesEntry) -> list[Dataset]:
        """The objects of a series without their pixels.

        Raises:
            ConflictError: the archive does not answer.
            NotFoundError: the series is not there any more.
        """
        with self._speaking(f"series {entry.uid}"):
            return [Dataset.from_json(item) for item in self._client.retrieve_series_metadata(entry.study, entry.uid)]

    def series_of(self, study: str, instance: str) -> str:
        """Series Instance UID of an object of a study; empty where the study does not hold it.

        Raises:
            ConflictError: the archive does not answer.
            NotFoundError: the study is not there any more.
        """
        with self._speaking(f"study {study}"):
            found = self._client.search_for_instances(study, search_filters={"SOPInstanceUID": instance})
        objects = (Dataset.from_json(item) for item in found)  # an archive may ignore the condition
        return next(
            (str(ds.get("SeriesInstanceUID") or "") for ds in objects if ds.get("SOPInstanceUID") == instance), ""
        )

    def objects(self, entry: SeriesEntry) -> Iterator[Dataset]:
        """The objects of a series, one by one.

        Raises:
            ConflictError: the archive does not answer.
            NotFoundError: the series is not there any more.
        """
        with self._speaking(f"series {entry.uid}"):
            yield from self._client.iter_series(entry.study, entry.uid)

    def fetch(self, entry: SeriesEntry, folder: Path) -> list[Path]:
        """Download a series into a folder; the files."""
        files = []
        for number, ds in enumerate(self.objects(entry)):
            path = folder / f"{number:05d}.dcm"
            ds.save_as(path, write_like_original=False)
            files.append(path)
        if not files:
            raise NotFoundError(f"the archive {self.url} has no objects of series {entry.uid}")
        return files

    def store(self, ds: Dataset) -> None:
        """Store an object.

        Raises:
            ConflictError: the archive does not answer, or refuses the object.
        """
        with self._speaking():
            answer = self._client.store_instances([ds])
        failed = answer.get("FailedSOPSequence")
        if failed:
            reason = failed[0].get("FailureReason", "unknown")
            raise ConflictError(f"the archive {self.url} refused the segmentation (DICOM failure reason {reason})")

    def _search(self, conditions: Mapping[str, Any], limit: int, offset: int | None = None) -> list[dict[str, Any]]:
        found = self._client.search_for_series(
            search_filters=dict(conditions), fields=FIELDS, limit=limit, offset=offset
        )
        if not all(isinstance(item, dict) for item in found):  # Orthanc's own interface answers with its ids
            raise self._no_root()
        return found

    def _no_root(self) -> ConflictError:
        return ConflictError(
            f"{self.url} is no DICOMweb root; Orthanc's is http://ADDRESS:8042/dicom-web; correct --studies"
        )

    @contextmanager
    def _speaking(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else "?"
            if status == 404 and what:
                raise NotFoundError(f"the archive {self.url} has no {what}") from error
            if status == 404:
                raise self._no_root() from error
            raise ConflictError(f"the archive {self.url} answered with HTTP status {status}; see its log") from error
        except InvalidDicomError as error:
            raise UnusableInputError(
                f"the archive {self.url} sent {what or 'something'} that is no DICOM file"
            ) from error
        except requests.JSONDecodeError as error:
            raise self._no_root() from error
        except requests.RequestException as error:
            raise ConflictError(
                f"the archive {self.url} does not answer ({type(error).__name__}); start it, or correct --studies"
            ) from error


class _Client(DICOMwebClient):
    """Takes multi-part answers from servers that call them otherwise, as some do."""

    def _decode_multipart_message(self, response: requests.Response, stream: bool) -> Iterator[bytes]:
        kind, semicolon, rest = response.headers["content-type"].partition(";")
        if kind.strip().lower() != "multipart/related" and "boundary" in rest:
            response.headers["content-type"] = f"multipart/related{semicolon}{rest}"
        return super()._decode_multipart_message(response, stream)


class _Patient(HTTPAdapter):
    """Waits, but not for ever."""

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = (CONNECT_SECONDS, READ_SECONDS)
        return super().send(*args, **kwargs)


def make_session(url: str) -> requests.Session:
    """An HTTP session with the credentials of `MONAI_LABEL_DICOMWEB_USERNAME`/`_PASSWORD`, or of Google Cloud."""
    session = create_session_from_gcp_credentials() if "googleapis.com" in url else create_session()
    user, password = monai_settings.MONAI_LABEL_DICOMWEB_USERNAME, monai_settings.MONAI_LABEL_DICOMWEB_PASSWORD
    if user and password:
        session.auth = (user, password)
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Patient())
    return session


def _entry(ds: Dataset) -> SeriesEntry | None:
    """None where the archive lists a series without telling what it is, or with a UID that cannot name a file."""
    uid, study = str(ds.get("SeriesInstanceUID") or ""), str(ds.get("StudyInstanceUID") or "")
    if not is_name(uid) or not study:
        return None
    return SeriesEntry(
        uid=uid,
        study=study,
        modality=str(ds.get("Modality") or ""),
        patient=str(ds.get("PatientID") or ""),
        date=str(ds.get("StudyDate") or ""),
        description=str(ds.get("SeriesDescription") or ""),
    )
