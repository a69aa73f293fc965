"""Was the patient taken out? Compares de-identified files with their originals, without knowing how they were made.

Nothing here uses the engine, its table reader or its reading of files, so a mistake of theirs is not repeated. A report names
places and counts and never holds a value. What is checked:

* Table E.1-1 of PS3.15 for each attribute at every depth, under the options that each output states in
  DeidentificationMethodCodeSequence (0012,0064), or that the caller names;
* what the table cannot name: private elements, elements that no dictionary knows, names of persons and UIDs anywhere, curves,
  overlays, file meta information, the preamble, bytes after the data set;
* the bytes of each output, for what the original says (verifying/residue.py has the rules);
* over all files: one new UID for each old one, one new patient for each, one shift of dates for each patient;
* pixel data: the same bytes, unless the output states that they were cleaned;
* the contrary fault: attributes that should have survived ("lost").
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from secure_media_processor.core.files import os_errors, smp_error_from
from secure_media_processor.errors import FileAccessError, UsageError
from secure_media_processor.medical.deid.verifying.comparing import Comparison, method_codes, place_of
from secure_media_processor.medical.deid.verifying.elements import DamagedError, DicomFile, read_file
from secure_media_processor.medical.deid.verifying.findings import Kind, Violation
from secure_media_processor.medical.deid.verifying.links import Links, digest
from secure_media_processor.medical.deid.verifying.pairing import Mark, Pairs, mark_of, pair
from secure_media_processor.medical.deid.verifying.residue import marks_of, places_left
from secure_media_processor.medical.deid.verifying.rules import BASIC_CODE, OPTION_CODES, OPTION_OF_CODE, Rules
from secure_media_processor.medical.dicom.reader import Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from secure_media_processor.core.recipients import Identity

__all__ = ["OPTIONS", "FileFindings", "Kind", "Unreadable", "VerifyReport", "Violation", "read_mapping", "verify_deidentified"]

OPTIONS = tuple(OPTION_CODES)
"""Names of the options, as `smp medical anonymize` has them."""
_BASIC = "basic"
_METHOD_CODES = 0x00120064
_MAPPING_COLUMNS = ("old", "new")


@dataclass(frozen=True, slots=True)
class FileFindings:
    """What was found in one output."""

    output: Path
    original: Path | None
    """None if no original belongs to it."""
    violations: tuple[Violation, ...]
    lost: tuple[tuple[str, int], ...]
    """(place, how often) of attributes that should have survived."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was found in a set of files. It never holds a value."""

    originals: int
    """Files that could be read."""
    outputs: int
    """Files that could be read."""
    pairs: int
    """Outputs that were compared with their original."""
    elements: int
    """Elements of outputs that were compared."""
    files: tuple[FileFindings, ...]
    """Only those in which something was found."""
    missing: tuple[Path, ...]
    """Originals without an output: quarantined, or refused. No violations."""
    unreadable: tuple[Unreadable, ...]
    """Files on either side."""
    violations: Counter[Kind] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    """Place → how many attributes that should have survived did not."""

    @property
    def is_clean(self) -> bool:
        """Whether no violation was found, in any file."""
        return not self.violations.total()


