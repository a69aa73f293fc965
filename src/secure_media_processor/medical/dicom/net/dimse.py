"""Speaking DIMSE with an archive: C-ECHO, C-FIND, C-GET, C-MOVE and C-STORE (PS3.7 section 9.1, PS3.4 annexes A to C)."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from pynetdicom import AE, StoragePresentationContexts, _config, build_context, build_role, evt
except ImportError as error:
    from secure_media_processor.errors import MissingExtraError

    raise MissingExtraError("pynetdicom is not installed", hint="pip install 'secure-media-processor[net]'") from error
from pydicom import Dataset
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # it makes these names when it is imported
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)
from pynetdicom.transport import AssociationSocket

from secure_media_processor.core.files import COPY_BLOCK, smp_error_from
from secure_media_processor.core.seekable import EncryptedFile
from secure_media_processor.errors import CredentialsError, IntegrityError, MissingError, SmpError, TransientError, UsageError
from secure_media_processor.medical.dicom.elements import text
from secure_media_processor.medical.dicom.net.model import Limits, Query, RemoteInstance, RemoteStudy, checked_uid
from secure_media_processor.medical.dicom.net.quiet import silent_network
from secure_media_processor.medical.dicom.net.receiving import TRANSFER_SYNTAXES, Guard, Receiver, storing_into

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

    from secure_media_processor.medical.dicom.net.address import DimseAddress
    from secure_media_processor.medical.dicom.net.incoming import Incoming
    from secure_media_processor.medical.dicom.net.outgoing import OutgoingFile

# PS3.7 annex C and PS3.4 sections B.2.3, C.4.1.1.4, C.4.2.1.5.
_SUCCESS, _PENDING = 0x0000, {0xFF00, 0xFF01}
_NOT_AUTHORIZED, _NO_RESOURCES, _NO_MATCHES_COUNTED = 0x0124, 0xA700, 0xA701
_UNKNOWN_DESTINATION = 0xA801
_WARNING = 0xB000
# PS3.8 section 9.3.2.2: numbers of contexts are odd and have a byte; one is needed for the question itself.
_MAX_CONTEXTS = 127
# Of UIDs in one question; they stand in one element, whose length has two bytes where the VR is explicit.
_UIDS_AT_ONCE = 200
# PS3.8 section 9.3.4: the refusal may be over in a moment.
_REJECTED_TRANSIENT = 2
_TRANSIENT_STATUS = {_NO_RESOURCES, _NO_MATCHES_COUNTED}


class DimseServer:
    """An archive that speaks DIMSE; a PacsServer.

    It must know our title, and for C-MOVE also where we listen. Each call makes an association of its own.
    """

    def __init__(
        self,
        address: DimseAddress,
        *,
        aet: str = "SMP",
        tls: ssl.SSLContext | None = None,
        receiver: Receiver | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Describe the server. Nothing is sent until the first call.

        Args:
            address: Of the server.
            aet: Our own application entity title.
            tls: How to check the server, and what to show it; needed if `address` says TLS.
            receiver: Where the server is to send objects to (C-MOVE); without it they come the way they were asked for (C-GET).
            limits: What is taken, and waited for.
        """
        self._address, self._aet = address, aet
        self._tls = (tls or ssl.create_default_context()) if address.tls else None
        self._receiver = receiver
        self._limits = limits or Limits()

    def echo(self) -> None:
        """See PacsServer."""
        with self._associated([build_context(Verification)]) as line:
            line.check(line.association.send_c_echo().get("Status"))

    def find(self, query: Query) -> list[RemoteStudy]:
        """See PacsServer. Studies, their series, and the instances of these are asked for one after the other."""
        with self._associated([build_context(StudyRootQueryRetrieveInformationModelFind)]) as line:
            return [study for study in self._studies(line, query) if study.instances]

    def fetch(self, incoming: Incoming) -> None:
        """See PacsServer."""
        if self._receiver is None:
            for instances, classes in _by_classes(incoming.pending):
                self._get(incoming, instances, classes)
            return
        if not incoming.pending:
            return
        towards = (self._address.host, self._address.port)
        with silent_network(), self._receiver.receiving(incoming, self._aet, self._limits, towards=towards) as where:
            contexts = [build_context(StudyRootQueryRetrieveInformationModelMove)]
            with self._associated(contexts) as line:
                hint = f"does it know {self._aet} at {where}, and can it reach that?"
                for question, instances in _questions(incoming):
                    line.retrieve(incoming, instances, question, hint, move_to=self._aet)

    def send(self, files: Sequence[OutgoingFile], done: Callable[[OutgoingFile, SmpError | None], None]) -> None:
        """See PacsServer. Files go as they are: nothing is decoded, changed or compressed in another way."""
        kinds = sorted({(file.sop_class_uid, file.transfer_syntax_uid) for file in files})
        for start in range(0, len(kinds), _MAX_CONTEXTS):
            part = kinds[start : start + _MAX_CONTEXTS]
            contexts = [build_context(sop_class, syntax) for sop_class, syntax in part]
            with self._associated(contexts) as line:
                for file in files:
                    if (file.sop_class_uid, file.transfer_syntax_uid) in part:
                        done(file, line.store(file))

    def _get(self, incoming: Incoming, instances: list[RemoteInstance], classes: list[str]) -> None:
        contexts: list[PresentationContext] = [build_context(StudyRootQueryRetrieveInformationModelGet)]
        if classes:
            # One context for each syntax: objects come as they are stored, not as the first syntax that both sides know.
            contexts += [build_context(one, syntax) for one in classes for syntax in TRANSFER_SYNTAXES]
        else:
            contexts += [
                build_context(str(one.abstract_syntax), list(TRANSFER_SYNTAXES)) for one in StoragePresentationContexts[:126]
            ]
        roles = [build_role(str(context.abstract_syntax), scp_role=True) for context in contexts[1:]]
        roles = list({role.sop_class_uid: role for role in roles}.values())
        handlers = [(evt.EVT_C_STORE, storing_into(incoming))]
        with self._associated(contexts, roles, handlers, incoming) as line:
            if not any(one.abstract_syntax == contexts[0].abstract_syntax for one in line.association.accepted_contexts):
                hint = "let it send them to this machine instead: --listen PORT"
                raise UsageError(f"{self._address} does not let objects be fetched by C-GET", hint=hint)
            for question, group in _questions(incoming, {one.uid for one in instances}):
                line.retrieve(incoming, group, question, "")

    def _studies(self, line: _Line, query: Query) -> Iterator[RemoteStudy]:
        keys = {
            "StudyInstanceUID": query.study_uid,
            "PatientID": query.patient_id,
            "PatientName": "",
            "AccessionNumber": query.accession,
            "StudyDate": query.dates,
            "ModalitiesInStudy": query.modality,
        }
        # A generator of answers must end before the next question.
        for answer in list(line.find("STUDY", keys)):
            study = RemoteStudy(
                checked_uid(text(answer, "StudyInstanceUID")),
                text(answer, "PatientID"),
                text(answer, "PatientName"),
                text(answer, "AccessionNumber"),
                text(answer, "StudyDate"),
            )
            if query.admits(study):
                yield self._with_instances(line, study, query.modality)

    def _with_instances(self, line: _Line, study: RemoteStudy, modality: str) -> RemoteStudy:
        modalities: dict[str, None] = {}
        instances: dict[str, RemoteInstance] = {}
        keys = {"StudyInstanceUID": study.uid, "SeriesInstanceUID": "", "Modality": modality}
        for answer in list(line.find("SERIES", keys)):
            if modality not in ("", text(answer, "Modality")):
                continue
            series = checked_uid(text(answer, "SeriesInstanceUID"))
            modalities[text(answer, "Modality")] = None
            keys = {"StudyInstanceUID": study.uid, "SeriesInstanceUID": series, "SOPInstanceUID": "", "SOPClassUID": ""}
            for one in line.find("IMAGE", keys):
                uid, sop_class = checked_uid(text(one, "SOPInstanceUID")), text(one, "SOPClassUID")
                instances[uid] = RemoteInstance(study.uid, series, uid, checked_uid(sop_class) if sop_class else "")
        return replace(study, modalities=tuple(modalities), instances=tuple(instances.values()))

    @contextmanager
    def _associated(
        self,
        contexts: list[PresentationContext],
        roles: Sequence[object] = (),
        handlers: Sequence[tuple[object, object]] = (),
        incoming: Incoming | None = None,
    ) -> Iterator[_Line]:
        """Yield a line to the server, on which `contexts` were proposed. Raises as PacsServer.find."""
        with silent_network() as errors, _pynetdicom_settings():
            entity = AE(self._aet)
            entity.connection_timeout, entity.network_timeout = self._limits.connect, self._limits.idle
            entity.acse_timeout, entity.dimse_timeout = self._limits.idle, self._limits.response
            entity.maximum_pdu_size = Guard.MAX_PDU
            guard = Guard(self._limits, incoming)
            try:
                association = entity.associate(
                    self._address.host,
                    self._address.port,
                    contexts=contexts,
                    ae_title=self._address.aet,
                    ext_neg=list(roles),  # type: ignore[arg-type]  # a list of one of the kinds that it takes
                    tls_args=None if self._tls is None else (self._tls, self._address.host),
                    evt_handlers=[(evt.EVT_CONN_OPEN, guard.watch), *handlers],  # type: ignore[list-item]
                )
            except OSError:  # the name is not known; the text is that of the resolver
                raise TransientError(f"cannot find {self._address}", hint="check the name, and the network") from None
            if not association.is_established:
                raise self._refusal(association, errors)
            try:
                yield _Line(association, str(self._address), self._limits)
                association.release()
            finally:
                if not association.is_released:
                    association.abort()
                association.join(self._limits.connect)

    def _refusal(self, association: Association, errors: Sequence[BaseException]) -> SmpError:
        """Return why there is no association (PS3.8 section 9.3.4)."""
        answer = association.acceptor.primitive
        if association.is_rejected and answer is not None:
            reason = answer.reason_str[:1].lower() + answer.reason_str[1:].rstrip(".")
            message = f"{self._address} refuses the connection: {reason}"
            if answer.result == _REJECTED_TRANSIENT:
                return TransientError(message)
            return CredentialsError(message, hint=f"does it know us as {self._aet} (--aet), and is its own title right?")
        for error in errors:
            if isinstance(error, ssl.SSLCertVerificationError):
                hint = "name the file of the authority that signed its certificate with --ca"
                return CredentialsError(f"the certificate of {self._address} is not trusted: {error.verify_message}", hint=hint)
            if isinstance(error, ssl.SSLError):
                return CredentialsError(f"no safe line to {self._address} could be agreed on ({error.reason})")
        if association.rejected_contexts:
            return SmpError(f"{self._address} does not offer this service, or takes none of these kinds of objects")
        return TransientError(f"cannot reach {self._address}", hint="is it running, and is the port right?")


class _Line:
    """An association with the server."""

    def __init__(self, association: Association, name: str, limits: Limits) -> None:
        self.association, self._name, self._limits = association, name, limits

    def check(self, status: int | None) -> None:
        """Raise what `status`, the end of an operation, means; None if the line broke."""
        error = self._error(status)
        if error is not None:
            raise error

    def find(self, level: str, keys: dict[str, str]) -> Iterator[Dataset]:
        """Ask one question and yield the answers, each with the values of `keys` (C-FIND; PS3.4 section C.4.1)."""
        question = Dataset()
        question.QueryRetrieveLevel = level
        if not all(value.isascii() for value in keys.values()):
            question.SpecificCharacterSet = "ISO_IR 192"
        for keyword, value in keys.items():
            setattr(question, keyword, value)
        answers = self.association.send_c_find(question, StudyRootQueryRetrieveInformationModelFind)
        for count, (status, answer) in enumerate(answers):
            code = status.get("Status")
            if code not in _PENDING:
                self.check(code)
                return
            if answer is None:
                raise IntegrityError(f"an answer of {self._name} cannot be read")
            if count >= self._limits.max_matches:
                raise UsageError(f"there are more than {self._limits.max_matches} matches", hint="ask for less at once")
            yield answer

    def retrieve(
        self, incoming: Incoming, instances: Sequence[RemoteInstance], question: Dataset, hint: str, *, move_to: str = ""
    ) -> None:
        """Have `instances` sent, as `question` asks for (PS3.4 sections C.4.2 and C.4.3).

        By C-GET over this association, or by C-MOVE to the title `move_to` over another one.
        """
        if move_to:
            answers = self.association.send_c_move(question, move_to, StudyRootQueryRetrieveInformationModelMove)
        else:
            answers = self.association.send_c_get(question, StudyRootQueryRetrieveInformationModelGet)
        code: int | None = None
        for status, _ in answers:
            incoming.raise_fatal()
            code = status.get("Status")
        incoming.raise_fatal()
        error = self._error(code)
        if isinstance(error, TransientError):
            raise error
        if code in (_UNKNOWN_DESTINATION, _NOT_AUTHORIZED):
            raise CredentialsError(f"{self._name} may not send to {move_to or 'us'}", hint=hint)
        said = f"the server did not send it (status 0x{code or 0:04X})"
        incoming.missed(instances, MissingError(said, hint=hint) if error is None else SmpError(said, hint=hint))

    def store(self, file: OutgoingFile) -> SmpError | None:
        """Send a file (C-STORE; PS3.4 annex B). Returns why the server does not take it. Raises TransientError."""
        wanted = (file.sop_class_uid, file.transfer_syntax_uid)
        if wanted not in {(one.abstract_syntax, one.transfer_syntax[0]) for one in self.association.accepted_contexts}:
            return SmpError("the server does not take this kind of object in this transfer syntax")
        if not self.association.is_established:
            raise TransientError(f"{self._name} closed the connection")
        try:
            with _path_of(file) as path:
                error = self._error(self.association.send_c_store(path).get("Status"))
        except OSError as problem:  # it is the file that cannot be read; of a broken line the status tells
            return smp_error_from(problem, f"read {file.path}")
        except SmpError as problem:  # it is encrypted, and damaged
            return problem
        if isinstance(error, TransientError):
            raise error
        return error

    def _error(self, code: int | None) -> SmpError | None:
        if code is None:
            return TransientError(f"{self._name} closed the connection, or did not answer in time")
        if code == _SUCCESS or code & 0xF000 == _WARNING or code == 0x0001:
            return None
        if code == _NOT_AUTHORIZED:
            return CredentialsError(f"{self._name} does not allow it")
        if code in _TRANSIENT_STATUS:
            return TransientError(f"{self._name} has no room or no time for it (status 0x{code:04X})")
        return SmpError(f"the server refuses it (status 0x{code:04X})")


