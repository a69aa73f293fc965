"""Speaking DICOMweb with an archive: QIDO-RS, WADO-RS and STOW-RS (PS3.18 sections 10.4 to 10.6).

On `requests` and not on dicomweb-client, which reads whole answers of any size into memory, parses each object and puts it
together anew: here an object goes to its file as it comes, byte for byte and under a limit. The tests hold both against each
other.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from secrets import token_hex
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

try:
    import requests
except ImportError as error:
    from secure_media_processor.errors import MissingExtraError

    raise MissingExtraError("requests is not installed", hint="pip install 'secure-media-processor[net]'") from error

from secure_media_processor.core.files import COPY_BLOCK, smp_error_from
from secure_media_processor.core.private_json import read_private_json
from secure_media_processor.errors import CredentialsError, IntegrityError, MissingError, SmpError, TransientError, UsageError
from secure_media_processor.medical.dicom.net.model import Limits, Query, RemoteInstance, RemoteStudy, checked_uid
from secure_media_processor.medical.dicom.net.multipart import OnePart, only_part, parameters
from secure_media_processor.medical.dicom.net.quiet import silent_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from requests import PreparedRequest, Response, Session

    from secure_media_processor.medical.dicom.net.address import WebAddress
    from secure_media_processor.medical.dicom.net.incoming import Incoming
    from secure_media_processor.medical.dicom.net.outgoing import OutgoingFile

_JSON = "application/dicom+json"
_DICOM = 'multipart/related; type="application/dicom"'
_HINT = 'a file with mode 0600 that holds {"token": "…"} or {"user": "…", "password": "…"}'
_NO_CONTENT, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _NOT_IMPLEMENTED = 204, 401, 403, 404, 501
_REDIRECTS, _SERVER_ERRORS = range(300, 400), range(500, 600)
_TRANSIENT = {408, 425, 429}
# In STOW, 409 says that no object was taken, and the answer why (PS3.18 table 10.5.3-1).
_CONFLICT = 409
_PAGE = 1000
_MAX_ANSWER = 64 * 1024**2
# PS3.18 annex F: elements are named by eight hexadecimal digits.
_STUDY, _SERIES, _INSTANCE, _CLASS, _MODALITY = "0020000D", "0020000E", "00080018", "00080016", "00080060"
_PATIENT_ID, _PATIENT_NAME, _ACCESSION, _STUDY_DATE = "00100020", "00100010", "00080050", "00080020"
_REFERENCED, _FAILED, _REFERENCED_INSTANCE, _REASON = "00081199", "00081198", "00081155", "00081197"


@dataclass(frozen=True, slots=True)
class WebCredentials:
    """Who we are: a bearer token, or a user and a password."""

    token: str = field(default="", repr=False)
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @staticmethod
    def load(path: Path | None) -> WebCredentials | None:
        """Return those in the file `path`; without one, those in the environment; None if there are none.

        The variables are SMP_DICOMWEB_TOKEN, or SMP_DICOMWEB_USER and SMP_DICOMWEB_PASSWORD.

        Raises:
            KeyExposedError: other users of this machine can read the file.
            CredentialsError: they are not what they should be.
            FileAccessError: the file cannot be read.
        """
        names = ("token", "user", "password")
        if path is not None:
            found, place = read_private_json(path, hint=_HINT), str(path)
        else:
            variables = {name: os.environ.get(f"SMP_DICOMWEB_{name.upper()}") for name in names}
            found, place = {name: value for name, value in variables.items() if value}, "the environment"
            if not found:
                return None
        texts = {name: value for name, value in found.items() if isinstance(value, str) and value and value.isprintable()}
        if texts.keys() != found.keys() or texts.keys() not in ({"token"}, {"user", "password"}):
            raise CredentialsError(f"{place} holds no credentials for DICOMweb", hint=_HINT)
        return WebCredentials(**texts)

    def apply(self, request: PreparedRequest) -> PreparedRequest:
        """Add them to a request."""
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
            return request
        pair = b64encode(f"{self.user}:{self.password}".encode()).decode()
        request.headers["Authorization"] = f"Basic {pair}"
        return request


class WebServer:
    """An archive that speaks DICOMweb; a PacsServer."""

    def __init__(
        self,
        address: WebAddress,
        *,
        credentials: WebCredentials | None = None,
        ca_file: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Describe the server. Nothing is sent until the first call.

        Args:
            address: Of the service: what stands before /studies.
            credentials: Sent to this server only, and to no other that it might point to.
            ca_file: Certificates of the authorities to believe, instead of the usual ones.
            limits: What is taken, and waited for.
        """
        self._address, self._credentials = address, credentials
        self._verify: str | bool = True if ca_file is None else str(ca_file)
        self._limits = limits or Limits()

    def echo(self) -> None:
        """See PacsServer. DICOMweb has no question for that: one study is asked for."""
        with self._session() as session:
            self._answers(session, "/studies", {"limit": "1"})

    def find(self, query: Query) -> list[RemoteStudy]:
        """See PacsServer (QIDO-RS; PS3.18 section 10.6). What is asked for stands in the address, which servers write down."""
        asked = {
            _STUDY: query.study_uid,
            _PATIENT_ID: query.patient_id,
            _ACCESSION: query.accession,
            _STUDY_DATE: query.dates,
            "ModalitiesInStudy": query.modality,
        }
        found = []
        with self._session() as session:
            for answer in self._pages(session, "/studies", {name: value for name, value in asked.items() if value}, _STUDY):
                study = RemoteStudy(
                    checked_uid(_value(answer, _STUDY)),
                    _value(answer, _PATIENT_ID),
                    _value(answer, _PATIENT_NAME),
                    _value(answer, _ACCESSION),
                    _value(answer, _STUDY_DATE),
                )
                if query.admits(study):
                    found.append(self._with_instances(session, study, query.modality))
        return [study for study in found if study.instances]

    def fetch(self, incoming: Incoming) -> None:
        """See PacsServer (WADO-RS; PS3.18 section 10.4)."""
        with self._session() as session:
            for instance in incoming.pending:
                incoming.raise_fatal()
                try:
                    self._fetch(session, incoming, instance)
                except (TransientError, CredentialsError):
                    raise
                except SmpError as error:  # of this instance; the others may be got
                    incoming.fail(instance, error)
        incoming.raise_fatal()

    def send(self, files: Sequence[OutgoingFile], done: Callable[[OutgoingFile, SmpError | None], None]) -> None:
        """See PacsServer (STOW-RS; PS3.18 section 10.5). Each file goes as it is, in a request of its own."""
        with self._session() as session:
            for file in files:
                done(file, self._send(session, file))

    def _fetch(self, session: Session, incoming: Incoming, instance: RemoteInstance) -> None:
        path = f"/studies/{instance.study_uid}/series/{instance.series_uid}/instances/{instance.uid}"
        # Any syntax: else the server would have to decompress what it has (PS3.18 section 8.7.3.5.2).
        headers = {"Accept": f"{_DICOM}; transfer-syntax=*", "Accept-Encoding": "identity"}
        with self._asked(session, "GET", path, headers=headers) as answer:
            kind, boundary = parameters(answer.headers.get("Content-Type", ""))
            blocks = self._blocks(answer)
            if kind == "multipart/related" and boundary:
                incoming.take(instance.uid, only_part(blocks, boundary))
            elif kind == "application/dicom":
                incoming.take(instance.uid, blocks)
            else:
                raise IntegrityError("the server's answer is no DICOM object")

    def _send(self, session: Session, file: OutgoingFile) -> SmpError | None:
        boundary = token_hex(16)
        headers = {"Accept": _JSON, "Content-Type": f"{_DICOM}; boundary={boundary}"}
        try:
            content = file.open()
        except OSError as error:
            return smp_error_from(error, f"read {file.path}")
        except SmpError as error:
            return error
        with content:
            size = content.seek(0, os.SEEK_END)
            content.seek(0)
            body = OnePart(content, size, boundary)
            try:
                with self._asked(session, "POST", "/studies", headers=headers, data=body, also={_CONFLICT}) as answer:
                    told = self._json(answer)
            except (TransientError, CredentialsError, MissingError):
                raise
            except SmpError as error:  # of this file; the others may be taken
                return error
        results = told[0] if isinstance(told, list) and told else told
        if not isinstance(results, dict):
            return IntegrityError("the server does not say whether it took the file")
        if file.uid in {_value(one, _REFERENCED_INSTANCE) for one in _items(results, _REFERENCED)}:
            return None
        reasons = [_value(one, _REASON) for one in _items(results, _FAILED)]
        code = f" (reason 0x{int(reasons[0]):04X})" if reasons and reasons[0].isdecimal() else ""
        return SmpError(f"the server refuses it{code}")

    def _with_instances(self, session: Session, study: RemoteStudy, modality: str) -> RemoteStudy:
        modalities: dict[str, None] = {}
        instances: dict[str, RemoteInstance] = {}
        path = f"/studies/{study.uid}/series"
        for answer in self._pages(session, path, {_MODALITY: modality} if modality else {}, _SERIES):
            if modality not in ("", _value(answer, _MODALITY)):
                continue
            series = checked_uid(_value(answer, _SERIES))
            modalities[_value(answer, _MODALITY)] = None
            for one in self._pages(session, f"{path}/{series}/instances", {}, _INSTANCE):
                uid, sop_class = checked_uid(_value(one, _INSTANCE)), _value(one, _CLASS)
                instances[uid] = RemoteInstance(study.uid, series, uid, checked_uid(sop_class) if sop_class else "")
        return replace(study, modalities=tuple(modalities), instances=tuple(instances.values()))

    def _pages(self, session: Session, path: str, asked: Mapping[str, str], key: str) -> Iterator[dict[str, Any]]:
        """Yield all answers, page by page, each once. A server may give fewer than asked for, or the same page again."""
        seen: set[str] = set()
        offset = 0
        while True:
            page, more = self._answers(session, path, {**asked, "limit": str(_PAGE), "offset": str(offset)})
            new = {_value(answer, key): answer for answer in page if _value(answer, key) not in seen}
            if len(seen) + len(new) > self._limits.max_matches:
                raise UsageError(f"there are more than {self._limits.max_matches} matches", hint="ask for less at once")
            yield from new.values()
            seen |= new.keys()
            offset += len(page)
            if not new or (len(page) < _PAGE and not more):
                return

    def _answers(self, session: Session, path: str, asked: Mapping[str, str]) -> tuple[list[dict[str, Any]], bool]:
        """Return the answers to a question, and whether the server says that there are more (PS3.18 section 8.3.4.4)."""
        # Wildcards may stand as they are (RFC 3986 section 3.4), and some servers know them only so.
        question = urlencode(asked, quote_via=quote, safe="*?")
        with self._asked(session, "GET", f"{path}?{question}", headers={"Accept": _JSON}) as answer:
            if answer.status_code == _NO_CONTENT:
                return [], False
            found = self._json(answer)
            if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
                raise IntegrityError(f"the answer of {self._address} is not a list of data sets")
            return found, "Warning" in answer.headers

    def _json(self, answer: Response) -> object:
        data = bytearray()
        for block in self._blocks(answer):
            data += block
            if len(data) > _MAX_ANSWER:
                raise IntegrityError(f"an answer of {self._address} is larger than {_MAX_ANSWER} bytes")
        try:
            found: object = json.loads(data)
        except (ValueError, RecursionError):  # whose text quotes the answer
            raise IntegrityError(f"an answer of {self._address} is no JSON") from None
        return found

    def _blocks(self, answer: Response) -> Iterator[bytes]:
        """Yield the body of an answer. Raises TransientError if it is cut off."""
        try:
            yield from answer.iter_content(COPY_BLOCK)
        except (OSError, requests.RequestException):  # whose text holds what was asked
            raise self._broken() from None

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with silent_network(), requests.Session() as session:
            session.headers["User-Agent"] = "secure-media-processor"
            # A proxy is for what it cannot read. Without TLS nobody but the server itself is spoken to.
            session.trust_env = self._address.tls
            yield session

    @contextmanager
    def _asked(
        self,
        session: Session,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        data: OnePart | None = None,
        also: frozenset[int] | set[int] = frozenset(),
    ) -> Iterator[Response]:
        """Yield the answer to a request, its body unread. Raises what its status means, but for those in `also`."""
        credentials = self._credentials
        try:
            answer = session.request(
                method,
                self._address.url + path,
                headers=headers,
                data=data,
                # A function, so that no password of ~/.netrc is taken instead.
                auth=(lambda request: request) if credentials is None else credentials.apply,
                timeout=(self._limits.connect, self._limits.idle if data is None else self._limits.response),
                verify=self._verify,  # said with each request, or REQUESTS_CA_BUNDLE would come before it
                allow_redirects=False,
                stream=True,
            )
        except requests.exceptions.SSLError:
            hint = "name the file of the authority that signed its certificate with --ca"
            raise CredentialsError(f"{self._address} shows no certificate that can be trusted", hint=hint) from None
        except OSError:  # of which those of requests are kinds; their texts hold what was asked
            raise self._broken() from None
        with answer:
            error = None if answer.status_code in also else self._error(answer.status_code)
            if error is not None:
                raise error
            yield answer

    def _broken(self) -> TransientError:
        return TransientError(f"the connection to {self._address} broke, or could not be made", hint="is it running?")

    def _error(self, status: int) -> SmpError | None:
        match status:
            case code if code in (_UNAUTHORIZED, _FORBIDDEN):
                which = "the credentials" if self._credentials else "us without credentials"
                return CredentialsError(f"{self._address} does not let {which} in (HTTP {code})", hint=f"--credentials {_HINT}")
            case code if code == _NOT_FOUND:
                return MissingError(f"{self._address} does not have it (HTTP {code})", hint="check the server's address")
            case code if code in _REDIRECTS:
                hint = "give the address that it points to, if you trust it"
                return SmpError(f"{self._address} points elsewhere (HTTP {code}), which is not followed", hint=hint)
            case code if code in _TRANSIENT or (code in _SERVER_ERRORS and code != _NOT_IMPLEMENTED):
                return TransientError(f"{self._address} cannot answer now (HTTP {code})")
            case code if code >= _REDIRECTS.start:
                return SmpError(f"{self._address} refuses the request (HTTP {code})")
        return None


def _value(dataset: Mapping[str, Any], tag: str) -> str:
    """Return the first value of an element in the JSON form as a text (PS3.18 annex F.2); empty if there is none."""
    element = dataset.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    first = values[0] if isinstance(values, list) and values else ""
    if isinstance(first, dict):  # a name, which has several forms
        first = first.get("Alphabetic", "")
    return str(first) if isinstance(first, str | int | float) else ""


def _items(dataset: Mapping[str, Any], tag: str) -> list[dict[str, Any]]:
    """Return the items of a sequence in the JSON form."""
    element = dataset.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []
