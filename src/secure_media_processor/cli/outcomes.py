"""Saying what became of files."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from secure_media_processor.cli.schemas import FileDone, FilesDone
from secure_media_processor.cli.ui import Ui, counted, human_size, one_line, table
from secure_media_processor.cloud.outcome import Action, Done
from secure_media_processor.errors import DegradedError, PartialError, SmpError, ThrottledError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from secure_media_processor.cloud.archive import Archive

# What a rehearsal calls what would be done.
_TO_DO = {Action.STORED: "store", Action.REMOVED: "remove"}


def finish(
    ui: Ui,
    kind: Callable[[bool, list[FileDone], dict[str, str]], FilesDone],
    done: Sequence[Done],
    archive: Archive,
    *,
    dry_run: bool = False,
    stores: bool = True,
) -> None:
    """Report what was done. Raises if something failed or is left to be repaired.

    Args:
        ui: Where to.
        kind: Makes what is printed with --json.
        done: What became of each file.
        archive: Where it was done.
        dry_run: Whether it only would be done.
        stores: Whether it was to change what is in the stores, so that one that was away has to be repaired.
    """
    failed = [one for one in done if one.error is not None]
    if len(done) > 1:
        for one in failed:
            ui.warn(str(one.error) if one.name in str(one.error) else f"{one.name}: {one.error}")
    for one in done:
        ui.detail(f"{'would be ' if dry_run else ''}{one.action}: {one.name}")
    files = [FileDone(one.name, one.action, one.size, one.error.code if one.error else None) for one in done]
    plan = _plan(done) if dry_run else ""
    ui.result(kind(dry_run, files, archive.degraded), plan)
    if not failed or len(done) > 1:
        ui.say(f"dry run: {_summary(done, _TO_DO)}" if plan else _summary(done))
    pending = archive.degraded and not dry_run and stores
    reasons = "; ".join(f"{name}: {reason}" for name, reason in archive.degraded.items())
    if failed:
        if pending:
            ui.warn(f"what is done is not in every store ({reasons}): run `smp cloud repair` when they are back")
        raise _failure([one.error for one in failed if one.error is not None], len(done))
    if pending:
        raise DegradedError(f"done, but not in every store ({reasons})", hint="run `smp cloud repair` when they are back")
    warn_of_stores(ui, archive)


def warn_of_stores(ui: Ui, archive: Archive) -> None:
    """Tell which stores do not answer, and if nothing can be remembered of the others."""
    for name, reason in archive.degraded.items():
        ui.warn(f"{name} does not answer: {reason}")
    warn_of_memory(ui, archive)


def warn_of_memory(ui: Ui, archive: Archive) -> None:
    """Tell if this machine cannot remember what it has seen in the stores."""
    if archive.memory_error is not None:
        ui.warn(f"a store that is set back to an older state would go unnoticed: {archive.memory_error}")


def _failure(errors: Sequence[SmpError], among: int) -> SmpError:
    """Return the error that ends a command in which `errors` kept some of its files, or all, from being done."""
    if among == 1:
        return errors[0]
    message, hint = f"{len(errors)} of {counted(among, 'file')} failed", "see the warnings above"
    kinds = {type(error) for error in errors}
    if len(errors) == among and len(kinds) == 1:
        # Nothing is done, and for one reason: whoever reads the exit code wants that reason.
        kind = kinds.pop()
        return kind(message, hint=hint) if kind is not ThrottledError else TransientError(message, hint=hint)
    return PartialError(message, hint=hint)


def _plan(done: Sequence[Done]) -> str:
    changes = [one for one in done if one.action in _TO_DO]
    rows = [(_TO_DO[one.action], human_size(one.size), one_line(one.name)) for one in changes]
    return table(("to do", "size", "name"), rows, right={"size"}) if rows else ""


def _summary(done: Sequence[Done], words: Mapping[Action, str] | None = None) -> str:
    counts = Counter(one.action for one in done)
    moved = [one.size for one in done if one.action in (Action.STORED, Action.RESTORED)]
    moved = moved or [one.size for one in done if one.action is Action.REMOVED]
    verbs = {action: f"to {word}" for action, word in (words or {}).items()}
    parts = [f"{counts[action]} {verbs.get(action, action)}" for action in Action if counts[action]]
    return f"{', '.join(parts) or 'nothing to do'}{f'; {human_size(sum(moved))}' if moved else ''}"