@contextmanager
def _path_of(file: OutgoingFile) -> Iterator[Path]:
    """Yield a path at which pynetdicom can read `file`: for an encrypted one, of a copy in memory that no folder has.

    Raises OSError and SmpError as reader.open_dicom.
    """
    with file.open() as content:
        if not isinstance(content.raw, EncryptedFile):
            yield file.path
            return
        with open(os.memfd_create("smp", os.MFD_CLOEXEC), "wb") as memory:  # noqa: PTH123 - a descriptor has no path
            shutil.copyfileobj(content, memory, COPY_BLOCK)
            memory.flush()
            yield Path(f"/proc/self/fd/{memory.fileno()}")


def _by_classes(instances: Sequence[RemoteInstance]) -> Iterator[tuple[list[RemoteInstance], list[str]]]:
    """Yield instances with their classes, as many as the contexts of one association have room for."""
    at_once = (_MAX_CONTEXTS - 1) // len(TRANSFER_SYNTAXES)
    known = sorted({one.sop_class_uid for one in instances} - {""})
    for start in range(0, len(known), at_once):
        part = known[start : start + at_once]
        yield [one for one in instances if one.sop_class_uid in part], part
    unknown = [one for one in instances if not one.sop_class_uid]
    if unknown:
        yield unknown, []


