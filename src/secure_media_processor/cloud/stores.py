"""The stores a user has named, and the kinds of stores there are.

What a store needs to know stands in a file, `stores.json` in the user's configuration folder: the kind, and options such as a
bucket or a folder. Secrets never stand there, only where they are found (a profile, a file, the keyring). A kind is a
`StoreKind` under an entry point of the group ``smp.connectors``; ours are registered as anybody's are, and none is imported
before it is used.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from secure_media_processor.cloud.credentials import OPTION, is_in_keyring, named
from secure_media_processor.cloud.waiting import moved
from secure_media_processor.cloud.wrappers import Paced, Patience, Retrying
from secure_media_processor.core.files import (
    locked_folder,
    make_private_folder,
    open_source,
    os_errors,
    read_full,
    write_file,
)
from secure_media_processor.core.rate_limiter import RateLimiter
from secure_media_processor.errors import ConfigError, MissingError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from secure_media_processor.cloud.connectors.base import CloudConnector

GROUP = "smp.connectors"
EVERY_KIND = {
    "requests-per-second": "how many requests to send at most, retries included",
    "bytes-per-second": "how fast to send and receive at most",
}
"""Options that stores of every kind have."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_MAX_BOOK = 256 * 1024


@dataclass(frozen=True, slots=True)
class StoreKind:
    """A kind of store, as its author describes it."""

    options: Mapping[str, str]
    """Name of an option → what it means, in a line. All values are text."""
    required: frozenset[str]
    """The options that must be given."""
    open: Callable[[Mapping[str, str], Callable[[], object]], CloudConnector]
    """Make a connector from options and the function to call before each HTTP request."""
    requests_per_second: float
    """What a provider bears from one account."""
    paths: frozenset[str] = frozenset()
    """The options that are paths; they are made absolute when a store is added. `credentials` may name the keyring instead."""
    prepare: Callable[[Mapping[str, str]], object] | None = None
    """What is to be done once, when a store is added."""


@dataclass(frozen=True, slots=True)
class Store:
    """A store that the user has named."""

    name: str
    kind: str
    options: Mapping[str, str]

    def open(self, patience: Patience | None = None) -> CloudConnector:
        """Return a connector, with `patience` and a limit on requests around it. Nothing is sent until it is used.

        Raises:
            MissingExtraError: the kind, or a library that it needs, is not installed.
            UsageError: an option is missing, or there is no such option.
        """
        kind = find_kind(self.kind)
        check_options(self.kind, kind, self.options)
        own = {name: value for name, value in self.options.items() if name in kind.options}
        if OPTION in own:
            own[OPTION] = named(own[OPTION], self.name)
        rate = _rate(self.options, "requests-per-second") or kind.requests_per_second
        limiter = RateLimiter(rate, max(1.0, 2 * rate))

        def before_request() -> None:
            moved()  # as long as it asks for more, a store that lists page by page has answered so far
            limiter.acquire()

        store = kind.open(own, before_request)
        bandwidth = _rate(self.options, "bytes-per-second")
        if bandwidth is not None:
            store = Paced(store, RateLimiter(bandwidth, bandwidth))
        return Retrying(store, patience, limiter=limiter)

    @property
    def label(self) -> str:
        """What tells this store from every other that has or had its name."""
        place = sorted((name, value) for name, value in self.options.items() if name not in EVERY_KIND)
        text = json.dumps([self.kind, place])
        return f"{self.name}-{sha256(text.encode()).hexdigest()[:16]}"


