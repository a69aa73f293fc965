"""Credentials in the keyring of the system, in private files, and what is refused."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import keyring
import pytest
from keyring import errors
from keyring.backend import KeyringBackend
from keyring.backends import chainer, fail, null

from conftest import Ran, left_in
from secure_media_processor.cloud.credentials import (
    forget_in_keyring,
    is_in_keyring,
    keep_in_keyring,
    read_credentials,
    read_texts,
)
from secure_media_processor.cloud.kinds import DROPBOX
from secure_media_processor.cloud.stores import Store, with_absolute_paths
from secure_media_processor.errors import (
    CredentialsError,
    KeyExposedError,
    MissingError,
    MissingExtraError,
    SmpError,
    UsageError,
)

SECRET = "s3cret-31c9f0"  # noqa: S105 - of nobody
TEXTS = {
    "dropbox": {"refresh_token": SECRET, "app_key": "public"},
    "gdrive": {"client_id": "public", "client_secret": SECRET, "refresh_token": SECRET},
    "s3": {"aws_access_key_id": "public", "aws_secret_access_key": SECRET, "aws_session_token": SECRET},
}
OPTIONS = {"dropbox": {}, "gdrive": {}, "s3": {"bucket": "bucket"}}


class MemoryKeyring(KeyringBackend):
    """A keyring that works."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


