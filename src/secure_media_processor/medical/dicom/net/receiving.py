"""Being sent objects by DIMSE: the storage service provider, and the guard on whatever comes in."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from pydicom import uid
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.dsutils import encode_file_meta

from secure_media_processor.core.files import COPY_BLOCK, smp_error_from
from secure_media_processor.errors import SmpError, UsageError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from io import BytesIO

    from pynetdicom.association import Association
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.events import Event
    from pynetdicom.transport import AssociationSocket

    from secure_media_processor.medical.dicom.net.incoming import Incoming
    from secure_media_processor.medical.dicom.net.model import Limits

TRANSFER_SYNTAXES = [
    uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRBigEndian,
    uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless,
    uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000, uid.JPEG2000MCLossless, uid.JPEG2000MC, uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL, uid.HTJ2K, uid.RLELossless, uid.MPEG2MPML, uid.MPEG2MPHL, uid.MPEG4HP41, uid.MPEG4HP41BD,
    uid.MPEG4HP422D, uid.MPEG4HP423D, uid.MPEG4HP42STEREO, uid.HEVCMP51, uid.HEVCM10P51,
]  # fmt: skip
"""In which objects are taken: all but those whose pixels lie elsewhere (JPIP), or are streams."""

# PS3.4 section B.2.3: what is answered to a C-STORE.
_STORED, _REFUSED = 0x0000, 0xA900
# Of messages that came before the last one was answered: we agree on one at a time.
_MAX_WAITING = 16
# Of the messages themselves, without objects: questions, answers.
_MAX_COMMAND = 1 << 20
_RECEIVE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where an archive is to send objects to (C-MOVE). It has to know this place under our title."""

    port: int
    host: str = ""
    """Address of this machine; the one that faces the archive unless given."""
    tls: ssl.SSLContext | None = None
    """With a certificate of our own; None for an open line."""

    @contextmanager
    def receiving(self, incoming: Incoming, aet: str, limits: Limits, *, towards: tuple[str, int]) -> Iterator[str]:
        """Take what `incoming` waits for, and nothing else, for the time of the block. Yields where, as host:port.

        Anybody who reaches the port can connect, for DIMSE without TLS knows no secrets. But only objects that were asked for
        are taken, under the UIDs that were asked for.

        Raises SmpError if the port is taken.
        """
        entity = AE(aet)
        entity.network_timeout, entity.acse_timeout, entity.dimse_timeout = limits.idle, limits.idle, limits.response
        entity.maximum_pdu_size = Guard.MAX_PDU
        entity.require_called_aet = True
        classes = {str(one.abstract_syntax) for one in AllStoragePresentationContexts}
        classes |= {one.sop_class_uid for one in incoming.pending} - {""}
        entity.supported_contexts = [build_context(one, list(TRANSFER_SYNTAXES)) for one in sorted(classes)]
        guard = Guard(limits, incoming)
        host = self.host or _address_towards(*towards)
        try:
            server = entity.start_server(
                (host, self.port),
                block=False,
                ssl_context=self.tls,
                evt_handlers=[(evt.EVT_CONN_OPEN, guard.watch), (evt.EVT_C_STORE, storing_into(incoming))],
            )
        except OSError as error:
            reason = str(smp_error_from(error, f"listen on {host}:{self.port}"))
            raise SmpError(reason, hint="name another port with --listen") from None
        if server is None:
            raise RuntimeError("a server that does not block was asked for")
        # socketserver would print a traceback; that a connection failed shows by what does not come.
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        try:
            yield f"{host}:{server.server_address[1]}"
        finally:
            associations = server.active_associations
            server.shutdown()
            for association in associations:
                association.abort()
                association.join(limits.connect)


class Guard:
    """Holds a peer to limits that the protocol does not have: of one unit of data, of a message, and of time within one.

    pynetdicom reads as many bytes as a peer announces, up to 4 GiB in one unit and any number of units in a message, and waits
    for each without an end.
    """

    MAX_PDU = 128 * 1024
    """Bytes that we allow in a unit of data (PS3.8 annex D.1). Twice as many are taken: some peers do not count the head."""

    def __init__(self, limits: Limits, incoming: Incoming | None = None) -> None:
        """Hold peers to `limits`; tell `incoming` of objects that are too large."""
        self._limits, self._incoming = limits, incoming

    def watch(self, event: Event) -> None:
        """Guard a connection that was just made (EVT_CONN_OPEN)."""
        line: AssociationSocket | None = event.assoc.dul.socket
        if line is None or line.socket is None:
            raise RuntimeError("a connection without a socket")
        line.socket.settimeout(self._limits.idle)
        line.recv = partial(self._receive, event.assoc, line.socket)  # type: ignore[method-assign]

    def _receive(self, association: Association, line: socket.socket, size: int) -> bytearray:
        """Return `size` bytes, or fewer at the end. An OSError ends the connection."""
        self._refuse_excess(association, size)
        data = bytearray(size)
        filled = 0
        while filled < size:
            count = line.recv_into(memoryview(data)[filled:], min(size - filled, _RECEIVE))
            if not count:
                break
            filled += count
        return data[:filled]

    def _refuse_excess(self, association: Association, size: int) -> None:
        message, excess = association.dimse.message, size > 2 * self.MAX_PDU
        excess |= association.dimse.msg_queue.qsize() > _MAX_WAITING
        if message is not None:
            excess |= message.encoded_command_set.tell() > _MAX_COMMAND
            held = 0 if message.data_set is None else message.data_set.tell()
            if held + size > (_MAX_COMMAND if self._incoming is None else self._limits.max_object + self.MAX_PDU):
                excess = True
                if self._incoming is not None:
                    self._incoming.refuse_size(str(message.command_set.get("AffectedSOPInstanceUID", "")))
        if excess:
            raise OSError("the peer sends more than it may")


def storing_into(incoming: Incoming) -> Callable[[Event], int]:
    """Return what takes an object that a peer sends (EVT_C_STORE), and answers with a status (PS3.4 section B.2.3)."""

    def store(event: Event) -> int:
        request = cast("C_STORE", event.request)
        announced, sop_class = str(request.AffectedSOPInstanceUID), str(request.AffectedSOPClassUID)
        return _STORED if incoming.take(announced, _file_of(event), sop_class_uid=sop_class) else _REFUSED

    return store


def _file_of(event: Event) -> Iterator[bytes | memoryview]:
    """Yield the file of an object that came: a preamble and file meta information (PS3.10 section 7.1), and its own bytes."""
    yield bytes(128) + b"DICM" + encode_file_meta(event.file_meta)
    data = cast("BytesIO", cast("C_STORE", event.request).DataSet).getbuffer()
    for start in range(0, len(data), COPY_BLOCK):
        yield data[start : start + COPY_BLOCK]


def _address_towards(host: str, port: int) -> str:
    """Return the address of this machine from which `host` is reached. Nothing is sent for that."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        raise UsageError(f"it is not known where {host} can send to", hint="name it: --listen ADDRESS:PORT") from None
