"""The root of the command line. Only click is imported until a command is chosen, so that help and completion are quick."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from secure_media_processor import __version__
from secure_media_processor.cli.lazy import LazyGroup, Sections
from secure_media_processor.cli.options import talk_options
from secure_media_processor.cli.ui import Ui
from secure_media_processor.core.files import smp_error_from
from secure_media_processor.errors import SmpError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTERRUPTED = 130
_PACKAGE = "secure_media_processor"

_COMMANDS: Sections = {
    "Encryption": {
        "encrypt": ("crypto", "encrypt", "Encrypt a file."),
        "decrypt": ("crypto", "decrypt", "Decrypt a file."),
        "verify": ("crypto", "verify", "Check an encrypted file to its last byte and write nothing."),
        "key": ("key", "key", "Make, list, copy and choose keys."),
    },
    "Stores": {
        "upload": ("upload", "upload", "Encrypt files and folders on their way into your stores."),
        "download": ("download", "download", "Fetch files and folders from your stores and decrypt them."),
        "ls": ("listing", "list_files", "List the files in your stores; with NAME, that file or those in that folder."),
        "rm": ("listing", "remove_files", "Remove files from all your stores."),
        "sync": ("upload", "sync", "Make your stores have what a folder has."),
        "cloud": ("cloud", "cloud", "Name your stores, check them and repair them."),
    },
    "Images": {
        "medical": ("medical.group", "medical", "Read, de-identify, convert and analyse medical images."),
    },
    "This program": {
        "demo": ("demo", "demo", "Show the whole way on a real study, from DICOM to cloud and back."),
        "doctor": ("doctor", "doctor", "Check the installation, keys, audit log and settings."),
        "audit": ("audit", "audit", "Read and check the audit log."),
        "config": ("config", "config", "Show the settings and where they come from."),
        "completion": ("completion", "completion", "Print a script that completes commands in your shell."),
    },
}


class Root(LazyGroup):
    """The program itself: reports what goes wrong, and ends the process."""

    def main(  # type: ignore[override]  # we always end the process ourselves
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run, report what goes wrong by the rules of cli/ui.py, and exit with its code."""
        ui = Ui()
        _settle_streams()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
                signal.signal(number, _terminate)
        try:
            code = super().main(args, prog_name or "smp", standalone_mode=False, obj=ui, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            code = UsageError.exit_code
        except (click.Abort, KeyboardInterrupt):
            ui.stopped()
            code = _INTERRUPTED
        except BrokenPipeError:  # the reader of our output went away, and knows it
            code = 1
        except Exception as error:
            if os.environ.get("SMP_DEBUG"):
                raise
            known = _known(error)
            ui.fail(known)
            code = known.exit_code
        _let_go_of_output()
        sys.exit(code if isinstance(code, int) else 0)


def _known(error: Exception) -> SmpError:
    """Return `error` as one of ours."""
    match error:
        case SmpError():
            return error
        case click.ClickException():
            return _from_click(error)
        case OSError():
            return smp_error_from(error, f"use {error.filename or 'a file'}")
        case _:
            return _internal(error)


def _settle_streams() -> None:
    """Give the program the three streams it needs, whatever it was started with, and text output that no name makes fail."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started us; an opened file must not get its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - open for as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _let_go_of_output() -> None:
    """Throw away output that cannot be written: Python would complain of it once more at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class InternalError(SmpError):
    """The program has a mistake. The line of code where it shows is named; please report it."""

    code = "SMP-INTERNAL"
    default_hint = "please report it; with SMP_DEBUG=1 set the traceback is shown, which may hold data"


def _internal(error: Exception) -> SmpError:
    """Describe an unexpected error by its kind and place; its text might hold data."""
    place, step = "unknown place", error.__traceback__
    while step is not None:
        if _PACKAGE in step.tb_frame.f_code.co_filename:  # the innermost place that is ours
            place = f"{step.tb_frame.f_code.co_filename.rpartition(_PACKAGE)[2].lstrip(os.sep)}:{step.tb_lineno}"
        step = step.tb_next
    return InternalError(f"this should not have happened: {type(error).__name__} at {place}")


def _from_click(error: click.ClickException) -> SmpError:
    message = " ".join(error.format_message().split()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"`{context.command_path} --help` shows how it is used" if context else None
    return UsageError(message[:1].lower() + message[1:], hint=hint)


def _terminate(_signal: int, _frame: object) -> NoReturn:
    """End on SIGTERM as on Ctrl-C, so that unfinished files are removed on the way out."""
    raise KeyboardInterrupt


def _parse_settings(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    if any(not separator for _, separator, _ in pairs):
        raise click.BadParameter("write it as NAME=VALUE")
    return {name: value for name, _, value in pairs}


@click.group(cls=Root, sections=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="smp", message="%(prog)s %(version)s")
@click.option(
    "-c",
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_parse_settings,
    help="Use this value for a setting; see `smp config show`.",
)
@talk_options
def main(settings: dict[str, str]) -> None:
    """Take sensitive images through clouds you do not trust, and back.

    \b
    Examples:
      smp key generate
      smp encrypt scan.nii.gz
      smp decrypt scan.nii.gz.smp -o copy.nii.gz
      smp demo
    """
    if settings:
        from secure_media_processor.core.config import set_flags

        set_flags(settings)
