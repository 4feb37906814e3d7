"""Options in the forms that scripts written for the stock command use.

Its three flags are Go's, which take ``=true`` and ``=false``: ``--dry-run=false`` is common in
scripts that fill in a variable.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click

from registry_gc import __version__
from registry_gc.cli.variables import name_variables, tell_unknown
from registry_gc.machine.shortage import NO_MEMORY, is_out_of_memory

LOSSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What is written to a disk or a device is lost then, though somebody wanted it."""
# The value is that of the last flag in a word, as in pflag.
_GO_FLAG = re.compile(
    r"(?:-([dmqv]*)([dmq])|(--dry-run|--delete-untagged|--quiet))=(.*)", re.DOTALL
)
_LONG = {"d": "--dry-run", "m": "--delete-untagged", "q": "--quiet"}
# Source: Go's strconv.ParseBool.
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

# Passwords stand before an "@"; no address of a scheduler has one.
_SCHEDULER = re.compile(
    r"(?:(?:tcp|tls|ws|wss)://)?(?:\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]]+):(?P<port>[0-9]{1,5})/?"
)


@contextmanager
def untraced() -> Iterator[None]:
    """What happens before a command runs is told in a line: Ctrl-C, no memory, a disk that is full.

    Ctrl-C while a command is still being imported is what it is later: exit code 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        click.echo("error: interrupted by SIGINT", err=True)
        sys.exit(128 + signal.SIGINT)
    except (MemoryError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        click.echo(f"error: {NO_MEMORY}", err=True)
        sys.exit(1)
    except OSError as error:
        # A pipe that nobody reads is click's affair; all else would be a fault of ours.
        if error.errno not in LOSSES:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def _refuse_lost_paths(ctx: click.Context) -> None:
    """Refuse relative paths where the working directory was removed: they lead nowhere.

    Here, before a registry is stopped; whoever makes such a path absolute would fail.
    """
    try:
        os.getcwd()
    except OSError as error:
        for param in ctx.command.params:
            value = ctx.params.get(str(param.name))
            if isinstance(param.type, click.Path) and value and not os.path.isabs(str(value)):
                what = f"the working directory cannot be found ({error.strerror})"
                raise click.BadParameter(
                    f"{value!r} is relative, and {what}", ctx, param
                ) from error


def _name_variable(ctx: click.Context, error: click.BadParameter) -> None:
    """Let *error* name the variable, where the value is from one: nobody typed the option."""
    param = error.param
    if param is None or not isinstance(param.envvar, str):
        return
    if ctx.get_parameter_source(str(param.name)) is click.core.ParameterSource.ENVIRONMENT:
        error.param_hint = f"{param.get_error_hint(ctx)}, from {param.envvar}"


def _say_failed(why: str) -> None:
    """What programs read where a command could not even be imported; ``schema`` 1."""
    import json

    told = {"schema": 1, "version": __version__, "error": why, "exit_code": 1}
    click.echo(json.dumps(told, indent=2))


class DropInCommand(click.Command):
    """A command that understands the stock command's flags as Go writes them.

    Every command is one, so that what is set for one of them, such as ``RGC_DRY_RUN``, is never
    passed over by another that has the option too.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        name_variables(self)

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Read the arguments, or answer ``--help`` and ``--version``."""
        with untraced():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        # numpy starts a thread on each core for linear algebra, of which there is none here, and
        # worker processes are forked before there is any thread.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        with untraced():
            tell_unknown(ctx)
            _refuse_lost_paths(ctx)
            try:
                return super().invoke(ctx)
            except (MemoryError, ImportError) as error:
                # What it can tell itself it has told.
                if is_out_of_memory(error) and ctx.params.get("output") == "json":
                    _say_failed(NO_MEMORY)
                raise

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Turn ``--flag=true`` into ``--flag``, and ``--flag=false`` into ``--no-flag``."""
        end = args.index("--") if "--" in args else len(args)
        plain = [word for arg in args[:end] for word in self._plain(ctx, arg)]
        try:
            return super().parse_args(ctx, plain + args[end:])
        except click.BadParameter as error:
            _name_variable(ctx, error)
            raise

    def _plain(self, ctx: click.Context, arg: str) -> list[str]:
        match = _GO_FLAG.fullmatch(arg)
        if match is None:
            return [arg]
        others, short, long, value = match.groups()
        flag = long or _LONG[short]
        before = [f"-{others}"] if others else []
        if value in _TRUE:
            return [*before, flag]
        if value in _FALSE:
            return [*before, flag.replace("--", "--no-", 1)]
        raise click.BadParameter(f"{value!r} is neither true nor false", ctx, param_hint=flag)


