"""Taking objects from a server into a folder, whole and checked, or not at all."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO

from secure_media_processor.core.files import atomic_write_below, make_private_folder, os_errors
from secure_media_processor.errors import ExistsError, FileAccessError, IntegrityError, NoSpaceError, SmpError
from secure_media_processor.medical.dicom.elements import text
from secure_media_processor.medical.dicom.reader import Unreadable, read_dataset
from secure_media_processor.medical.dicom.scan import CutError, UnscannableError, scan_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pydicom import Dataset

    from secure_media_processor.medical.dicom.net.model import Limits, RemoteInstance

_CLASS, _INSTANCE, _STUDY, _SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_NAMES = {_CLASS: "SOPClassUID", _INSTANCE: "SOPInstanceUID", _STUDY: "StudyInstanceUID", _SERIES: "SeriesInstanceUID"}


class Incoming:
    """The objects that are waited for. Safe to use from the threads in which connections are served.

    Each is written under its UIDs, as they were asked for, below the folder: mode 0600, and only when it is complete and says
    of itself that it is the one. Those that lie there already are left, and not waited for.
    """

    def __init__(
        self,
        folder: Path,
        wanted: Sequence[RemoteInstance],
        limits: Limits,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Make the folder, and look what is in it.

        Args:
            folder: Where to put the objects.
            wanted: What is waited for.
            limits: Of which `max_object` holds here.
            progress: Called with the number of objects that are there, and of all.

        Raises FileAccessError or NoSpaceError if the folder cannot be made.
        """
        make_private_folder(folder)
        self._folder, self._limits, self._progress = folder, limits, progress
        self._lock = Lock()
        self._fatal: SmpError | None = None
        self._pending = {instance.uid: instance for instance in wanted}
        self._total = len(self._pending)
        self._sizes = Counter(instance.series_uid for instance in self._pending.values())
        self.fetched: dict[RemoteInstance, int] = {}
        """What was written, and how many bytes."""
        self.present: list[RemoteInstance] = []
        """What was there already."""
        self.failed: dict[RemoteInstance, SmpError] = {}
        """What will not come, and why."""
        self.unasked = 0
        """How many objects the server sent that nobody asked for."""
        for instance in list(self._pending.values()):
            self._look_for(instance)

    @property
    def pending(self) -> list[RemoteInstance]:
        """What is still waited for."""
        with self._lock:
            return list(self._pending.values())

    def is_whole(self, series_uid: str, count: int) -> bool:
        """Return whether `count` instances are all that a series has."""
        return self._sizes[series_uid] == count

    def take(self, uid: str, blocks: Iterable[bytes | memoryview], *, sop_class_uid: str = "") -> bool:
        """Write the object that the server calls `uid`, if it is waited for. Returns whether it is here now.

        Args:
            uid: SOPInstanceUID as the server announces it.
            blocks: The bytes of its file (PS3.10 section 7). No more of them are asked for than are allowed.
            sop_class_uid: SOPClassUID as the server announces it; empty if it does not.

        An error in getting `blocks` comes through, and the object is waited for as before; all others are kept for the report.
        """
        with self._lock:
            instance = self._pending.get(uid)
            if instance is None:
                known = any(uid == other.uid for other in (*self.fetched, *self.present))
                self.unasked += not known
                return known
            if self._fatal is not None:
                return False
        coming = _Coming(blocks)
        try:
            size = self._write(instance, coming, sop_class_uid)
        except (NoSpaceError, FileAccessError) as error:
            self._fatal = error
            return False
        except SmpError as error:
            if coming.broke:
                raise
            self.fail(instance, error)
            return False
        with self._lock:
            if self._pending.pop(uid, None) is not None:
                self.fetched[instance] = size
        self._tell()
        return True

    def fail(self, instance: RemoteInstance, error: SmpError) -> None:
        """Wait for an object no more."""
        with self._lock:
            if self._pending.pop(instance.uid, None) is not None:
                self.failed[instance] = error
        self._tell()

    def refuse_size(self, uid: str) -> None:
        """Wait no more for the object `uid`, of which more came than one may have."""
        instance = {one.uid: one for one in self.pending}.get(uid)
        if instance is not None:
            self.fail(instance, self._too_large())

    def missed(self, instances: Iterable[RemoteInstance], reason: SmpError) -> None:
        """Wait no more for those of `instances` that did not come although the server is done with them, for a `reason`."""
        for instance in instances:
            other = IntegrityError("the server sent another object in its place")
            self.fail(instance, other if self.unasked else reason)

    def raise_fatal(self) -> None:
        """Raise the error that keeps any further object from being written, if there was one: NoSpaceError, FileAccessError."""
        if self._fatal is not None:
            raise self._fatal

    def _look_for(self, instance: RemoteInstance) -> None:
        path = self._folder / instance.path
        try:
            with path.open("rb") as file:
                _check(file, path, instance, "")
        except FileNotFoundError:
            return
        except (OSError, IntegrityError):
            del self._pending[instance.uid]
            message = f"something else is in its place: {path}"
            self.failed[instance] = ExistsError(message, hint="move it away, or name another folder")
        else:
            del self._pending[instance.uid]
            self.present.append(instance)

    def _write(self, instance: RemoteInstance, blocks: Iterable[bytes | memoryview], sop_class_uid: str) -> int:
        target = self._folder / instance.path
        size = 0
        with atomic_write_below(self._folder, target) as file:
            for block in blocks:
                size += len(block)
                if size > self._limits.max_object:
                    raise self._too_large()
                file.write(block)
            file.flush()
            with os_errors(f"read {target}"), open(os.dup(file.fileno()), "rb") as written:  # noqa: PTH123 - it has no name
                written.seek(0)
                _check(written, Path(f"/dev/fd/{file.fileno()}"), instance, sop_class_uid)
        return size

    def _too_large(self) -> IntegrityError:
        message = f"it is larger than {self._limits.max_object} bytes"
        return IntegrityError(message, hint="if it is to be so large, allow it with --max-size")

    def _tell(self) -> None:
        if self._progress is not None:
            with self._lock:
                done = self._total - len(self._pending)
            self._progress(done, self._total)


