"""The records of the index, in every store and in a copy on this machine.

The copy makes reading quick, and it is a memory: what this machine has once seen in a store cannot be taken back unnoticed. It
holds what the stores hold, encrypted.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from secure_media_processor.cloud.digests import Digester, Part, cut_into_parts
from secure_media_processor.cloud.index import MAX_RECORD, PREFIX, Index, Record, key_of
from secure_media_processor.cloud.objects import ReplicaState, StoredObject
from secure_media_processor.cloud.reading import take
from secure_media_processor.cloud.waiting import LISTED, in_turn, moved
from secure_media_processor.core.files import locked_folder, make_private_folder, os_errors, write_file
from secure_media_processor.errors import (
    ExistsError,
    FileAccessError,
    IntegrityError,
    MissingError,
    NoSpaceError,
    SmpError,
    TransientError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from secure_media_processor.cloud.connectors.base import CloudConnector
    from secure_media_processor.cloud.manager import ConnectorManager
    from secure_media_processor.cloud.objects import ObjectStatus
    from secure_media_processor.core.recipients import Identity, Recipient

_ID = re.compile(r"[0-9a-f]{32}")
# From here on one record takes the place of all: reading asks each store for each record once.
_MANY = 48
# Records that are fetched at the same time, by a machine that sees the index for the first time.
_PARALLEL = 4
_LARGE = 4 << 20  # bytes
# Objects that a store may list. Somebody who fills it with more wants to fill our memory.
_MOST = 2_000_000
# While records are listed and fetched another machine may put one in place of many.
_TRIES = 5


class IndexRecords:
    """The records of the index in some stores."""

    def __init__(
        self,
        manager: ConnectorManager,
        folder: Path,
        labels: Mapping[str, str],
        recipients: Sequence[Recipient],
        identities: Sequence[Identity],
    ) -> None:
        """Use the stores of `manager`.

        Args:
            manager: Its quorum is how many stores must take a record.
            folder: Of the copy on this machine; it is made if need be.
            labels: Name of each store → what it is called in the copy, and never again for another store.
            recipients: Who can read what is written.
            identities: Who reads.
        """
        self._manager, self._folder, self._labels = manager, folder, labels
        self._recipients, self._identities = recipients, identities
        self._opened: dict[str, Record] = {}
        self._listed: dict[str, set[str]] = {}
        self._large: set[str] = set()
        """Ids of records of which several at once would take much memory."""
        self._vanished: dict[tuple[str, str], MissingError] = {}
        self.present: dict[str, dict[str, int]] = {}
        """Store → key of each object there, without records → its size; as of the last reading that asked for it."""
        self.unreachable: dict[str, SmpError] = {}
        """Stores that did not answer when the index was read last, and why."""
        self.unreadable: dict[str, dict[str, SmpError]] = {}
        """Store → id of each record there that is damaged, or for other keys, and why."""
        self.memory_error: SmpError | None = None
        """Why this machine cannot remember what was read; None if it can."""
        self._unsaved: dict[str, bytes] = {}
        """Id → record of which there can be no copy on this machine."""

    @property
    def complete(self) -> bool:
        """Whether so many stores answered, with all that they list, that no record can have been overlooked."""
        return len(self._listed) > len(self._manager.connectors) - self._manager.quorum

    def read(self, *, with_objects: bool = False) -> Index:
        """Return the index as the stores that answer and the copy on this machine have it; with `with_objects`, set `present`.

        Raises:
            TransientError, CredentialsError and the like: no store answers.
        """
        self._vanished = {}
        for _ in range(_TRIES):
            self._list("" if with_objects else PREFIX)
            try:
                self._open_all()
            except MissingError:  # another machine has put one record in place of many meanwhile
                continue
            return self._merged(self._known())
        raise TransientError("the index changes all the time", hint="try again when nothing else writes to these stores")

    def need_memory(self) -> None:
        """Raise FileAccessError, NoSpaceError or the like unless this machine can remember what it reads and writes.

        What is only read can be read without. To be called before anything is changed in the stores.
        """
        try:
            if self.memory_error is not None:
                raise self.memory_error
            for folder in (self._folder / "records", self._folder / "seen"):
                make_private_folder(folder)
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise FileAccessError(f"nothing can be written into {folder}")
        except SmpError as error:
            hint = "without it nothing is changed in the stores; the setting cloud_state can name another folder"
            raise type(error)(str(error), hint=hint) from error

    def write(self, index: Index, record: Record) -> ObjectStatus:
        """Store `record`, and merge it into `index`. Every now and then one record takes the place of all.

        Raises:
            QuorumError: too few stores took it. `index` is as it was.
        """
        replaced: list[str] = []
        sealed = record.seal(self._recipients)
        if len(set().union(*self._listed.values())) >= _MANY:
            whole = self._merged(self._known())
            whole.merge(record)
            summary = whole.summary()
            sealed_summary = summary.seal(self._recipients)
            if len(sealed_summary) <= MAX_RECORD:
                replaced, record, sealed = self._known(), summary, sealed_summary
        status = self._publish(record, sealed)
        index.merge(record)
        for name in self._listed:
            if record.id in self._listed[name]:
                self._forget(name, replaced)
        return status

    def _publish(self, record: Record, sealed: bytes) -> ObjectStatus:
        if len(sealed) > MAX_RECORD:
            raise UsageError("so many files do not go into one record of the index", hint="store fewer at a time")
        parts = [Part.of(data) for data in cut_into_parts([sealed])]

        def produce(send: Callable[[Part], None]) -> None:
            for part in parts:
                send(part)

        status = self._manager.store(record.key, produce)
        self._opened[record.id] = record
        self._keep(record.id, sealed)
        for name, replica in status.replicas.items():
            if replica.state is ReplicaState.INTACT:
                self._listed.setdefault(name, set()).add(record.id)
                self._remember(name)
        return status

    def lacking(self) -> dict[str, list[str]]:
        """Return for each store that answered the ids of records that it lacks and that tell what its others do not."""
        known, found = self._known(), {}
        for name, listed in self._listed.items():
            absent = [record_id for record_id in known if record_id not in listed]
            own = self._merged(record_id for record_id in known if record_id in listed)
            news = [record_id for record_id in absent if own.merge(self._opened[record_id])]
            if news:
                found[name] = news
        return found

    def taken_back(self) -> dict[str, list[str]]:
        """Return, of what each store lacks, the records that it once had: it was rolled back, or somebody removed them."""
        lacking = self.lacking()
        seen = {name: self._seen(name) for name in lacking}
        gone = {name: [record_id for record_id in ids if record_id in seen[name]] for name, ids in lacking.items()}
        return {name: ids for name, ids in gone.items() if ids}

    def repair(self) -> dict[str, list[SmpError]]:
        """Give each store that answered the records that it lacks. Returns what went wrong, by name of the store."""
        failed: dict[str, list[SmpError]] = defaultdict(list)
        for name, ids in self.lacking().items():
            for record_id in ids:
                try:
                    with suppress(ExistsError):
                        self._manager.put_into(name, key_of(record_id), [self._sealed(record_id)], overwrite=False)
                    self._listed[name].add(record_id)
                except SmpError as error:
                    failed[name].append(error)
            self._remember(name)
        return dict(failed)

    def put_back(self, name: str, record: StoredObject) -> None:
        """Replace a record that is damaged in a store. What goes wrong shows when it is checked again."""
        with suppress(SmpError):
            sealed = self._sealed(record.key.removeprefix(PREFIX))
            self._manager.put_into(name, record.key, [sealed])

    def objects(self) -> list[tuple[StoredObject, list[str]]]:
        """Return the records that some store lists as objects, to be checked like others, each with where it should be.

        A record whose place another has taken is not missing where it is gone; a store that was away may still have it.
        """
        digests = set().union(*(store.capabilities.native_digests for store in self._manager.connectors.values()))
        lacking, found = self.lacking(), []
        for record_id in self._known():
            if any(record_id in listed for listed in self._listed.values()):
                digester, sealed = Digester(digests), self._sealed(record_id)
                digester.update(sealed)
                names = [
                    name
                    for name in self._manager.connectors
                    if name in self.unreachable or record_id in self._listed[name] or record_id in lacking.get(name, ())
                ]
                found.append((StoredObject(key_of(record_id), len(sealed), digester.hexdigests()), names))
        return found

    def _list(self, prefix: str) -> None:
        """Ask each store what it has."""

        def listing(store: CloudConnector) -> dict[str, int]:
            sizes: dict[str, int] = {}
            for info in store.list(prefix):
                moved(LISTED)
                sizes[info.key] = info.size
                if len(sizes) > _MOST:
                    raise IntegrityError(f"it lists more than {_MOST} objects", hint="somebody else has put them there")
            return sizes

        answers = self._manager.ask_all(listing)
        self.unreachable = {name: answer for name, answer in answers.items() if isinstance(answer, SmpError)}
        found = {name: answer for name, answer in answers.items() if not isinstance(answer, SmpError)}
        self._listed = {name: {i for key, size in sizes.items() if (i := _id(key, size))} for name, sizes in found.items()}
        self._large = {i for sizes in found.values() for key, size in sizes.items() if size > _LARGE and (i := _id(key, size))}
        self.present = {
            name: {key: size for key, size in sizes.items() if not key.startswith(PREFIX)} for name, sizes in found.items()
        }
        self.unreadable = {}
        self._refuse_silence()

    def _refuse_silence(self) -> None:
        """Raise an error if no store answers."""
        if not self._listed:
            reasons = "; ".join(f"{name}: {error}" for name, error in self.unreachable.items())
            first = next(iter(self.unreachable.values()))
            kind = TransientError if first.retryable else type(first)
            raise kind(f"no store answers ({reasons})", hint=first.hint)

    def _known(self) -> list[str]:
        """Return the ids of all records that were opened and are in a store, or were once seen in one of these."""
        ids = set().union(*self._listed.values(), *(self._seen(name) for name in self._manager.connectors))
        return sorted(ids & self._opened.keys())

    def _open_all(self) -> None:
        """Open every record that is new here: from the copy, or from a store that lists it."""
        listed = set().union(*self._listed.values())
        wanted = (listed | set().union(*map(self._seen, self._manager.connectors))) - self._opened.keys()
        fetch = []
        for record_id in wanted:
            try:
                self._opened[record_id] = Record.open(record_id, self._copy(record_id).read_bytes(), self._identities)
            except (OSError, IntegrityError):  # not here yet, or the copy has suffered: the stores have it
                fetch.append(record_id)
        fetch = [record_id for record_id in fetch if record_id in listed]
        small = [record_id for record_id in fetch if record_id not in self._large]
        for ids, at_once in ((small, _PARALLEL), ([*self._large.intersection(fetch)], 1)):
            for _ in in_turn(self._fetch, ids, at_once):
                pass
        for name in self._listed:
            with self._without_memory_if_need_be():
                self._remember(name)
        self._refuse_silence()

    def _fetch(self, record_id: str) -> None:
        """Open a record from the first store that gives it sound. Raises MissingError if it has vanished everywhere."""
        missing: list[MissingError] = []
        unreachable: dict[str, SmpError] = {}

        def get(store: CloudConnector) -> tuple[bytes, Record]:
            sealed = take(store.get(key_of(record_id), length=MAX_RECORD), MAX_RECORD)
            return sealed, Record.open(record_id, sealed, self._identities)

        def failed(name: str, error: SmpError) -> None:
            if error.retryable:  # then nobody knows what it would have told
                unreachable[name] = error
            elif isinstance(error, MissingError) and (name, record_id) not in self._vanished:
                self._vanished[name, record_id] = error
                missing.append(error)
            else:  # also if the store lists what it has not
                self.unreadable.setdefault(name, {})[record_id] = error

        holders = [name for name, listed in list(self._listed.items()) if record_id in listed]
        found = self._manager.waiting.first([(name, partial(get, self._manager.connectors[name])) for name in holders], failed)
        if found is not None:
            _, (sealed, self._opened[record_id]) = found
            self._unsaved[record_id] = sealed
            with self._without_memory_if_need_be():
                self._keep(record_id, sealed)
            return
        for name, problem in unreachable.items():
            self.unreachable[name] = problem
            self._listed.pop(name, None)
        if missing:
            raise missing[0]

    def _merged(self, ids: Iterable[str]) -> Index:
        index = Index()
        for record_id in ids:
            index.merge(self._opened[record_id])
        return index

    def _forget(self, name: str, ids: Iterable[str]) -> None:
        """Remove records from a store that has the one that took their place."""
        for record_id in set(ids) & self._listed[name]:
            # What fails costs a little time at each reading, and no harm.
            if self._manager.delete(key_of(record_id), [name])[name] is None:
                self._listed[name].discard(record_id)
        self._remember(name, forget=set(ids))
        for record_id in ids:
            self._copy(record_id).unlink(missing_ok=True)

    # ---------------------------------------------------------------------------------- the copy on this machine

    def _copy(self, record_id: str) -> Path:
        return self._folder / "records" / f"{record_id}.smp"

    @contextmanager
    def _without_memory_if_need_be(self) -> Iterator[None]:
        """Go on if the folder of the copy cannot be written, as on a disk that is read-only."""
        try:
            yield
        except (FileAccessError, MissingError, NoSpaceError) as error:
            self.memory_error = error

    def _keep(self, record_id: str, sealed: bytes) -> None:
        make_private_folder(self._folder / "records")
        write_file(self._copy(record_id), sealed, overwrite=True)
        self._unsaved.pop(record_id, None)

    def _sealed(self, record_id: str) -> bytes:
        if record_id in self._unsaved:
            return self._unsaved[record_id]
        with os_errors(f"read {self._copy(record_id)}"):
            return self._copy(record_id).read_bytes()

    def _seen_path(self, name: str) -> Path:
        return self._folder / "seen" / f"{self._labels[name]}.json"

    def _seen(self, name: str) -> set[str]:
        """Return the ids of the records that this machine has seen in the store. A file that is damaged is as none."""
        try:
            ids = json.loads(self._seen_path(name).read_bytes())
        except (OSError, ValueError, RecursionError):
            return set()
        return {i for i in ids if isinstance(i, str) and _ID.fullmatch(i)} if isinstance(ids, list) else set()

    def _remember(self, name: str, forget: Iterable[str] = ()) -> None:
        make_private_folder(self._folder / "seen")
        with locked_folder(self._folder / "seen"):
            seen = self._seen(name)
            now = (seen | (self._listed[name] & self._opened.keys())) - set(forget)
            if now != seen:
                write_file(self._seen_path(name), json.dumps(sorted(now)).encode(), overwrite=True)


def _id(key: str, size: int) -> str | None:
    """Return the id of the record that an object is, judged by its key and size; None if it is none."""
    record_id = key.removeprefix(PREFIX)
    return record_id if key.startswith(PREFIX) and _ID.fullmatch(record_id) and size <= MAX_RECORD else None