class DurationType(click.ParamType[float]):
    """A duration as Go writes it, with ``d`` and ``w`` too; its value is seconds.

    :param least: seconds; less is refused.
    """

    name = "duration"

    def __init__(self, least: float = 0.0) -> None:
        self._least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read a duration."""
        from registry_gc.wording.durations import parse_duration

        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds < self._least:
            self.fail(f"{value!r} is less than {self._least:g} s", param, ctx)
        return seconds


class DeadlineType(click.ParamType[float]):
    """A time of day, a date and time, or a duration; its value is seconds from now."""

    name = "time|duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read a deadline."""
        from registry_gc.wording.durations import parse_deadline

        if isinstance(value, float):
            return value
        try:
            return parse_deadline(str(value), datetime.now().astimezone())
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SchedulerType(click.ParamType[str]):
    """Where a Dask scheduler is. One that is refused is not printed: it may hold a password."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Look whether it is an address; without a scheme it is ``tcp``, as Dask has it."""
        found = _SCHEDULER.fullmatch(str(value))
        if found is None or not 0 < int(found["port"]) < 1 << 16:
            self.fail("expected tcp://HOST:PORT or tls://HOST:PORT", param, ctx)
        return str(value)


class LimitType(click.ParamType[Any]):
    """A count, or a percentage."""

    name = "n|p%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a limit."""
        from registry_gc.policy import Limit

        try:
            return value if isinstance(value, Limit) else Limit.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class ReleaseType(click.ParamType[Any]):
    """A repository, or one digest in it."""

    name = "repository[@digest]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a release."""
        from registry_gc.policy import Release

        try:
            return value if isinstance(value, Release) else Release.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class ConfigType(click.Path):
    """Where the config is; whoever reads it says whether that is possible, and to whom."""

    def __init__(self) -> None:
        super().__init__(readable=False)


class RateType(click.FloatRange):
    """A number above 0."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a rate."""
        rate = super().convert(value, param, ctx)
        if rate != rate:
            self.fail(f"{value!r} is no number", param, ctx)
        return rate


class NamedType(click.Path):
    """A path that is not empty: it would be taken for none, or for the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a path."""
        if not value:
            # A variable of a script's that is not set.
            self.fail("is empty, and no path", param, ctx)
        return super().convert(value, param, ctx)


class FolderType(NamedType):
    """A folder, or a path where nothing is yet."""

    def __init__(self) -> None:
        super().__init__(file_okay=False)


class FileType(NamedType):
    """A regular file, or a path where nothing is yet: what is written there takes its place."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a path."""
        path = super().convert(value, param, ctx)
        if os.path.exists(path) and not os.path.isfile(path):
            self.fail(f"{value!r} is no regular file", param, ctx)
        return path


class SizeType(click.ParamType[int]):
    """A size with its unit, decimal (``2TB``) or binary (``2TiB``); its value is bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a size."""
        import bitmath  # type: ignore[import-untyped]  # has neither types nor stubs

        if isinstance(value, int):
            return value
        text = str(value).strip()
        try:
            found = int(bitmath.parse_string(f"{text} B" if text.isdigit() else text).bytes)
        except (ValueError, OverflowError):
            found = 0
        if found <= 0:
            self.fail(f"{value!r} is no size such as 500GB or 2TiB", param, ctx)
        return found