class FailingKeyring(MemoryKeyring):
    """A keyring that fails, with a text that tells what it holds."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def get_password(self, *_args: str) -> str | None:
        raise self.error

    set_password = delete_password = get_password


class Forgetful(MemoryKeyring):
    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password[:10]


class PlaintextKeyring(MemoryKeyring):
    """Named as that of keyrings.alt, which keeps all in a file that anybody can read who has it."""


class TheirOwn(PlaintextKeyring):
    pass


@pytest.fixture
def ring() -> Iterator[MemoryKeyring]:
    before = keyring.core._keyring_backend
    ring = MemoryKeyring()
    keyring.set_keyring(ring)
    yield ring
    keyring.core._keyring_backend = before


# ------------------------------------------------------------------------------------------------ from Python


def test_what_is_kept_comes_back_and_goes(ring: MemoryKeyring) -> None:
    keep_in_keyring("box", {"refresh_token": "one"})
    keep_in_keyring("box", {"refresh_token": SECRET})
    assert list(ring.kept) == [("secure-media-processor", "box")]
    assert read_credentials("keyring:box", hint="") == {"refresh_token": SECRET}
    forget_in_keyring("box")
    assert not ring.kept
    with pytest.raises(MissingError):
        forget_in_keyring("box")
    with pytest.raises(CredentialsError, match="no credentials called box") as caught:
        read_credentials("keyring:box", hint="")
    assert "keep-credentials box" in caught.value.hint


@pytest.mark.parametrize("kind", TEXTS)
def test_a_store_takes_its_credentials_from_the_keyring(ring: MemoryKeyring, home: Path, kind: str) -> None:
    keep_in_keyring("clinic", TEXTS[kind])
    for place in ("keyring", "keyring:clinic"):
        with Store("clinic", kind, {"credentials": place, **OPTIONS[kind]}).open() as connector:
            assert SECRET not in repr(connector)
    with pytest.raises(CredentialsError, match="no credentials called other"):
        Store("other", kind, {"credentials": "keyring", **OPTIONS[kind]}).open()


def test_a_key_pair_from_the_keyring_is_the_one_that_s3_uses(ring: MemoryKeyring, monkeypatch: pytest.MonkeyPatch) -> None:
    from secure_media_processor.cloud.kinds import S3  # noqa: PLC0415 - beside the others it would read as a constant

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    keep_in_keyring("clinic", TEXTS["s3"])
    options = {"bucket": "bucket", "credentials": "keyring:clinic"}
    with S3.open(options, lambda: None) as connector:
        used = connector._client._request_signer._credentials  # type: ignore[attr-defined]
        assert (used.access_key, used.secret_key, used.token) == ("public", SECRET, SECRET)
    with pytest.raises(UsageError, match="profile"):
        S3.open({**options, "profile": "backup"}, lambda: None)


def test_a_place_in_the_keyring_is_no_path(work: Path) -> None:
    for place in ("keyring", "keyring:box"):
        assert is_in_keyring(place)
        assert with_absolute_paths(DROPBOX, {"credentials": place}) == {"credentials": place}
    for place in ("./keyring", "keyring.json", "a/keyring:box"):
        assert not is_in_keyring(place)
        assert with_absolute_paths(DROPBOX, {"credentials": place}) == {"credentials": str(work / place)}
    assert with_absolute_paths(DROPBOX, {"folder": "keyring:box"}) == {"folder": "keyring:box"}


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "ä", "x" * 65, "a\n"])
def test_names_that_are_none(ring: MemoryKeyring, name: str) -> None:
    for act in (
        lambda: keep_in_keyring(name, {}),
        lambda: forget_in_keyring(name),
        lambda: read_credentials(f"keyring:{name}", hint=""),
    ):
        with pytest.raises(UsageError):
            act()
    assert not ring.kept


@pytest.mark.parametrize("text", ["", "[]", "1", "{", '{"a": "' + "x" * 70_000 + '"}', "[" * 9999, "\ud800"])
def test_what_is_no_json_object_is_refused(ring: MemoryKeyring, work: Path, text: str) -> None:
    ring.set_password("secure-media-processor", "box", text)
    path = work / "box.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    path.chmod(0o600)
    for place in ("keyring:box", str(path)):
        with pytest.raises(CredentialsError, match="not a JSON file"):
            read_credentials(place, hint="")


def test_only_texts_of_known_names_are_taken(ring: MemoryKeyring) -> None:
    for found in ({"a": SECRET, "c": SECRET}, {"a": 5}, {"a": None}):
        keep_in_keyring("box", found)
        with pytest.raises(CredentialsError, match="a, b") as caught:
            read_texts("keyring:box", {"a", "b"}, hint="")
        assert SECRET not in str(caught.value)
    keep_in_keyring("box", {"a": SECRET})
    assert read_texts("keyring:box", {"a", "b"}, hint="") == {"a": SECRET}


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("backend", [fail.Keyring, null.Keyring, PlaintextKeyring, TheirOwn], ids=lambda kind: kind.__name__)
def test_what_keeps_no_secret_is_refused(ring: MemoryKeyring, backend: Callable[[], KeyringBackend]) -> None:
    keyring.set_keyring(backend())
    refused = pytest.raises(CredentialsError, match="none that keeps a secret")
    with refused as caught:
        keep_in_keyring("box", {"a": SECRET})
    with refused:
        read_credentials("keyring:box", hint="")
    assert "0600" in caught.value.hint
    assert not getattr(keyring.get_keyring(), "kept", {})


def test_of_a_chain_the_first_that_keeps_secrets_is_taken(ring: MemoryKeyring, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, plain = chainer.ChainerBackend(), PlaintextKeyring()
    monkeypatch.setattr(chainer.ChainerBackend, "backends", [plain, ring])
    keyring.set_keyring(chain)
    keep_in_keyring("box", {"a": SECRET})
    assert read_credentials("keyring:box", hint="") == {"a": SECRET}
    assert (len(plain.kept), len(ring.kept)) == (0, 1)
    monkeypatch.setattr(chainer.ChainerBackend, "backends", [plain])
    with pytest.raises(CredentialsError):
        keep_in_keyring("box", {"a": SECRET})


def test_a_keyring_that_keeps_half_is_noticed(ring: MemoryKeyring) -> None:
    keyring.set_keyring(Forgetful())
    with pytest.raises(CredentialsError, match="did not keep"):
        keep_in_keyring("box", {"a": SECRET})


FAILURES = [
    errors.KeyringLocked(SECRET),
    errors.InitError(SECRET),
    errors.PasswordSetError(SECRET),
    OSError(SECRET),
    Exception(SECRET),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_no_error_or_log_tells_a_secret(ring: MemoryKeyring, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    caplog.set_level(logging.DEBUG)
    keyring.set_keyring(FailingKeyring(error))
    told = []
    for act in (
        lambda: keep_in_keyring("box", {"a": SECRET}),
        lambda: read_credentials("keyring:box", hint=""),
        lambda: forget_in_keyring("box"),
    ):
        with pytest.raises(CredentialsError) as caught:
            act()
        assert not caught.value.retryable
        told += [f"{caught.value!r} {caught.value.hint}", *traceback.format_exception(caught.value)]
    assert ("locked" in told[0]) == isinstance(error, errors.KeyringLocked)
    keyring.set_keyring(ring)
    for kind in TEXTS:
        for text in (
            f'{{"nonsense": "{SECRET}"}}',
            f'{{"refresh_token": "{SECRET}"',
            f'{{"aws_secret_access_key": "{SECRET}\\n"}}',
        ):
            ring.set_password("secure-media-processor", "box", text)
            with pytest.raises(SmpError) as refused:
                Store("box", kind, {"credentials": "keyring", **OPTIONS[kind]}).open()
            told += [f"{refused.value!r} {refused.value.hint}", *traceback.format_exception(refused.value)]
    # The lines of this file that a traceback quotes name the constant, not its value.
    assert SECRET not in "".join([*told, caplog.text])


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(MissingExtraError) as caught:
        read_credentials("keyring:box", hint="")
    assert caught.value.hint == "pip install 'secure-media-processor[keyring]'"


@pytest.mark.parametrize("name", ["nonsense", "no.such.Module", "keyring.backends.fail.Nothing"])
def test_a_backend_of_the_environment_that_is_none(ring: MemoryKeyring, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(keyring.core, "_keyring_backend", None)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", name)
    with pytest.raises(CredentialsError, match="does not work"):
        read_credentials("keyring:box", hint="")


# ------------------------------------------------------------------------------------------------ the commands


def test_the_commands_keep_and_forget(ring: MemoryKeyring, work: Path, smp: Callable[..., Ran]) -> None:
    text = json.dumps(TEXTS["dropbox"])
    path = work / "box.json"
    path.write_text(text)
    path.chmod(0o600)
    told = []

    def run(*args: str, code: int = 0, stdin: bytes = b"") -> Ran:
        ran = smp("cloud", *args, stdin=stdin)
        assert ran.code == code, ran.err
        told.append(ran.text + ran.err)
        return ran

    assert "can be removed" in run("keep-credentials", "box", "box.json").err
    path.unlink()
    run("keep-credentials", "drive", stdin=json.dumps(TEXTS["gdrive"]).encode())
    run("keep-credentials", "s3", "-", stdin=json.dumps(TEXTS["s3"]).encode())
    assert {name for _, name in ring.kept} == {"box", "drive", "s3"}
    run("add", "box", "dropbox", "credentials=keyring", "--no-check")
    run("add", "other", "gdrive", "credentials=keyring:drive", "--no-check")
    stores = {store["name"]: store["options"] for store in json.loads(run("list", "--json").text)["stores"]}
    assert stores == {"box": {"credentials": "keyring"}, "other": {"credentials": "keyring:drive"}}
    run("forget-credentials", "box")
    run("forget-credentials", "box", code=7)
    run("status", "box", code=11)
    run("keep-credentials", "box", stdin=f'["{SECRET}"]'.encode(), code=4)
    run("keep-credentials", "a/b", stdin=text.encode(), code=2)
    run("keep-credentials", "box", "absent.json", code=4)
    path.write_text(text)
    path.chmod(0o644)
    assert KeyExposedError.code in run("keep-credentials", "box", "box.json", code=4).err
    assert {name for _, name in ring.kept} == {"drive", "s3"}
    assert left_in(work) == {"box.json"}
    assert SECRET not in "".join(told)


BACKEND = """
import json
from pathlib import Path

