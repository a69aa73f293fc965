"""How the golden files were made. They are kept for ever: this adds files that are missing and never changes one.

    python tests/vectors/generate.py

Keys and file keys in here are public; they protect nothing. Random parts (file ids, salts) were drawn when a file was made.
"""

import io
import json
from hashlib import sha256
from pathlib import Path

from secure_media_processor.core.container import Original, Stanza
from secure_media_processor.core.encryption import _encrypt, encrypt_stream
from secure_media_processor.core.keys import SymmetricKey

HERE = Path(__file__).parent
KEY = SymmetricKey(sha256(b"smp test vectors, key 1").digest())
OTHER_KEY = SymmetricKey(sha256(b"smp test vectors, key 2").digest())
CHUNK = 16384


def data(size: int) -> bytes:
    """Return `size` bytes that anybody can make again: SHA-256 of 0, 1, 2 …, each as a u64."""
    blocks = (sha256(i.to_bytes(8, "big")).digest() for i in range(size // 32 + 1))
    return b"".join(blocks)[:size]


class Unknown:
    """A recipient of a kind that version 1 does not define."""

    def __init__(self, kind: int, size: int) -> None:
        self.kind, self.size = kind, size

    def wrap(self, file_key: bytes, prefix: bytes) -> Stanza:
        return Stanza(self.kind, data(self.size))


def container(size: int, *recipients, facts: Original | None = None) -> bytes:
    output = io.BytesIO()
    if facts is None:
        encrypt_stream(io.BytesIO(data(size)), output, recipients or [KEY])
    else:
        _encrypt(io.BytesIO(data(size)), output, recipients or [KEY], facts, None)
    return output.getvalue()


def flipped(raw: bytes, position: int) -> bytes:
    return raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]


def good() -> dict[str, tuple[int, bytes]]:
    named = Original(0, "", name="späť 01.dcm", mtime_ns=1_700_000_000_123_456_789, media_type="application/dicom")
    return {
        "empty": (0, container(0)),
        "small": (100, container(100, facts=named)),
        "last-chunk-empty": (CHUNK - 512, container(CHUNK - 512)),
        "trailer-across-chunks": (CHUNK - 100, container(CHUNK - 100)),
        "three-chunks": (40_000, container(40_000)),
        "two-keys": (1_000, container(1_000, OTHER_KEY, KEY)),
        "unknown-recipients": (1_000, container(1_000, Unknown(2, 0), Unknown(255, 700), KEY)),
        "64-recipients": (10, container(10, *[Unknown(77, 30)] * 63, KEY)),
        "long-name": (10, container(10, facts=Original(0, "", name="n" * 600))),
    }


def bad() -> dict[str, tuple[str, bytes]]:
    raw = container(20_000)
    swapped = container(40_000)
    start = 512 + 56
    first, second = swapped[start : start + CHUNK + 16], swapped[start + CHUNK + 16 : start + 2 * (CHUNK + 16)]
    return {
        "bad-empty": ("SMP-NOT-ENCRYPTED", b""),
        "bad-magic": ("SMP-NOT-ENCRYPTED", flipped(raw, 3)),
        "bad-suite": ("SMP-UNSUPPORTED", flipped(raw, 8)),
        "bad-flags": ("SMP-UNSUPPORTED", flipped(raw, 9)),
        "bad-header-length": ("SMP-HEADER-DAMAGED", flipped(raw, 31)),
        "bad-file-id": ("SMP-HEADER-DAMAGED", flipped(raw, 15)),
        "bad-wrapped-key": ("SMP-HEADER-DAMAGED", flipped(raw, 100)),
        "bad-padding": ("SMP-HEADER-DAMAGED", flipped(raw, 300)),
        "bad-mac": ("SMP-HEADER-DAMAGED", flipped(raw, 500)),
        "bad-other-key": ("SMP-WRONG-KEY", container(10, OTHER_KEY)),
        "bad-commitment": ("SMP-PAYLOAD-DAMAGED", flipped(raw, 512 + 30)),
        "bad-chunk": ("SMP-PAYLOAD-DAMAGED", flipped(raw, 1_000)),
        "bad-last-chunk": ("SMP-PAYLOAD-DAMAGED", flipped(raw, len(raw) - 100)),
        "bad-chunks-swapped": ("SMP-PAYLOAD-DAMAGED", swapped[:start] + second + first + swapped[start + 2 * (CHUNK + 16) :]),
        "bad-cut-in-header": ("SMP-TRUNCATED", raw[:200]),
        "bad-cut-at-chunk": ("SMP-TRUNCATED", raw[: start + CHUNK + 16]),
        "bad-cut-in-chunk": ("SMP-TRUNCATED", raw[:-1]),
        "bad-trailing": ("SMP-TRAILING-DATA", raw + b"x"),
    }


def main() -> None:
    index_path = HERE / "index.json"
    index = json.loads(index_path.read_text()) if index_path.exists() else {}
    key_file = HERE / "vectors.key"
    if not key_file.exists():
        KEY.save(key_file)
    for name, (size, raw) in good().items():
        if name not in index:
            (HERE / f"{name}.smp").write_bytes(raw)
            index[name] = {"size": size, "sha256": sha256(data(size)).hexdigest()}
    for name, (code, raw) in bad().items():
        if name not in index:
            (HERE / f"{name}.smp").write_bytes(raw)
            index[name] = {"code": code}
    index_path.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
