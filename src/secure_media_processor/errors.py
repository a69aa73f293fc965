"""Every error that this package raises on purpose.

::

    SmpError                     SMP-ERROR             exit 1
    ├── FileAccessError          SMP-FILE-ACCESS            1
    ├── ImageError               SMP-IMAGE                  1
    ├── ModelError               SMP-MODEL                  1
    ├── SourceChangedError       SMP-SOURCE-CHANGED         1
    ├── UsageError               SMP-USAGE                  2
    │   ├── SameFileError        SMP-SAME-FILE              2
    │   └── ConfigError          SMP-CONFIG                 2
    ├── PartialError             SMP-PARTIAL                3
    ├── CredentialsError         SMP-CREDENTIALS            4
    │   ├── KeyMissingError      SMP-KEY-MISSING            4
    │   ├── KeyExposedError      SMP-KEY-EXPOSED            4
    │   └── KeyDamagedError      SMP-KEY-DAMAGED            4
    ├── IntegrityError           SMP-INTEGRITY              6
    │   ├── NotEncryptedError    SMP-NOT-ENCRYPTED          6
    │   ├── UnsupportedError     SMP-UNSUPPORTED            6
    │   ├── HeaderDamagedError   SMP-HEADER-DAMAGED         6
    │   ├── WrongKeyError        SMP-WRONG-KEY              6
    │   ├── PayloadDamagedError  SMP-PAYLOAD-DAMAGED        6
    │   ├── TruncatedError       SMP-TRUNCATED              6
    │   ├── TrailingDataError    SMP-TRAILING-DATA          6
    │   ├── ChecksumError        SMP-CHECKSUM-MISMATCH      6
    │   ├── AuditDamagedError    SMP-AUDIT-DAMAGED          6
    │   ├── ObjectLostError      SMP-OBJECT-LOST            6
    │   └── IdentityLeftError    SMP-IDENTITY-LEFT          6
    ├── MissingError             SMP-NOT-FOUND              7
    ├── ExistsError              SMP-EXISTS                 8
    ├── DegradedError            SMP-DEGRADED               9
    ├── MissingExtraError        SMP-MISSING-EXTRA         10
    ├── TransientError           SMP-TRANSIENT             11
    │   ├── StoreAbsentError     SMP-STORE-ABSENT          11
    │   ├── RateLimitError       SMP-RATE-LIMIT            11
    │   ├── ThrottledError       SMP-THROTTLED             11
    │   └── QuorumError          SMP-QUORUM                11
    └── NoSpaceError             SMP-NO-SPACE              12

An error says what happened and why in one line, and `hint` names the next command or step. Neither ever holds a secret, a
value of a patient's record or a line of code. `code` and `exit_code` are stable: scripts may rely on them.
"""

from __future__ import annotations

from typing import ClassVar


class SmpError(Exception):
    """Something went wrong that none of the other codes describes.

    Attributes:
        code: Stable name of the kind of error, with an entry in docs/reference/errors.md.
        exit_code: What the command line returns for it.
        retryable: Whether the same call may succeed later without any change.
        hint: The next step for this occurrence, or the one that fits the whole class.
    """

    code: ClassVar[str] = "SMP-ERROR"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = self.default_hint if hint is None else hint


class FileAccessError(SmpError):
    """A file or folder cannot be read or written: no permission, a read-only disk, a folder where a file belongs."""

    code = "SMP-FILE-ACCESS"


class ImageError(SmpError):
    """An image is damaged, of a kind that is not supported, or not what the command needs; what is wrong with it is named."""

    code = "SMP-IMAGE"


class ModelError(SmpError):
    """A model package is damaged, holds what it must not, or does not fit the images or what is asked of it."""

    code = "SMP-MODEL"


class SourceChangedError(SmpError):
    """A file was changed while it was read: what was read may be half old and half new. Nothing was kept of it."""

    code = "SMP-SOURCE-CHANGED"
    default_hint = "run the same command again when nothing writes to the file"


class UsageError(SmpError):
    """The command or call does not make sense as given."""

    code = "SMP-USAGE"
    exit_code = 2


class SameFileError(UsageError):
    """Input and output are one file, perhaps under two names. Nothing was written."""

    code = "SMP-SAME-FILE"
    default_hint = "name another output with -o"


class ConfigError(UsageError):
    """A setting is unknown, has a value of the wrong type, or its file cannot be trusted."""

    code = "SMP-CONFIG"
    default_hint = "`smp config show` lists every setting with its value and where it came from"


class PartialError(SmpError):
    """Some items failed and the others are done. The failed ones are listed."""

    code = "SMP-PARTIAL"
    exit_code = 3


class CredentialsError(SmpError):
    """A key or an access token is missing or not accepted."""

    code = "SMP-CREDENTIALS"
    exit_code = 4


class KeyMissingError(CredentialsError):
    """There is no key to work with: none in the keystore, or the named file does not exist."""

    code = "SMP-KEY-MISSING"
    default_hint = "make one with `smp key generate`, or name one with --key FILE"