from keyring.backend import KeyringBackend

FILE = Path(__file__).with_name("kept.json")


class Backend(KeyringBackend):
    priority = 1

    def get_password(self, service, username):
        return json.loads(FILE.read_text()).get(username) if FILE.exists() else None

    def set_password(self, service, username, password):
        FILE.write_text(json.dumps({username: password}))
"""


def test_the_program_uses_the_keyring_of_the_environment(work: Path, home: Path, smp_process: Callable[..., Ran]) -> None:
    (work / "ring").mkdir()
    (work / "ring" / "a_ring.py").write_text(BACKEND)
    env = {**os.environ, "PYTHONPATH": str(work / "ring"), "PYTHON_KEYRING_BACKEND": "a_ring.Backend"}
    ran = smp_process("cloud", "keep-credentials", "box", stdin=json.dumps(TEXTS["dropbox"]).encode(), env=env)
    assert (ran.code, ran.err) == (0, "smp: the keyring has box\n")
    assert SECRET in (work / "ring" / "kept.json").read_text()
    assert smp_process("cloud", "add", "box", "dropbox", "credentials=keyring", "--no-check", env=env).code == 0
    private = [*home.rglob("*"), *(work / "ring").rglob("*.pyc")]
    assert not [path for path in private if path.is_file() and SECRET.encode() in path.read_bytes()]
    env["PYTHON_KEYRING_BACKEND"] = "keyring.backends.null.Keyring"
    assert smp_process("cloud", "keep-credentials", "box", stdin=b"{}", env=env).code == 4
