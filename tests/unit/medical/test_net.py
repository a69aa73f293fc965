"""Servers that lie, and everything about archives that needs no real one."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
import trustme
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from conftest import Ran, left_in
from secure_media_processor import SymmetricKey, encrypt_file
from secure_media_processor.cli.local_s3 import free_port
from secure_media_processor.errors import IntegrityError, MissingError, TransientError, UsageError
from secure_media_processor.medical.dicom.net import model, multipart, transfer
from secure_media_processor.medical.dicom.net.address import DimseAddress, WebAddress, parse_address
from secure_media_processor.medical.dicom.net.dimse import DimseServer
from secure_media_processor.medical.dicom.net.incoming import Incoming
from secure_media_processor.medical.dicom.net.model import Limits, Query, RemoteInstance, RemoteStudy
from secure_media_processor.medical.dicom.net.multipart import only_part, parameters
from written_paths import written_paths

NAME = "CANARYNAME^LIAR"
STUDY, SERIES, UID = "1.2.3.77", "1.2.3.77.1", "1.2.3.77.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom"),  # of what the tests themselves write
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pynetdicom"),
]


def an_object(**changes: object) -> Dataset:
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = STUDY, SERIES, UID
    dataset.PatientName, dataset.PatientIdentityRemoved = NAME, "YES"
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    return dataset


def encoded(dataset: Dataset) -> bytes:
    file = pydicom.filebase.DicomBytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return bytes(file.getvalue())


# ------------------------------------------------------------------------------------------------- questions, addresses


@pytest.mark.parametrize("asked", [{}, {"patient_id": "*"}, {"modality": "CT"}, {"accession": "?*"}])
def test_not_everything_is_fetched_by_mistake(asked: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="every study"):
        Query(**asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"study_uid": "../1.2"}, {"study_uid": "1"}, {"study_uid": "1." + "2" * 63}, {"patient_id": "A\\B"}, {"dates": "2024"},
        {"dates": "20240230"}, {"dates": "20240201-20240101"}, {"dates": "-"}, {"dates": "2024010120240201"},
        {"patient_id": "A", "modality": "ct"}, {"patient_id": "A\n"},
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_asked(asked: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        Query(**asked)


@pytest.mark.parametrize(
    ("query", "study", "fits"),
    [
        ({"study_uid": "1.2"}, {"uid": "1.2"}, True),
        ({"study_uid": "1.2"}, {"uid": "1.3"}, False),
        ({"patient_id": "A*"}, {"patient_id": "abc "}, True),
        ({"patient_id": "A?"}, {"patient_id": "abc"}, False),
        ({"patient_id": "A.C"}, {"patient_id": "ABC"}, False),
        ({"accession": "7"}, {"accession": ""}, False),
        ({"dates": "20240101"}, {"date": "20240101"}, True),
        ({"dates": "20240101"}, {"date": "20240102"}, False),
        ({"dates": "20240101-"}, {"date": "2024.01.02"}, True),
        ({"dates": "-20240101"}, {"date": "20231231"}, True),
        ({"dates": "20240101-20240131"}, {"date": "20240201"}, False),
        ({"dates": "20240101-"}, {"date": ""}, False),
    ],
)
def test_answers_that_do_not_fit_are_left_out(query: dict[str, str], study: dict[str, str], fits: bool) -> None:
    assert Query(**query).admits(RemoteStudy(**{"uid": "1.2", **study})) is fits


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("dicom://A@127.0.0.1:4242", DimseAddress("A", "127.0.0.1", 4242, tls=False)),
        ("dicoms://MY_PACS@pacs.example.org", DimseAddress("MY_PACS", "pacs.example.org", 2762, tls=True)),
        ("dicom://A@[::1]", DimseAddress("A", "::1", 104, tls=False)),
        ("https://pacs.example.org/dicom-web/", WebAddress("https://pacs.example.org/dicom-web", "pacs.example.org", tls=True)),
        ("http://localhost:8042/x", WebAddress("http://localhost:8042/x", "localhost", tls=False)),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "", "pacs", "ftp://a/b", "dicom://127.0.0.1:4242", "dicom://TOO-LONG-A-TITLE-IT-IS@127.0.0.1", "dicom://A@127.0.0.1:99999",
        "dicom://A:b@127.0.0.1", "https://me:secret@pacs.example.org/", "https://a/b?c=d", "dicom://A@127.0.0.1/path",
        "dicom://A@pacs.example.org", "http://pacs.example.org/dicom-web", "http://127.0.0.1.example.org/",
    ],
)  # fmt: skip
def test_what_is_no_address_or_not_safe(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert "secret" not in str(caught.value) + caught.value.hint


def test_an_open_line_has_to_be_allowed() -> None:
    assert parse_address("dicom://A@pacs.example.org", plaintext=True) == DimseAddress("A", "pacs.example.org", 104, tls=False)


# ------------------------------------------------------------------------------------------------------- several parts


def parts(*bodies: bytes, end: bytes = b"\r\n--B--\r\n") -> bytes:
    return b"".join(b"\r\n--B\r\nContent-Type: application/dicom\r\n\r\n" + body for body in bodies).removeprefix(b"\r\n") + end


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("body", [b"", b"x", b"\r\n--", b"a\r\n--Cb" * 40, bytes(500)])
def test_one_part_is_read_from_blocks_of_any_size(body: bytes, size: int) -> None:
    data = parts(body)
    assert b"".join(only_part((data[i : i + size] for i in range(0, len(data), size)), "B")) == body


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", TransientError),
        (parts(b"abc")[:20], TransientError),
        (parts(b"abc", end=b""), TransientError),
        (parts(b"abc", end=b"\r\n--B"), TransientError),
        (parts(b"abc", b"def"), IntegrityError),
        (b"<html>" * 9000, IntegrityError),
        (parts(b"abc").replace(b"--B\r", b"--C\r"), IntegrityError),
        (parts(b"abc").replace(b"application/dicom", b"text/html"), IntegrityError),
    ],
)
def test_parts_that_are_not_as_they_should_be(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        b"".join(only_part(iter([data]), "B"))


def test_parameters_of_a_content_type() -> None:
    assert parameters('Multipart/Related; type="application/dicom"; boundary="a b"') == ("multipart/related", "a b")
    assert parameters("application/dicom") == ("application/dicom", "")
    assert multipart.parameters("")[1] == ""


# ---------------------------------------------------------------------------------------------------- what is taken in


@pytest.mark.parametrize("uid", ["..", "../x", "1/2", "1..2", "1.2\n", "", "1." + "2" * 64, "1.2.x"])
def test_names_from_the_wire_are_no_paths(uid: str) -> None:
    with pytest.raises(IntegrityError):
        model.checked_uid(uid)


WANTED = RemoteInstance(STUDY, SERIES, UID, CT)
LIES: dict[str, Callable[[], bytes]] = {
    "another instance": lambda: encoded(an_object(SOPInstanceUID="1.2.3.88")),
    "another study": lambda: encoded(an_object(StudyInstanceUID="1.2.3.88")),
    "another series": lambda: encoded(an_object(SeriesInstanceUID="1.2.3.88")),
    "another class": lambda: encoded(an_object(SOPClassUID="1.2.840.10008.5.1.4.1.1.4")),
    "cut": lambda: encoded(an_object())[:-500],
    "no object": lambda: NAME.encode() * 100,
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_what_was_asked_for_is_not_kept(work: Path, lie: str) -> None:
    incoming = Incoming(work / "out", [WANTED], Limits())
    assert not incoming.take(UID, [LIES[lie]()])
    assert isinstance(incoming.failed[WANTED], IntegrityError)
    assert NAME not in str(incoming.failed[WANTED])
    assert (incoming.pending, left_in(work / "out")) == ([], set())


def test_an_object_may_not_be_larger_than_allowed(work: Path) -> None:
    incoming = Incoming(work / "out", [WANTED], Limits(max_object=10_000))
    blocks = iter([bytes(6000)] * 3)
    assert not incoming.take(UID, blocks)
    assert list(blocks) == [bytes(6000)]  # no more of them was asked for
    assert "larger than 10000 bytes" in str(incoming.failed[WANTED])
    assert left_in(work / "out") == set()


def test_a_link_in_the_way_is_not_followed(work: Path) -> None:
    (work / "out").mkdir()
    (work / "elsewhere").mkdir()
    (work / "out" / STUDY).symlink_to(work / "elsewhere")
    incoming = Incoming(work / "out", [WANTED], Limits())
    assert not incoming.take(UID, [encoded(an_object())])
    assert left_in(work / "elsewhere") == set()


def test_what_nobody_asked_for_is_not_taken(work: Path) -> None:
    incoming = Incoming(work / "out", [WANTED], Limits())
    assert not incoming.take("1.2.3.88", [encoded(an_object(SOPInstanceUID="1.2.3.88"))])
    assert left_in(work / "out") == set()
    incoming.missed([WANTED], MissingError("it did not come"))
    assert isinstance(incoming.failed[WANTED], IntegrityError)


# ------------------------------------------------------------------------------------------------------- lying servers


@contextmanager
def dimse(
    sent: list[Dataset], context: ssl.SSLContext | None = None, further: dict[Any, Callable[[Any], Any]] | None = None
) -> Iterator[str]:
    """Serve one study with one instance, and send `sent` when that is asked for; `further` handlers are by their events."""

    def find(event: Any) -> Iterator[tuple[int, Dataset]]:
        answer = Dataset()
        answer.StudyInstanceUID, answer.SeriesInstanceUID, answer.SOPInstanceUID = STUDY, SERIES, UID
        answer.SOPClassUID, answer.Modality, answer.PatientID = CT, "CT", "P1"
        yield 0xFF00, answer

    def get(event: Any) -> Iterator[Any]:
        yield len(sent)
        for dataset in sent:
            yield 0xFF00, dataset

    entity = AE("LIAR")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    entity.add_supported_context(Verification)
    for one in AllStoragePresentationContexts:
        entity.add_supported_context(one.abstract_syntax, scu_role=True, scp_role=True)
    port = free_port()
    handlers = [(evt.EVT_C_FIND, find), (evt.EVT_C_GET, get), *(further or {}).items()]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers, ssl_context=context)
    try:
        yield f"dicom{'s' if context else ''}://LIAR@localhost:{port}"
    finally:
        for association in server.active_associations:
            association.abort()
        server.shutdown()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.time, "sleep", lambda _: None)


def fetched(smp: Callable[..., Ran], caplog: pytest.LogCaptureFixture, *args: str | Path) -> Ran:
    ran = smp("medical", "fetch", *args, "--study", STUDY)
    assert NAME not in ran.text + ran.err + caplog.text
    assert "CANARY" not in ran.text + ran.err + caplog.text
    return ran


def test_a_server_of_our_own_that_does_not_lie(smp: Callable[..., Ran], caplog: pytest.LogCaptureFixture, work: Path) -> None:
    with dimse([an_object()]) as address:
        ran = fetched(smp, caplog, address, "out")
    assert ran.code == 0, ran.err
    assert left_in(work / "out") == {f"{STUDY}/{SERIES}/{UID}.dcm"}


@pytest.mark.parametrize(
    "sent",
    [
        [an_object(SOPInstanceUID="1.2.3.88")],
        [an_object(StudyInstanceUID="1.2.3.88")],
        [an_object(SeriesInstanceUID="1.2.3.88")],
        [],
    ],
    ids=["instance", "study", "series", "nothing"],
)
def test_a_dimse_server_that_lies(
    smp: Callable[..., Ran], caplog: pytest.LogCaptureFixture, work: Path, sent: list[Dataset]
) -> None:
    with dimse(sent) as address:
        ran = fetched(smp, caplog, address, "out")
    assert ran.code == (6 if sent else 7), ran.err
    assert left_in(work / "out") == set()


def test_a_dimse_server_that_sends_too_much(
    smp: Callable[..., Ran], caplog: pytest.LogCaptureFixture, work: Path, quick: None
) -> None:
    huge = an_object(Rows=2048, Columns=2048, PixelData=bytes(2048 * 2048 * 2))
    with dimse([huge]) as address:
        ran = fetched(smp, caplog, address, "out", "--max-size", "1")
        assert ran.code == 6, ran.err
        assert "larger than 1048576 bytes" in ran.err
        assert left_in(work / "out") == set()
        assert fetched(smp, caplog, address, "out").code == 0


@pytest.mark.parametrize(
    "unit", [b"\x02\x00\xff\xff\xff\xff", b"\x02\x00\x00\x00\x01\x00" + bytes(4)], ids=["4 GiB", "half a unit"]
)
def test_a_server_that_announces_more_than_it_sends(work: Path, unit: bytes) -> None:
    """It may announce 4 GiB, or go quiet within a message: neither is waited or room is made for."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(unit)
                ended.wait(20)

        thread = threading.Thread(target=serve)
        thread.start()
        address = DimseAddress("LIAR", "127.0.0.1", listener.getsockname()[1], tls=False)
        started = time.monotonic()
        try:
            with pytest.raises(TransientError):
                DimseServer(address, limits=Limits(idle=1.0, response=2.0)).echo()
        finally:
            ended.set()
            thread.join()
        assert time.monotonic() - started < 15