def kinds() -> list[str]:
    """Return the kinds of stores that are installed, sorted. None is imported."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def find_kind(name: str) -> StoreKind:
    """Import and return a kind of store. Raises MissingExtraError if it is not installed."""
    for entry in entry_points(group=GROUP, name=name):
        kind = entry.load()
        if not isinstance(kind, StoreKind):
            raise MissingExtraError(f"the plugin for stores of kind {name} is not one", hint="ask its author")
        return kind
    raise MissingExtraError(f"there is no kind of store called {name}", hint=f"there are: {', '.join(kinds())}")


def check_options(name: str, kind: StoreKind, options: Mapping[str, str]) -> None:
    """Raise UsageError unless `options` are what stores of `kind` need."""
    known = {**kind.options, **EVERY_KIND}
    unknown, missing = sorted(options.keys() - known.keys()), sorted(kind.required - options.keys())
    if unknown or missing:
        problem = f"have no option {unknown[0]}" if unknown else f"need the option {missing[0]}"
        hint = "options: " + "; ".join(f"{option}= {meaning}" for option, meaning in known.items())
        raise UsageError(f"stores of kind {name} {problem}", hint=hint)
    for option in EVERY_KIND:
        _rate(options, option)


def with_absolute_paths(kind: StoreKind, options: Mapping[str, str]) -> dict[str, str]:
    """Return `options` so that they mean the same in every working directory."""

    def is_path(name: str, value: str) -> bool:
        return name in kind.paths and not (name == OPTION and is_in_keyring(value))

    return {
        name: str(Path(value).expanduser().absolute()) if is_path(name, value) else value for name, value in options.items()
    }


def _rate(options: Mapping[str, str], name: str) -> float | None:
    """Return the limit in an option, None if it is not given. Raises UsageError if it is no number above 0."""
    if name not in options:
        return None
    try:
        rate = float(options[name])
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise UsageError(f"{name} is a number above 0", hint=f"such as {name}=10")
    return max(1.0, rate) if name == "bytes-per-second" else rate


@dataclass(frozen=True, slots=True)
class StoreBook:
    """The file in which the user's stores stand."""

    path: Path

    def stores(self) -> list[Store]:
        """Return all stores, sorted by name. Raises ConfigError if the file is damaged."""
        try:
            file = open_source(self.path)
        except MissingError:
            return []
        with file, os_errors(f"read {self.path}"):
            buffer = bytearray(_MAX_BOOK)
            size = read_full(file, memoryview(buffer))
        try:
            book = json.loads(buffer[:size])
            return [_store(name, book["stores"][name]) for name in sorted(book["stores"])]
        except (ValueError, LookupError, TypeError, RecursionError):
            hint = "put it right, or move it away and add the stores again"
            raise ConfigError(f"{self.path} is damaged", hint=hint) from None

    def find(self, name: str) -> Store:
        """Return the store `name`. Raises MissingError."""
        for store in self.stores():
            if store.name == name:
                return store
        raise MissingError(f"there is no store called {name}", hint="`smp cloud list` shows the stores")

    def add(self, store: Store) -> None:
        """Write down a new store.

        Raises:
            UsageError: the name is taken, or not made of lower-case letters, digits and hyphens.
        """
        self.check_name(store.name)
        make_private_folder(self.path.parent)
        with locked_folder(self.path.parent):
            self.check_name(store.name)
            self._write([*self.stores(), store])

    def check_name(self, name: str) -> None:
        """Raise UsageError if a new store cannot have this name."""
        if not _NAME.fullmatch(name):
            raise UsageError("a store's name has 1 to 32 lower-case letters, digits and hyphens", hint="such as clinic-nas")
        if any(store.name == name for store in self.stores()):
            raise UsageError(f"there is a store called {name} already", hint=f"smp cloud remove {name}")

    def remove(self, name: str) -> None:
        """Forget the store `name`. What is in it stays. Raises MissingError."""
        self.find(name)
        with locked_folder(self.path.parent):
            self._write([store for store in self.stores() if store.name != name])

    def _write(self, stores: Sequence[Store]) -> None:
        entries = {store.name: {"kind": store.kind, "options": dict(store.options)} for store in stores}
        text = json.dumps({"version": 1, "stores": entries}, indent=1, sort_keys=True) + "\n"
        write_file(self.path, text.encode(), overwrite=True)


def _store(name: str, entry: dict[str, object]) -> Store:
    """Return a store from the file. Raises KeyError or TypeError."""
    kind, options = entry["kind"], entry["options"]
    if not isinstance(kind, str) or not isinstance(options, dict):
        raise TypeError("not a store")
    if not all(isinstance(text, str) for pair in options.items() for text in pair):
        raise TypeError("options are texts")
    return Store(name, kind, options)
