"""Which keys an object may have: an allow-list, so that a key means the same in every store and never leaves its folder."""

from __future__ import annotations

import re
import unicodedata

from secure_media_processor.errors import UsageError

_MAX_KEY = 1024  # bytes of UTF-8; S3's limit, the lowest of the stores we know
_MAX_SEGMENT = 255  # bytes; what file systems allow
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f"*:<>?\\|]')
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.smp-part")  # what core/files.py may leave behind after a kill
_WINDOWS_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def check_key(key: str) -> str:
    r"""Return `key` if it is a valid object key.

    A key is one or more segments joined by ``/``. It is in Unicode NFC, has at most 1024 bytes, and no segment is empty, ``.``
    or ``..``, begins with ``.smp-``, ends in a dot or space, is a device name of Windows, or holds a control character or any
    of ``" * : < > ? \ |``. Nothing is decoded: ``%2e%2e`` is an ordinary name.

    Raises:
        UsageError: it is not; the message says why.
    """
    reason = _reason_against(key)
    if reason:
        raise UsageError(f"the object key is not allowed: {reason}", hint="keys look like folder/name")
    return key


def _reason_against(key: str) -> str | None:
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if not encoded or len(encoded) > _MAX_KEY:
        return f"it must have 1 to {_MAX_KEY} bytes"
    if unicodedata.normalize("NFC", key) != key:
        return "it is not in Unicode normal form C"
    return next((reason for segment in key.split("/") if (reason := _segment_reason(segment))), None)


def _segment_reason(segment: str) -> str | None:
    if segment in ("", ".", ".."):
        return "a segment is empty, . or .."
    if len(segment.encode()) > _MAX_SEGMENT:
        return f"a segment has more than {_MAX_SEGMENT} bytes"
    if _FORBIDDEN.search(segment):
        return "it holds a character that some store refuses"
    if segment.startswith(".smp-") or _TEMPORARY.fullmatch(segment):
        return "names that begin with .smp- are ours"
    if segment.endswith((".", " ")):
        return "a segment ends in a dot or a space"
    if _WINDOWS_DEVICES.fullmatch(segment):
        return "a segment is the name of a Windows device"
    return None