def _questions(incoming: Incoming, among: set[str] | None = None) -> Iterator[tuple[Dataset, list[RemoteInstance]]]:
    """Yield what to ask for so that everything comes that is waited for, and which instances that should bring.

    A whole series is asked for as such, which every archive knows; what is missing of one by a list of UIDs.
    """

    def place(instance: RemoteInstance) -> tuple[str, str]:
        return instance.study_uid, instance.series_uid

    pending = [one for one in incoming.pending if among is None or one.uid in among]
    for (study, series), group in groupby(sorted(pending, key=place), place):
        instances = list(group)
        question = Dataset()
        question.StudyInstanceUID, question.SeriesInstanceUID = study, series
        if incoming.is_whole(series, len(instances)):
            question.QueryRetrieveLevel = "SERIES"
            yield question, instances
            continue
        question.QueryRetrieveLevel = "IMAGE"
        for start in range(0, len(instances), _UIDS_AT_ONCE):
            part = instances[start : start + _UIDS_AT_ONCE]
            question.SOPInstanceUID = [one.uid for one in part]
            yield question, part


@contextmanager
def _pynetdicom_settings() -> Iterator[None]:
    """Within the block pynetdicom describes nothing for its log, and sends files as they are."""
    wanted = {"LOG_HANDLER_LEVEL": "none", "STORE_SEND_CHUNKED_DATASET": True}
    wanted |= {"LOG_REQUEST_IDENTIFIERS": False, "LOG_RESPONSE_IDENTIFIERS": False}
    before = {name: getattr(_config, name) for name in wanted}
    shutdown = AssociationSocket._shutdown_socket  # noqa: SLF001 - see _close
    vars(_config).update(wanted)
    AssociationSocket._shutdown_socket = _close  # type: ignore[method-assign, assignment]  # noqa: SLF001
    try:
        yield
    finally:
        vars(_config).update(before)
        AssociationSocket._shutdown_socket = shutdown  # type: ignore[method-assign]  # noqa: SLF001


def _close(line: AssociationSocket) -> None:
    """Close a connection. Where it broke or never came about pynetdicom only lets go of it."""
    if line.socket is not None:
        with suppress(OSError, ValueError):
            line.socket.shutdown(socket.SHUT_RDWR)
        line.socket.close()