def test_tls_is_checked(smp: Callable[..., Ran], caplog: pytest.LogCaptureFixture, work: Path, quick: None) -> None:
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path("ca.pem")
    other.cert_pem.write_to_path("other.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with dimse([an_object()], context) as address:
        assert fetched(smp, caplog, address, "out", "--ca", "ca.pem").code == 0
        for options in (["--ca", "other.pem"], []):
            ran = fetched(smp, caplog, address, "out2", *options)
            assert (ran.code, "is not trusted" in ran.err) == (4, True), ran.err
        ran = fetched(smp, caplog, address.replace("localhost", "127.0.0.1"), "out2", "--ca", "ca.pem")
        assert (ran.code, "is not trusted" in ran.err) == (4, True), ran.err


@pytest.mark.parametrize("shows_certificate", [True, False])
def test_objects_come_over_tls_by_c_move(
    smp: Callable[..., Ran], caplog: pytest.LogCaptureFixture, work: Path, quick: None, shows_certificate: bool
) -> None:
    """Both connections are encrypted; whoever connects to us must be of the authority that --ca names."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path("ca.pem")
    ours = authority.issue_cert("localhost")
    ours.private_key_and_cert_chain_pem.write_to_path("we.pem")
    Path("we.pem").chmod(0o600)
    serving, calling = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(serving)
    authority.configure_trust(calling)
    if shows_certificate:
        authority.issue_cert("archive.example").configure_cert(calling)
    port = free_port()

    def move(_event: Any) -> Iterator[Any]:
        yield "127.0.0.1", port, {"tls_args": (calling, "localhost"), "contexts": [build_context(CT)]}
        yield 1
        yield 0xFF00, an_object()

    with dimse([], serving, {evt.EVT_C_MOVE: move}) as address:
        options = ["--listen", f"127.0.0.1:{port}", "--ca", "ca.pem", "--certificate", "we.pem"]
        ran = fetched(smp, caplog, address, "out", *options)
    assert (ran.code == 0) == shows_certificate, ran.err
    assert left_in(work / "out") == ({f"{STUDY}/{SERIES}/{UID}.dcm"} if shows_certificate else set())


@contextmanager
def web(
    answer: Callable[[str], tuple[int, dict[str, str], bytes]],
    context: ssl.SSLContext | None = None,
    posted: list[bytes] | None = None,
) -> Iterator[str]:
    """Serve DICOMweb: one study with one instance; `answer` tells what is given for it; `posted` gets what is sent."""

    def listed(**values: str) -> bytes:
        tags = {"study": "0020000D", "series": "0020000E", "uid": "00080018", "cls": "00080016", "mod": "00080060"}
        return json.dumps([{tags[name]: {"vr": "UI", "Value": [value]} for name, value in values.items()}]).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            kind, lists = (
                "application/dicom+json",
                {
                    "/studies": listed(study=STUDY),
                    f"/studies/{STUDY}/series": listed(series=SERIES, mod="CT"),
                    f"/studies/{STUDY}/series/{SERIES}/instances": listed(uid=UID, cls=CT),
                },
            )
            status, headers, body = (200, {"Content-Type": kind}, lists[path]) if path in lists else answer(path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            data = self.rfile.read(size)
            if len(data) < size:  # who sends has broken off
                self.close_connection = True
                return
            assert posted is not None
            posted.append(data.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0])
            stored = pydicom.dcmread(BytesIO(posted[-1])).SOPInstanceUID
            reference = {"00081155": {"vr": "UI", "Value": [stored]}}
            body = json.dumps({"00081199": {"vr": "SQ", "Value": [reference]}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who does not trust us goes away
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http{'s' if context else ''}://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


MULTIPART = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=B'}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((200, MULTIPART, lambda: parts(encoded(an_object()))), 0),
        ((200, {"Content-Type": "application/dicom"}, lambda: encoded(an_object())), 0),
        *[((200, MULTIPART, lambda lie=lie: parts(LIES[lie]())), 6) for lie in LIES],
        ((200, MULTIPART, lambda: parts(encoded(an_object()), encoded(an_object()))), 6),
        ((200, {"Content-Type": "text/html"}, NAME.encode), 6),
        ((200, MULTIPART, lambda: parts(encoded(an_object()))[:9000]), 11),
        ((200, {**MULTIPART, "Content-Length": "99999"}, lambda: parts(encoded(an_object()))[:9000]), 11),
        ((200, MULTIPART, lambda: parts(bytes(2 << 20))), 6),
        ((404, {}, NAME.encode), 7),
        ((401, {}, NAME.encode), 4),
        ((503, {}, NAME.encode), 11),
        ((302, {"Location": "http://127.0.0.1:9/"}, lambda: b""), 1),
        ((406, {}, lambda: b""), 1),
    ],
)
@pytest.mark.usefixtures("quick")
def test_a_web_server_that_lies(
    smp: Callable[..., Ran], caplog: pytest.LogCaptureFixture, work: Path, answer: Any, code: int
) -> None:
    status, headers, body = answer
    with web(lambda _: (status, headers, body())) as address:
        ran = fetched(smp, caplog, address, "out", "--max-size", "1")
    assert ran.code == code, ran.err
    assert left_in(work / "out") == ({f"{STUDY}/{SERIES}/{UID}.dcm"} if code == 0 else set())


def test_https_is_checked(
    smp: Callable[..., Ran], caplog: pytest.LogCaptureFixture, work: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path("ca.pem")
    trustme.CA().cert_pem.write_to_path("other.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(work / "ca.pem"))  # does not come before --ca
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with web(lambda _: (200, MULTIPART, parts(encoded(an_object()))), context) as address:
        ran = fetched(smp, caplog, address, "out", "--ca", "other.pem")
        assert (ran.code, "no certificate that can be trusted" in ran.err) == (4, True), ran.err
        assert fetched(smp, caplog, address, "out", "--ca", "ca.pem").code == 0


def test_there_is_nobody(smp: Callable[..., Ran], caplog: pytest.LogCaptureFixture, work: Path, quick: None) -> None:
    port = free_port()
    for address in (f"dicom://A@127.0.0.1:{port}", f"http://127.0.0.1:{port}", f"dicoms://A@127.0.0.1:{port}"):
        ran = fetched(smp, caplog, address, "out")
        assert (ran.code, "[SMP-TRANSIENT]" in ran.err) == (11, True), ran.err


@pytest.mark.parametrize(
    "options",
    [
        ["http://127.0.0.1:1", "out", "--study", STUDY, "--listen", "11112"],
        ["dicom://A@127.0.0.1", "out", "--study", STUDY, "--listen", "70000"],
        ["dicoms://A@127.0.0.1", "out", "--study", STUDY, "--listen", "11112"],
        ["dicom://A@127.0.0.1", "out", "--study", STUDY, "--credentials", "x.json"],
        ["dicom://A@127.0.0.1", "out", "--study", STUDY, "--aet", "a" * 17],
        ["dicom://A@127.0.0.1", "out"],
    ],
)
def test_options_that_do_not_fit(smp: Callable[..., Ran], work: Path, options: list[str]) -> None:
    assert smp("medical", "fetch", *options).code == 2


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"token": 1}', '{"user": "a"}', '{"token": "a", "user": "b"}', '{"token": "a\\nb"}']
)
def test_credentials_that_are_none(smp: Callable[..., Ran], work: Path, text: str) -> None:
    Path("c.json").write_text(text)
    Path("c.json").chmod(0o600)
    ran = smp("medical", "fetch", "http://127.0.0.1:1", "out", "--study", STUDY, "--credentials", "c.json")
    assert ran.code == 4, ran.err


def test_generated_uids_are_uids() -> None:
    assert model.checked_uid(generate_uid())
    assert model.checked_uid(CT)


# ------------------------------------------------------------------------------------------------------- encrypted files


@pytest.fixture
def sealed(work: Path, key: SymmetricKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encrypted object, and another one whose pixels are damaged."""
    (work / "sealed").mkdir()
    plain = tmp_path_factory.mktemp("plain") / "object"
    for name, uid in (("one", UID), ("two", f"{UID}.2")):
        plain.write_bytes(encoded(an_object(SOPInstanceUID=uid)))
        encrypt_file(plain, f"sealed/{name}.smp", [key])
    damaged = bytearray(Path("sealed/two.smp").read_bytes())
    damaged[25_000] ^= 1
    Path("sealed/two.smp").write_bytes(damaged)
    return work / "sealed"


def sent_encrypted(smp: Callable[..., Ran], sealed: Path, key_file: Path, *way: str) -> None:
    """Send what is in `sealed`, with and without the key, and see that one of two comes through, and nothing is written."""
    with written_paths() as paths:
        ran = smp("medical", "send", *way, sealed, "--key", key_file, "-v")
        assert (ran.code, "1 file sent" in ran.err) == (3, True), ran.err
        assert "not sent: " in ran.err
        assert NAME not in ran.err
        assert smp("medical", "send", *way, sealed).code != 0
    assert all("secure-media-processor" in path.parts for path in paths if path != Path(os.devnull))  # the audit log


def test_encrypted_files_are_sent_by_dimse(smp: Callable[..., Ran], sealed: Path, key_file: Path) -> None:
    stored: list[Dataset] = []

    def store(event: Any) -> int:
        stored.append(event.dataset)
        return 0x0000

    with dimse([], None, {evt.EVT_C_STORE: store}) as address:
        sent_encrypted(smp, sealed, key_file, address)
    assert [(one.SOPInstanceUID, one.PixelData) for one in stored] == [(UID, an_object().PixelData)]


def test_encrypted_files_are_sent_by_dicomweb(smp: Callable[..., Ran], sealed: Path, key_file: Path) -> None:
    posted: list[bytes] = []
    with web(lambda _: (404, {}, b""), None, posted) as address:
        sent_encrypted(smp, sealed, key_file, address)
    assert posted == [encoded(an_object())]