class KeyExposedError(CredentialsError):
    """A key file or the keystore can be read by other users of this machine, so it is not used."""

    code = "SMP-KEY-EXPOSED"


class KeyDamagedError(CredentialsError):
    """A key file does not hold a key: wrong checksum, wrong kind, or no key line at all."""

    code = "SMP-KEY-DAMAGED"
    default_hint = "restore the key file from its copy; the key in it cannot be guessed"


class IntegrityError(SmpError):
    """Data is not what it was when it was written. Nothing was written from it."""

    code = "SMP-INTEGRITY"
    exit_code = 6
    default_hint = "fetch the file again from another copy"


class NotEncryptedError(IntegrityError):
    """The file was not written by `smp encrypt`: it is empty or has another magic number."""

    code = "SMP-NOT-ENCRYPTED"
    default_hint = "check that this is the right file; `smp encrypt` writes names that end in .smp"


class UnsupportedError(IntegrityError):
    """The file was written by a newer version, in a format that this version does not know."""

    code = "SMP-UNSUPPORTED"
    default_hint = "install a newer secure-media-processor"


class HeaderDamagedError(IntegrityError):
    """The header of an encrypted file was changed: its authentication code does not fit."""

    code = "SMP-HEADER-DAMAGED"


class WrongKeyError(IntegrityError):
    """The file was encrypted for other keys than those at hand. The ids of its keys are listed."""

    code = "SMP-WRONG-KEY"
    default_hint = "`smp key list` shows the keys at hand; pass another with --key FILE"


class PayloadDamagedError(IntegrityError):
    """The encrypted data was changed. The byte where the damage lies is given."""

    code = "SMP-PAYLOAD-DAMAGED"


class TruncatedError(IntegrityError):
    """The encrypted file ends too early: it was cut, or an upload or copy did not finish."""

    code = "SMP-TRUNCATED"


class TrailingDataError(IntegrityError):
    """Bytes follow the end of the encrypted data. The byte where they begin is given."""

    code = "SMP-TRAILING-DATA"


class ChecksumError(IntegrityError):
    """The data decrypts, yet its size or SHA-256 is not the one recorded when it was encrypted."""

    code = "SMP-CHECKSUM-MISMATCH"


class AuditDamagedError(IntegrityError):
    """The audit log was changed: its chain of hashes breaks at the record named."""

    code = "SMP-AUDIT-DAMAGED"
    default_hint = "keep the file as it is for examination, and compare it with your last exported head"


class ObjectLostError(IntegrityError):
    """No store holds an intact copy of the object any more."""

    code = "SMP-OBJECT-LOST"
    default_hint = "store the original again; ConnectorManager.verify shows what each store holds"


class IdentityLeftError(IntegrityError):
    """A de-identified file does not keep to its profile: something of the original is left, or its pixels were changed."""

    code = "SMP-IDENTITY-LEFT"
    default_hint = "do not pass the files on; `--json` lists each file with its places"


class MissingError(SmpError):
    """A file, folder or stored object does not exist."""

    code = "SMP-NOT-FOUND"
    exit_code = 7


class ExistsError(SmpError):
    """The output exists already and was left as it was."""

    code = "SMP-EXISTS"
    exit_code = 8
    default_hint = "name another output with -o, or pass --force to replace it"


class DegradedError(SmpError):
    """Enough stores hold the object, yet not all: a repair is pending."""

    code = "SMP-DEGRADED"
    exit_code = 9
    default_hint = "repair it when the missing store is back"


class MissingExtraError(SmpError):
    """An optional part of the installation, or a device, is needed and not there."""

    code = "SMP-MISSING-EXTRA"
    exit_code = 10


class TransientError(SmpError):
    """Something outside failed that may work in a moment: try again."""

    code = "SMP-TRANSIENT"
    exit_code = 11
    retryable = True


class StoreAbsentError(TransientError):
    """The folder of a store is not there: a disk that is not mounted, or a share that is not connected."""

    code = "SMP-STORE-ABSENT"
    default_hint = "mount the disk, or connect the share; `smp cloud status` tells whether it is there"


class RateLimitError(TransientError):
    """The time allowed for waiting was not enough to get a turn within the rate limit."""

    code = "SMP-RATE-LIMIT"


class ThrottledError(TransientError):
    """A provider asks for fewer requests. Asking again after the pause that it named succeeds."""

    code = "SMP-THROTTLED"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds to wait, if the provider said so."""


class QuorumError(TransientError):
    """Too few stores took the object. What had been written to the others was removed again."""

    code = "SMP-QUORUM"
    default_hint = "see which stores answer, then run the same command again"


class NoSpaceError(SmpError):
    """A disk, or the quota on it, is full. The unfinished output was removed."""

    code = "SMP-NO-SPACE"
    exit_code = 12
    default_hint = "free some space or write elsewhere with -o, then run the same command again"
