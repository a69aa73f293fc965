"""A second reader of SMP1 containers, written from docs/format alone. It shares no code with the package.

python tests/independent_reader.py KEY_FILE CONTAINER > DATA
"""

import hashlib
import hmac
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


class BadFileError(Exception):
    pass


def need(condition, reason):
    if not condition:
        raise BadFileError(reason)


def hkdf_expand(key, info, length):
    output = block = b""
    for counter in range(1, 256):
        if len(output) >= length:
            break
        block = hmac.digest(key, block + info + bytes([counter]), "sha512")
        output += block
    return output[:length]


def read_key_file(text):
    (line,) = [line.strip().lower() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    hrp, _, tail = line.rpartition("1")
    need(hrp == "smp-secret-key-", "not a symmetric key")
    values = [BECH32.index(c) for c in tail]
    checksum = 1
    for value in [ord(c) >> 5 for c in hrp] + [0] + [ord(c) & 31 for c in hrp] + values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            checksum ^= generator if top >> i & 1 else 0
    need(checksum == 1, "wrong checksum of the key")
    number = 0
    for value in values[:-6]:
        number = number << 5 | value
    return (number >> 4).to_bytes(32, "big")  # 52 digits of 5 bits are 260 bits: 4 too many


def open_cobblestone(key, context, data):
    need(len(data) >= 56 + 16, "cut short")
    salt, commitment = data[:24], data[24:56]
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + salt + context
    derived = hkdf_expand(key, info, 76)
    need(hmac.compare_digest(derived[44:], commitment), "wrong commitment")
    base, plaintext = int.from_bytes(derived[32:44], "big"), b""
    chunks = [data[i : i + 16400] for i in range(56, len(data), 16400)]
    need(len(chunks[-1]) < 16400, "the last chunk is not short")
    for i, chunk in enumerate(chunks):
        nonce = (base ^ i).to_bytes(12, "big")
        plaintext += AESGCM(derived[:32]).decrypt(nonce, chunk, None)
    return plaintext


def read_header(data, key):
    """Return the prefix, the file key and the length of the header."""
    need(data[:8] == b"SMPENC\x00\x01", "wrong magic")
    need(data[8:12] == b"\x01\x00\x00\x00", "unknown suite, flags or reserved")
    prefix, length = data[:28], int.from_bytes(data[28:32], "big")
    need(length % 512 == 0 and 512 <= length <= 262144 and length <= len(data), "header length")
    header, mac = data[: length - 32], data[length - 32 : length]
    count, position = int.from_bytes(header[32:34], "big"), 34
    need(1 <= count <= 64, "stanza count")
    key_id = hkdf_expand(key, b"smp.v1 key id", 8)
    file_key = None
    for _ in range(count):
        kind, size = header[position], int.from_bytes(header[position + 1 : position + 3], "big")
        body = header[position + 3 : position + 3 + size]
        position += 3 + size
        need(kind != 0 and position <= len(header) and len(body) == size, "stanza")
        if kind == 1 and body[:8] == key_id and file_key is None:
            need(size == 112, "length of a key file stanza")
            file_key = open_cobblestone(key, b"smp.v1 stanza\x00" + prefix, body[8:])
    need(not any(header[position:]), "padding of the header")
    need(file_key is not None, "no stanza for this key")
    mac_key = hkdf_expand(file_key, b"smp.v1 header", 32)
    need(hmac.compare_digest(hmac.digest(mac_key, header, "sha256"), mac), "header MAC")
    return prefix, file_key, length


def read(data, key):
    """Return the original bytes and the facts in the trailer."""
    prefix, file_key, length = read_header(data, key)
    plaintext = open_cobblestone(file_key, b"smp.v1 payload\x00" + prefix, data[length:])
    need(plaintext[-4:] == b"SMT1", "trailer mark")
    text_size, block_size = int.from_bytes(plaintext[-12:-8], "big"), int.from_bytes(plaintext[-8:-4], "big")
    need(block_size % 512 == 0 and 512 <= block_size <= min(4096, len(plaintext)), "trailer size")
    need(text_size <= block_size - 12, "trailer text size")
    block = plaintext[-block_size:]
    need(not any(block[text_size:-12]), "padding of the trailer")
    facts, original = json.loads(block[:text_size]), plaintext[:-block_size]
    need(facts["size"] == len(original), "size")
    need(facts["sha256"] == hashlib.sha256(original).hexdigest(), "SHA-256")
    return original, facts


if __name__ == "__main__":
    key_path, container_path = map(Path, sys.argv[1:])
    sys.stdout.buffer.write(read(container_path.read_bytes(), read_key_file(key_path.read_text()))[0])
