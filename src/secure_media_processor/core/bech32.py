"""Bech32, the text form of keys: checksummed, one case, nothing that looks like something else.

BIP 173 without its limit of 90 characters, as age uses it for its keys.
"""

from __future__ import annotations

_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_LENGTH = 6


def encode(hrp: str, data: bytes) -> str:
    """Return `data` as lower-case Bech32 under the human-readable part `hrp`."""
    values = _regroup(data, 8, 5, pad=True)
    polymod = _polymod([*_expand(hrp), *values, *[0] * _CHECKSUM_LENGTH]) ^ 1
    checksum = [(polymod >> 5 * (5 - i)) & 31 for i in range(_CHECKSUM_LENGTH)]
    return hrp + "1" + "".join(_ALPHABET[v] for v in [*values, *checksum])


def decode(text: str) -> tuple[str, bytes]:
    """Return the human-readable part (lower case) and the bytes of `text`.

    Raises:
        ValueError: mixed case, a foreign character, a wrong checksum or bits left over. The message never holds the text.
    """
    if text not in (text.lower(), text.upper()):
        raise ValueError("mixed case")
    hrp, separator, tail = text.lower().rpartition("1")
    if not separator or not hrp or len(tail) < _CHECKSUM_LENGTH:
        raise ValueError("no separator")
    if any(not "!" <= c <= "~" for c in hrp) or any(c not in _ALPHABET for c in tail):
        raise ValueError("a character that does not belong there")
    values = [_ALPHABET.index(c) for c in tail]
    if _polymod([*_expand(hrp), *values]) != 1:
        raise ValueError("wrong checksum")
    return hrp, bytes(_regroup(values[:-_CHECKSUM_LENGTH], 5, 8, pad=False))


def _polymod(values: list[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate(_GENERATOR):
            checksum ^= generator if (top >> i) & 1 else 0
    return checksum


def _expand(hrp: str) -> list[int]:
    return [*(ord(c) >> 5 for c in hrp), 0, *(ord(c) & 31 for c in hrp)]


def _regroup(values: bytes | list[int], width_in: int, width_out: int, *, pad: bool) -> list[int]:
    """Cut a stream of `width_in`-bit values into `width_out`-bit values."""
    accumulator = bits = 0
    out = []
    for value in values:
        accumulator = (accumulator << width_in) | value
        bits += width_in
        while bits >= width_out:
            bits -= width_out
            out.append((accumulator >> bits) & ((1 << width_out) - 1))
        accumulator &= (1 << bits) - 1
    if pad and bits:
        out.append((accumulator << (width_out - bits)) & ((1 << width_out) - 1))
    elif not pad and (bits >= width_in or accumulator):
        raise ValueError("bits left over")
    return out