class _Coming:
    """Blocks on their way; remembers whether it was they that failed, not what was done with them."""

    def __init__(self, blocks: Iterable[bytes | memoryview]) -> None:
        self._blocks = iter(blocks)
        self.broke = False

    def __iter__(self) -> _Coming:
        return self

    def __next__(self) -> bytes | memoryview:
        try:
            return next(self._blocks)
        except StopIteration:
            raise
        except BaseException:
            self.broke = True
            raise


def _check(file: BinaryIO, path: Path, instance: RemoteInstance, announced_class: str) -> None:
    """Raise IntegrityError unless `file`, which `path` opens too, is complete and is `instance`."""
    dataset, storage = _header(file, path)
    expected = {_INSTANCE: instance.uid, _STUDY: instance.study_uid, _SERIES: instance.series_uid}
    expected[_CLASS] = instance.sop_class_uid or announced_class or storage
    for tag, value in expected.items():
        if text(dataset, tag) != value:
            raise IntegrityError(f"the server sent an object whose {_NAMES[tag]} is not what was asked for")
    if {storage, announced_class or storage} != {expected[_CLASS]}:
        raise IntegrityError("the server sent an object of another class than it says")


def _header(file: BinaryIO, path: Path) -> tuple[Dataset, str]:
    """Return the UIDs in `file`, and MediaStorageSOPClassUID (0002,0002)."""
    try:
        return scan_header(file, _NAMES.keys(), ())
    except CutError:
        raise IntegrityError("the server sent an object that ends too early") from None
    except UnscannableError:
        found = read_dataset(path, tags=[*_NAMES])
    if isinstance(found, Unreadable):
        raise IntegrityError(f"the server sent what cannot be used: {found.reason}")
    return found, str(found.file_meta.get("MediaStorageSOPClassUID", ""))
