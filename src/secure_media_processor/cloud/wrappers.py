"""What every store needs and no connector should hold: patience, a speed limit, a rehearsal, a record.

Each wrapper is a connector around a connector, so they combine in any order::

    requests, bandwidth = RateLimiter(10, 20), RateLimiter(5_000_000, 5_000_000)
    store = Retrying(Paced(S3Connector("backup", before_request=requests.acquire), bandwidth), limiter=requests)

The limit on requests is not a wrapper: a connector counts its HTTP requests by itself and asks before each
(``before_request``), since only it knows how many a call takes.
"""

from __future__ import annotations

import random
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, TypeVar, Unpack

from secure_media_processor.cloud.connectors.base import CloudConnector, ObjectInfo
from secure_media_processor.cloud.digests import Digester, refuse_other
from secure_media_processor.cloud.paths import check_key
from secure_media_processor.errors import ExistsError, IntegrityError, MissingError, SmpError, StoreAbsentError, ThrottledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from secure_media_processor.cloud.connectors.base import Capabilities, ResumeRecord
    from secure_media_processor.cloud.digests import Digests
    from secure_media_processor.core.audit import AuditLog
    from secure_media_processor.core.rate_limiter import RateLimiter

_T = TypeVar("_T")


class PutOptions(TypedDict, total=False):
    """The options of CloudConnector.put, which most wrappers only pass on."""

    digests: Mapping[str, str] | None
    if_absent: bool
    resume: ResumeRecord | None


class Wrapper(CloudConnector):
    """Passes everything on to another connector; the base of the wrappers below."""

    def __init__(self, inner: CloudConnector) -> None:
        self._inner = inner

    @property
    def capabilities(self) -> Capabilities:
        """Those of the connector within."""
        return self._inner.capabilities

    def put(self, key: str, source: Iterable[bytes], **options: Unpack[PutOptions]) -> ObjectInfo:
        """Store an object; see CloudConnector."""
        return self._inner.put(key, source, **options)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object; see CloudConnector."""
        return self._inner.get(key, offset=offset, length=length)

    def stat(self, key: str) -> ObjectInfo:
        """Return what the store knows of an object; see CloudConnector."""
        return self._inner.stat(key)

    def delete(self, key: str) -> None:
        """Remove an object; see CloudConnector."""
        self._inner.delete(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with `prefix`; see CloudConnector."""
        return self._inner.list(prefix)

    def native_digest(self, key: str) -> Digests:
        """Return the digests that the store reports; see CloudConnector."""
        return self._inner.native_digest(key)

    def discard(self, key: str, resume: ResumeRecord) -> None:
        """Give up an upload; see CloudConnector."""
        self._inner.discard(key, resume)

    def close(self) -> None:
        """Close the connector within."""
        self._inner.close()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on trying.

    The pause before try n + 1 is drawn between 0 and min(longest, first · 2ⁿ⁻¹): "full jitter", so that many clients that
    failed together do not come back together.
    """

    deadline: float = 300.0
    """Seconds from the first try after which none is begun."""
    first: float = 0.5
    """Seconds."""
    longest: float = 30.0
    """Seconds."""


class Retrying(Wrapper):
    """Repeats what failed for a reason that may pass (``retryable``), until it works or the deadline comes. Nothing else.

    What a provider asks for (Retry-After) is waited for in full, by everybody who shares the limiter.
    """

    def __init__(
        self,
        inner: CloudConnector,
        patience: Patience | None = None,
        *,
        limiter: RateLimiter | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wrap `inner`.

        Args:
            inner: The store.
            patience: How long to go on; five minutes unless given.
            limiter: The one whose `acquire` the store calls before each request; it is told of Retry-After.
            clock: Seconds, never running backwards.
            sleep: Waits for that many seconds on `clock`.
        """
        super().__init__(inner)
        self._patience = patience or Patience()
        self._limiter, self._clock, self._sleep = limiter, clock, sleep

    def put(self, key: str, source: Iterable[bytes], **options: Unpack[PutOptions]) -> ObjectInfo:
        """Store an object; see CloudConnector. A `source` that can be read only once, such as a generator, gets one try.

        If an answer was lost, a later try finds the key taken. Then the object is compared by digest: if it is this one, it has
        been stored.
        """
        if iter(source) is source:
            return self._inner.put(key, source, **options)
        tries = 0

        def attempt() -> ObjectInfo:
            nonlocal tries
            tries += 1
            try:
                return self._inner.put(key, source, **options)
            except ExistsError:
                if tries == 1 or not self._holds(key, source):
                    raise
                return self._inner.stat(key)

        return self._until_it_works(attempt)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object; see CloudConnector. A transfer that breaks goes on where it broke."""
        pace = self._pace()
        done = 0
        while length is None or done < length:
            before = done
            try:
                for block in self._inner.get(key, offset=offset + done, length=None if length is None else length - done):
                    done += len(block)
                    yield block
            except SmpError as error:
                if done > before:
                    pace = self._pace()  # it moves: the patience is for standing still
                self._wait_after(error, pace)
            else:
                return

    def stat(self, key: str) -> ObjectInfo:
        """Return what the store knows of an object; see CloudConnector."""
        return self._until_it_works(lambda: self._inner.stat(key))

    def delete(self, key: str) -> None:
        """Remove an object; see CloudConnector. If an answer was lost, a later try finds it gone: that is what was wanted."""
        tries = 0

        def attempt() -> None:
            nonlocal tries
            tries += 1
            try:
                self._inner.delete(key)
            except MissingError:
                if tries == 1:
                    raise

        self._until_it_works(attempt)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with `prefix`; see CloudConnector. What breaks goes on after the last key."""
        pace, last = self._pace(), ""
        while True:
            try:
                for info in self._inner.list(prefix):
                    if info.key > last:
                        last = info.key
                        pace = self._pace()
                        yield info
            except SmpError as error:
                self._wait_after(error, pace)
            else:
                return

    def native_digest(self, key: str) -> Digests:
        """Return the digests that the store reports; see CloudConnector."""
        return self._until_it_works(lambda: self._inner.native_digest(key))

    def _holds(self, key: str, source: Iterable[bytes]) -> bool:
        """Return whether the object `key` is the one that `source` gives."""
        found = self._inner.native_digest(key)
        digester = Digester(found)
        for block in source:
            digester.update(block)
        try:
            refuse_other(digester.hexdigests(), found)
        except IntegrityError:
            return False
        return True

    def _until_it_works(self, attempt: Callable[[], _T]) -> _T:
        pace = self._pace()
        while True:
            try:
                return attempt()
            except SmpError as error:
                self._wait_after(error, pace)

    def _pace(self) -> Iterator[float]:
        """Yield the pauses between tries; ends when the next try would come after the deadline."""
        end = self._clock() + self._patience.deadline
        longest = self._patience.first
        while True:
            pause = random.uniform(0, longest)  # noqa: S311 - to spread load, not to hide anything
            if self._clock() + pause >= end:
                return
            yield pause
            longest = min(self._patience.longest, longest * 2)

    def _wait_after(self, error: SmpError, pace: Iterator[float]) -> None:
        """Wait before the next try; raise `error` if there is to be none."""
        soon = error.retryable and not isinstance(error, StoreAbsentError)
        pause = next(pace, None) if soon else None
        if pause is None:
            raise error
        if isinstance(error, ThrottledError) and error.retry_after is not None:
            pause = max(pause, min(error.retry_after, self._patience.deadline))
            if self._limiter is not None:
                self._limiter.penalize(pause)
        self._sleep(pause)