def verify_deidentified(
    original: Path | str,
    output: Path | str,
    *,
    options: Collection[str] | None = None,
    at_least: Collection[str] = (),
    mapping: Mapping[str, str] | None = None,
    identities: Sequence[Identity] = (),
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Compare the de-identified file or folder `output` with its `original`.

    Args:
        original: A file or folder.
        output: A file or folder. Its files may have any names.
        options: Names out of OPTIONS that may have been used; none for the Basic Profile alone. Without an answer (None) each
            output is believed as to the options it states.
        at_least: "basic", or names out of OPTIONS, that each output must state.
        mapping: Original SOPInstanceUID (0008,0018) → new one, where it is known. Else files are paired by their contents.
        identities: Keys that open files, on either side, that are encrypted (SMP1): in memory only.
        progress: Called with the number of outputs that were compared.

    Raises:
        UsageError: an option is unknown.
        MissingError, FileAccessError: `original` or `output` cannot be read.
    """
    for name in (*(options or ()), *at_least):
        if name not in OPTIONS and name != _BASIC:
            raise UsageError(f"there is no option {name}", hint=f"choose from {', '.join((_BASIC, *OPTIONS))}")
    unreadable: list[Unreadable] = []
    left = list(_marks(Path(original), unreadable, identities))
    right = list(_marks(Path(output), unreadable, identities))
    known = {digest(old): digest(new) for old, new in mapping.items()} if mapping else None
    alone = Path(original).is_file() and Path(output).is_file() and len(left) == len(right) == 1
    pairs = Pairs(((left[0].path, right[0].path),), (), ()) if alone else pair(left, right, known)
    allowed = None if options is None else frozenset(options) - {_BASIC}
    run = _Run(allowed, frozenset(at_least), Path(output), identities)
    for done, (one, other) in enumerate(pairs.pairs, start=1):
        run.compare(one, other)
        if progress is not None:
            progress(done)
    return run.report(left, right, pairs, unreadable)


def read_mapping(path: Path) -> dict[str, str]:
    """Read a table of UIDs: CSV with the columns ``old`` and ``new``.

    Raises:
        UsageError: it has other columns.
        MissingError, FileAccessError: it cannot be read.
    """
    with os_errors(f"read {path}"), path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not set(_MAPPING_COLUMNS) <= set(rows.fieldnames or ()):
            raise UsageError(f"{path} is no table of UIDs", hint="it needs the columns old and new")
        return {row["old"]: row["new"] for row in rows}


@dataclass(slots=True)
class _Run:
    """One comparison of two sets."""

    options: frozenset[str] | None
    at_least: frozenset[str]
    root: Path
    identities: Sequence[Identity] = field(repr=False)
    links: Links = field(default_factory=Links)
    findings: dict[int, FileFindings] = field(default_factory=dict)
    """Number of a pair → what was found. Clean files leave nothing here: memory is for what is wrong."""
    names: list[tuple[Path, Path]] = field(default_factory=list)
    changed: list[Unreadable] = field(default_factory=list)
    elements: int = 0

    def compare(self, original: Path, output: Path) -> None:
        """Compare one output with its original."""
        number = len(self.names)
        self.names.append((original, output))
        files = [self._read(path) for path in (original, output)]
        one, other = files
        if one is None or other is None:
            return
        stated = method_codes(other.dataset)
        options = self.options
        if options is None:
            options = frozenset(OPTION_OF_CODE[code] for code in stated & OPTION_OF_CODE.keys())
        rules = Rules(options)
        comparison = Comparison(rules, self.links, number)
        comparison.run(one, other)
        violations = set(comparison.violations)
        required = {BASIC_CODE if name == _BASIC else OPTION_CODES[name][1] for name in self.at_least}
        if not required <= stated:
            violations.add(Violation(Kind.STATEMENT, place_of((_METHOD_CODES,))))
        inside, named = places_left(marks_of(one, rules), other, _below(output, self.root))
        violations |= {Violation(Kind.RESIDUE, place) for place in inside}
        violations |= {Violation(Kind.FILE_NAME, place) for place in named}
        self.elements += comparison.checked
        if violations or comparison.lost:
            lost = tuple(sorted(comparison.lost.items()))
            self.findings[number] = FileFindings(output, original, tuple(sorted(violations)), lost)

    def _read(self, path: Path) -> DicomFile | None:
        try:
            return read_file(path, self.identities)
        except DamagedError as error:  # it could be read a moment ago
            self.changed.append(Unreadable(path, str(error)))
            return None

    def report(self, left: list[Mark], right: list[Mark], pairs: Pairs, unreadable: list[Unreadable]) -> VerifyReport:
        """Finish what needs all files, and return what was found."""
        survived = self.links.originals & self.links.outputs.keys()
        for number in sorted({self.links.outputs[uid] for uid in survived}):
            original, output = self.names[number]
            found = self.findings.get(number, FileFindings(output, original, (), ()))
            violations = {*found.violations, Violation(Kind.UID, "")}
            self.findings[number] = replace(found, violations=tuple(sorted(violations)))
        strangers = [FileFindings(path, None, (Violation(Kind.UNPAIRED, ""),), ()) for path in pairs.unpaired]
        files = (*(self.findings[number] for number in sorted(self.findings)), *strangers)
        lost: Counter[str] = Counter()
        for file in files:
            lost.update(dict(file.lost))
        return VerifyReport(
            originals=len(left),
            outputs=len(right),
            pairs=len(pairs.pairs),
            elements=self.elements,
            files=files,
            missing=pairs.missing,
            unreadable=(*unreadable, *self.changed),
            violations=Counter(violation.kind for file in files for violation in file.violations),
            lost=lost,
        )


def _below(path: Path, root: Path) -> Path:
    """Return the part of a path that belongs to the output: what the user called the folder is not the product's choice."""
    return path.relative_to(root) if path != root else Path(path.name)


def _marks(path: Path, unreadable: list[Unreadable], identities: Sequence[Identity]) -> Iterator[Mark]:
    """Yield by what each file is known; note those that cannot be read."""
    for file, problem in _files(path):
        if problem:
            unreadable.append(Unreadable(file, problem))
            continue
        try:
            mark = mark_of(file, read_file(file, identities))
        except DamagedError as error:
            unreadable.append(Unreadable(file, str(error)))
        else:
            yield mark


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield `path`, or every file below it in order, and what is wrong with it if it should not be opened."""
    with os_errors(f"read {path}"):
        path.stat()
    if not path.is_dir():
        yield path, ""
        return
    if not os.access(path, os.R_OK | os.X_OK):
        raise FileAccessError(f"cannot read {path}: permission denied")
    problems: list[OSError] = []
    for folder, folders, names in os.walk(path, onerror=problems.append):
        folders.sort()
        here = Path(folder)
        for name in sorted(names):
            yield here / name, "" if (here / name).is_file() else "it is not a file"
        yield from ((here / name, "it is a link to a folder") for name in folders if (here / name).is_symlink())
    for problem in problems:
        yield Path(str(problem.filename)), str(smp_error_from(problem, "read it"))
