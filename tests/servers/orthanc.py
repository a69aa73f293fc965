"""A real archive (PACS): Orthanc with its plugin for DICOMweb, from the packages orthanc and orthanc-dicomweb of Debian."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from servers.seaweedfs import free_port

USER, PASSWORD = "reader", "orthanc-p4ss-77c1"
AET = "ORTHANC"
OUR_AET = "SMPTEST"
_PLUGINS = Path("/usr/share/orthanc/plugins")


def program() -> str | None:
    """Return the path of Orthanc, None if it or its plugin is not installed. It lies where only root's PATH leads."""
    plugin = (_PLUGINS / "libOrthancDicomWeb.so").exists()
    return shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") if plugin else None


@dataclass
class Orthanc:
    """A server that can be killed and started again with the same ports and the same data."""

    folder: Path
    http_port: int = field(default_factory=free_port)
    dicom_port: int = field(default_factory=free_port)
    our_port: int = field(default_factory=free_port)
    """Where it is to send to, by C-MOVE."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def dicom(self) -> str:
        """Its address for DIMSE."""
        return f"dicom://{AET}@127.0.0.1:{self.dicom_port}"

    @property
    def web(self) -> str:
        """Its address for DICOMweb."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def rest(self, method: str, path: str, data: bytes | None = None) -> object:
        """Ask Orthanc's own interface."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=data, method=method)
        request.add_header("Authorization", f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - our own loopback address
            return json.loads(answer.read() or b"null")

    def empty(self) -> None:
        """Remove all studies."""
        studies = self.rest("GET", "/studies")
        assert isinstance(studies, list)
        for study in studies:
            self.rest("DELETE", f"/studies/{study}")

    def start(self) -> None:
        """Start, and wait until it answers."""
        ours = {"AET": OUR_AET, "Host": "127.0.0.1", "Port": self.our_port}
        settings = {
            "Name": "tests",
            "StorageDirectory": str(self.folder / "data"),
            "IndexDirectory": str(self.folder / "data"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": AET,
            "DicomCheckCalledAet": True,
            "DicomCheckModalityHost": True,  # it listens on every address, and knows nobody but this machine
            "DicomAlwaysAllowGet": False,
            "DicomAlwaysAllowStore": False,
            "DicomAlwaysAllowEcho": False,
            "DicomAlwaysAllowFind": False,
            "DicomModalities": {"ours": {**ours, "AllowMove": True, "AllowGet": True, "AllowFind": True, "AllowStore": True}},
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "OverwriteInstances": True,
            "Plugins": [str(_PLUGINS / "libOrthancDicomWeb.so")],
            "DicomWeb": {"Enable": True, "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
        }
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder)}
        with (self.folder / "log").open("ab") as log:
            command = [str(program()), str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(command, cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.rest("GET", "/system")
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"Orthanc did not start: {(self.folder / 'log').read_text()[-3000:]}")

    def kill(self) -> None:
        """End it at once, by its process id."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=20)
            self.process = None


@contextmanager
def running(folder: Path) -> Iterator[Orthanc]:
    """Run a server that keeps its data in `folder`."""
    server = Orthanc(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
