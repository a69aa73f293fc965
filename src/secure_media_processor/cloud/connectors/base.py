"""The contract of a store.

Whoever writes a connector implements the methods marked abstract and runs the suite in cloud/testing.py over it. The rules:

* Errors are raised, from the tree in errors.py; ``retryable`` on the error says whether the same call may succeed later.
  A connector does not retry a call: that, limits and logs are wrapped around it (wrappers.py). Within a put, whose source
  can be read only once, it may repeat a request a few times.
* After a TransientError from put the object may be there all the same: the answer may have been lost. native_digest tells.
* An object is there completely or not at all: a put that fails, or whose process dies, leaves nothing under the key, and the
  old object if there was one.
* Keys are checked with paths.check_key before anything is sent.
* A connector may be used by several threads at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from secure_media_processor.cloud.digests import Digester, Digests, refuse_other
from secure_media_processor.core.files import COPY_BLOCK, atomic_write, open_source, os_errors
from secure_media_processor.errors import SmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do: data, to be asked before acting."""

    native_digests: frozenset[str]
    """Digests that native_digest may give, by their names in cloud/digests.py. It gives at least one of them."""
    atomic_create: bool
    """Whether put with if_absent is safe against another writer at the same moment."""
    digests_are_stored: bool
    """Whether native_digest answers from what the store recorded, without reading the object."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of an object."""

    key: str
    size: int
    """Bytes."""


class ResumeRecord(Protocol):
    """Where a put keeps what it must know to go on with an upload that was cut off."""

    def load(self) -> Mapping[str, str]:
        """Return what was saved last; empty if nothing was."""

    def save(self, state: Mapping[str, str]) -> None:
        """Keep `state`, a few short texts such as the id of an upload session. It is safe on disk on return."""


class CloudConnector(ABC):
    """One store."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this store can do. Asks nobody."""

    @abstractmethod
    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,
    ) -> ObjectInfo:
        """Store the bytes of `source` under `key`. Not retried by the caller unless `source` can be made anew.

        Args:
            key: See paths.check_key.
            source: Blocks of any size, read once.
            digests: What the object must hash to. It is refused, and nothing stored, if it does not.
            if_absent: Refuse if the key is taken; otherwise replace.
            resume: With it, an upload that is cut off (a retryable error, the death of the process) may leave what it has sent
                with the store, and a later put of the same bytes under the same key with the same record sends only what is
                missing. That the bytes are the same is the caller's promise. After any other error, and when the object is
                complete, nothing is left and the record is empty; what cannot be removed then, because a token has expired
                for instance, stays in it. A connector may ignore it (settled does this for one that does not).

        Raises:
            ExistsError: the key is taken. Permanent.
            IntegrityError: `digests` do not fit. Permanent.
            NoSpaceError: the store is full. Permanent.
            CredentialsError: not allowed. Permanent.
            TransientError: the store does not answer.
        """

    @abstractmethod
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object from `offset` on, `length` of them at most. They are not verified.

        Idempotent. Raises MissingError (permanent), CredentialsError (permanent) or TransientError, on the first step or later.
        """

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo:
        """Return what the store knows of an object. Idempotent. Raises MissingError, CredentialsError or TransientError."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object. Raises MissingError if it is not there, CredentialsError or TransientError."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with `prefix`, in order of key.

        Page by page as they are asked for, where the store lists in that order; where it does not, all pages are read first.
        Idempotent. Raises CredentialsError or TransientError: never an empty list for a failure.
        """

    @abstractmethod
    def native_digest(self, key: str) -> Digests:
        """Return the hashes by which the store can prove what it holds now. Idempotent. Raises as stat."""

    def discard(self, key: str, resume: ResumeRecord) -> None:  # noqa: ARG002 - not every store can take an upload back
        """Give up the upload of `key` that `resume` tells of, for good. Idempotent. Raises CredentialsError or TransientError.

        A store that keeps unfinished uploads removes it, if it can; the base class only empties the record.
        """
        resume.save({})

    def close(self) -> None:  # noqa: B027 - most connectors have something to drop, and one that has not need not say so
        """Drop connections and credentials. The connector is not used after that. The base class has none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def upload_file(self, path: Path | str, key: str, *, if_absent: bool = True) -> ObjectInfo:
        """Store the file `path`, as it is, under `key`. Raises as put, and MissingError or FileAccessError for `path`."""
        return self.put(key, FileBlocks(Path(path)), if_absent=if_absent)

    def download_file(
        self, key: str, path: Path | str, *, digests: Mapping[str, str] | None = None, overwrite: bool = False
    ) -> None:
        """Write the object `key` to the new file `path`, which appears when complete and, with `digests`, verified.

        Raises as get and atomic_write, and IntegrityError if one of `digests` does not fit.
        """
        digester = Digester(digests or ())
        with atomic_write(Path(path), overwrite=overwrite) as file:
            for block in self.get(key):
                digester.update(block)
                file.write(block)
            refuse_other(digester.hexdigests(), digests)

    def delete_file(self, key: str) -> None:
        """Remove the object `key`; see delete."""
        self.delete(key)

    def list_files(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with `prefix`; see list."""
        return self.list(prefix)


@contextmanager
def settled(resume: ResumeRecord | None, give_up: Callable[[], object]) -> Iterator[None]:
    """Settle what a put leaves when it ends, as its contract has it: the block is the put.

    A later put can only take up what stands in `resume`, and only if it could fare better. In all other cases `give_up` removes
    what was sent; it may raise an SmpError if it cannot. An error of the block comes through.
    """
    try:
        yield
    except BaseException as error:
        is_final = isinstance(error, SmpError) and not error.retryable
        if is_final or resume is None or not resume.load():
            with suppress(SmpError):  # the error of the block says more
                give_up()
                clear(resume)
        raise
    clear(resume)


def clear(resume: ResumeRecord | None) -> None:
    """Empty `resume`, if there is one that is not empty."""
    if resume is not None and resume.load():
        resume.save({})


@dataclass(frozen=True, slots=True)
class FileBlocks:
    """A file as a source for put that can be read again, and so be tried again."""

    path: Path

    def __iter__(self) -> Iterator[bytes]:
        return read_blocks(self.path)


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yield the file `path` in blocks. Raises MissingError or FileAccessError."""
    with open_source(path) as file:
        while True:
            with os_errors(f"read {path}"):
                block = file.read(COPY_BLOCK)
            if not block:
                return
            yield block
