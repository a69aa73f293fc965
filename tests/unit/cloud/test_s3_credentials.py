"""What S3 and the AWS settings say of credentials, and which errors come of it. No request leaves the process."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from secure_media_processor.cloud.connectors.s3 import S3Access, S3Connector
from secure_media_processor.errors import CredentialsError, SmpError, TransientError, UsageError

SECRET = "s3cret-5b02aa"  # noqa: S105 - of nobody
ENDPOINT = "http://127.0.0.1:9"
PAIR = S3Access(aws_access_key_id="public", aws_secret_access_key=SECRET)


class _Raw(io.BytesIO):
    def stream(self, *_args: object, **_options: object) -> Iterator[bytes]:
        yield self.read()


def answering(status: int, code: str, access: S3Access | None = PAIR) -> S3Connector:
    """Return a store whose server gives one answer to everything."""
    connector = S3Connector("bucket", endpoint_url=ENDPOINT, access=access)

    def answer(request: Any, **_options: object) -> AWSResponse:
        body = "" if request.method == "HEAD" else f"<Error><Code>{code}</Code><Message>{SECRET}</Message></Error>"
        return AWSResponse(request.url, status, {}, _Raw(body.encode()))

    connector._client.meta.events.register("before-send.s3", answer)
    return connector


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "ExpiredToken"),
        (400, "ExpiredTokenException"),
        (400, "RequestExpired"),
        (400, "TokenRefreshRequired"),
        (400, "InvalidToken"),
        (403, "ExpiredToken"),
        (403, "InvalidAccessKeyId"),
    ],
)
def test_a_session_that_has_expired(status: int, code: str) -> None:
    store = answering(status, code)
    acts: tuple[Callable[[], object], ...] = (
        lambda: store.put("a", [b"x"]),
        lambda: store.put("a", [bytes(9 << 20)]),
        lambda: list(store.get("a")),
        lambda: list(store.list()),
        lambda: store.stat("a"),
        lambda: store.delete("a"),
        lambda: store.native_digest("a"),
    )
    for act in acts:
        with pytest.raises(CredentialsError) as caught:
            act()
        assert not caught.value.retryable
        assert SECRET not in "".join(traceback.format_exception(caught.value)) + str(caught.value.hint)


def test_another_400_is_no_matter_of_credentials() -> None:
    store = answering(400, "MalformedXML")
    with pytest.raises(UsageError):
        list(store.list())


def configured(home: Path, text: str) -> None:
    (home / ".aws").mkdir(exist_ok=True)
    (home / ".aws" / "config").write_text(text)


PRINTS = {
    "no JSON": f"print('{SECRET}')",
    "a list": "print('[]')",
    "another version": """print('{"Version": 2}')""",
    "half": """print('{"Version": 1, "AccessKeyId": "x"}')""",
    "nothing": f"import sys; sys.exit('{SECRET}')",
}


@pytest.mark.parametrize("program", PRINTS.values(), ids=PRINTS)
def test_a_program_that_gives_no_credentials(home: Path, work: Path, program: str) -> None:
    (work / "program.py").write_text(program)
    configured(home, f"[default]\ncredential_process = {sys.executable} {work / 'program.py'}\n")
    with pytest.raises(CredentialsError) as caught:
        S3Connector("bucket", endpoint_url=ENDPOINT)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


SETTINGS = {
    "a program that is not there": "[default]\ncredential_process = /nonexistent/program\n",
    "half a key pair": "[default]\naws_access_key_id = x\n",
    "a login that never was": (
        "[default]\nsso_session = s\nsso_account_id = 1\nsso_role_name = r\nregion = us-east-1\n"
        "[sso-session s]\nsso_region = us-east-1\nsso_start_url = https://sso.invalid\n"
    ),
    "a role of a profile that is not there": "[default]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = nobody\n",
    "roles in a circle": (
        "[default]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = b\n[profile b]\nrole_arn = x\nsource_profile = default\n"
    ),
}


@pytest.mark.parametrize("text", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_give_no_credentials(home: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """On AWS: with an endpoint of one's own most of these are not asked."""
    configured(home, text)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(CredentialsError) as caught:
        S3Connector("bucket").stat("a")
    assert not caught.value.retryable


def test_a_profile_that_is_not_there_or_has_nothing(home: Path) -> None:
    configured(home, "[profile empty]\nregion = us-east-1\n")
    for profile in ("nobody", "empty"):
        with pytest.raises(CredentialsError):
            S3Connector("bucket", endpoint_url=ENDPOINT, profile=profile).stat("a")


def test_who_gives_credentials_may_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """That passes, so it is no matter for whoever looks after the credentials."""
    from botocore.exceptions import ConnectTimeoutError  # noqa: PLC0415 - only here

    store = answering(200, "")

    def renew() -> None:
        raise ConnectTimeoutError(endpoint_url=f"http://{SECRET}")

    monkeypatch.setattr(store._client._request_signer._credentials, "get_frozen_credentials", renew)
    with pytest.raises(TransientError) as caught:
        store.stat("a")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("error", [ValueError(SECRET), RuntimeError(SECRET), FileNotFoundError(SECRET)], ids=repr)
def test_credentials_that_cannot_be_renewed(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A program that gave some, and fails when they have run out, is not the server's fault."""
    store = answering(200, "")

    def renew() -> None:
        raise error

    monkeypatch.setattr(store._client._request_signer._credentials, "get_frozen_credentials", renew)
    with pytest.raises(CredentialsError) as caught:
        store.stat("a")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "pair",
    [
        {},
        {"aws_access_key_id": "a"},
        {"aws_secret_access_key": SECRET},
        {"aws_access_key_id": "a", "aws_secret_access_key": f"{SECRET}\n"},
    ],
)
def test_a_key_pair_that_is_none(pair: dict[str, str]) -> None:
    with pytest.raises(CredentialsError) as caught:
        S3Access(**pair)
    assert SECRET not in str(caught.value)


def test_a_key_pair_is_shown_by_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "secure_media_processor")
    store = answering(403, "AccessDenied")
    with pytest.raises(SmpError) as caught:
        store.stat("a")
    assert SECRET not in f"{PAIR} {store!r} {caught.value!r} {caplog.text}"


@pytest.mark.parametrize("value", ["true", "TRUE"])
def test_an_endpoint_that_is_to_be_ignored(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """AWS is not spoken to in place of it; an endpoint of the connector's own is not in question."""
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", value)
    assert S3Connector("bucket", endpoint_url=ENDPOINT, access=PAIR)._client.meta.endpoint_url == ENDPOINT
    assert S3Connector("bucket", access=PAIR)._client.meta.endpoint_url.endswith("amazonaws.com")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere.invalid")
    assert S3Connector("bucket", endpoint_url=ENDPOINT, access=PAIR)._client.meta.endpoint_url == ENDPOINT
    with pytest.raises(UsageError, match="ignored"):
        S3Connector("bucket", access=PAIR)
