"""What is known of an object, in one store and in all of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from secure_media_processor.cloud.digests import Digests


class ReplicaState(StrEnum):
    """What one store has of an object."""

    INTACT = "intact"
    DAMAGED = "damaged"
    MISSING = "missing"
    UNREACHABLE = "unreachable"


class ObjectState(StrEnum):
    """What all stores together have of an object."""

    FULL = "full"
    """Every store has an intact copy."""
    DEGRADED = "degraded"
    """Some store has, and not every one."""
    LOST = "lost"
    """No store that answers has."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """How to find an object again and to know that it is the right one."""

    key: str
    size: int
    """Bytes of ciphertext."""
    digests: Digests
    """Of the ciphertext, as the stores report them by themselves (cloud/digests.py)."""


@dataclass(frozen=True, slots=True)
class Replica:
    """An object in one store."""

    state: ReplicaState
    reason: str = ""
    """Why it is not intact, for people."""


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """An object in all stores."""

    object: StoredObject
    replicas: Mapping[str, Replica]
    """Name of the store → what it has."""

    @property
    def state(self) -> ObjectState:
        """The replicas in one word."""
        intact = sum(replica.state is ReplicaState.INTACT for replica in self.replicas.values())
        if intact == len(self.replicas):
            return ObjectState.FULL
        return ObjectState.DEGRADED if intact else ObjectState.LOST