class Paced(Wrapper):
    """Sends and receives no faster than a limiter lets it, all calls together."""

    def __init__(self, inner: CloudConnector, limiter: RateLimiter) -> None:
        """Wrap `inner`. A token of `limiter` is a byte; several stores may share one."""
        super().__init__(inner)
        self._limiter = limiter

    def put(self, key: str, source: Iterable[bytes], **options: Unpack[PutOptions]) -> ObjectInfo:
        """Store an object; see CloudConnector."""
        paced = _PacedSource(source, self._limiter)
        # What can be read only once must not look as if it could be read again.
        blocks = iter(paced) if iter(source) is source else paced
        return self._inner.put(key, blocks, **options)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object; see CloudConnector."""
        return iter(_PacedSource(self._inner.get(key, offset=offset, length=length), self._limiter))


class _PacedSource:
    """Blocks that come no faster than a limiter lets them; as often as the blocks within can be read."""

    def __init__(self, blocks: Iterable[bytes], limiter: RateLimiter) -> None:
        self._blocks, self._limiter = blocks, limiter

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            if block:
                self._limiter.acquire(len(block))
            yield block


class Rehearsing(Wrapper):
    """Reads from the store and changes nothing in it: what would be written or removed is told instead (``--dry-run``)."""

    def __init__(self, inner: CloudConnector, tell: Callable[[str], None]) -> None:
        """Wrap `inner`. `tell` gets one line for each change that is not made."""
        super().__init__(inner)
        self._tell = tell

    def put(
        self,
        key: str,
        source: Iterable[bytes],
        *,
        digests: Mapping[str, str] | None = None,
        if_absent: bool = True,
        resume: ResumeRecord | None = None,  # noqa: ARG002 - nothing is sent
    ) -> ObjectInfo:
        """Check what a put would check before it sends anything, and say what it would store."""
        check_key(key)
        if if_absent:
            with suppress(MissingError):
                self._inner.stat(key)
                raise ExistsError(f"there is an object {key} already")
        digester, size = Digester(digests or ()), 0
        for block in source:
            digester.update(block)
            size += len(block)
        refuse_other(digester.hexdigests(), digests)
        self._tell(f"would store {key} ({size} bytes)")
        return ObjectInfo(key, size)

    def delete(self, key: str) -> None:
        """Say what would be removed. Raises as CloudConnector.delete."""
        info = self._inner.stat(key)
        self._tell(f"would remove {key} ({info.size} bytes)")


class Audited(Wrapper):
    """Records in the audit log what is written to and removed from the store, and what is fetched whole or in part."""

    def __init__(self, inner: CloudConnector, log: AuditLog) -> None:
        """Wrap `inner`."""
        super().__init__(inner)
        self._log = log

    def put(self, key: str, source: Iterable[bytes], **options: Unpack[PutOptions]) -> ObjectInfo:
        """Store an object; see CloudConnector."""
        with self._recorded("cloud.put", key):
            return self._inner.put(key, source, **options)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object; see CloudConnector."""
        with self._recorded("cloud.get", key):
            yield from self._inner.get(key, offset=offset, length=length)

    def delete(self, key: str) -> None:
        """Remove an object; see CloudConnector."""
        with self._recorded("cloud.delete", key):
            self._inner.delete(key)

    @contextmanager
    def _recorded(self, action: str, key: str) -> Iterator[None]:
        with self._log.operation(action) as operation:
            operation.object = key.encode("utf-8", "surrogatepass")
            yield
