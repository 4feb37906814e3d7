"""The options of a collection, as DESIGN's contract and ``--help`` have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from registry_gc.cli.flags import (
    DeadlineType,
    DurationType,
    FileType,
    LimitType,
    RateType,
    ReleaseType,
    SizeType,
)

Command = TypeVar("Command", bound=Callable[..., Any])


def _option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """An option that can also be set by ``RGC_<NAME>``."""
    long = next(name for name in names if name.startswith("--"))
    variable = "RGC_" + long.partition("/")[0][2:].replace("-", "_").upper()
    return click.option(*names, envvar=variable, **settings)


OPTIONS = (
    _option(
        "-d", "--dry-run/--no-dry-run", default=False,
        help="Delete nothing; say what would go.",
    ),
    _option(
        "-m", "--delete-untagged/--no-delete-untagged", default=False,
        help="Also delete manifests that no tag leads to.",
    ),
    _option("-q", "--quiet/--no-quiet", default=False, help="No text on stdout, no progress."),
    _option("-v", "--verbose", is_flag=True, help="Also name each manifest and blob marked."),
    _option(
        "--output", type=click.Choice(["text", "json"]), default="text", show_default=True,
        help="Lines for people and scripts, or one JSON document.",
    ),
    _option(
        "--registry-stopped", is_flag=True,
        help="The registry is stopped, its process has ended: go on if every address refuses the "
        "connection.",
    ),
    _option(
        "--stop-command", metavar="COMMAND",
        help="Stops the registry before the collection, by `sh -c`, and waits for its end.",
    ),
    _option(
        "--start-command", metavar="COMMAND",
        help="Starts it again, whatever has happened.",
    ),
    _option(
        "--readonly-command", metavar="COMMAND",
        help="Instead of stopping it: makes the registry read-only. The config is read afterwards.",
    ),
    _option(
        "--readwrite-command", metavar="COMMAND",
        help="Makes it writable again, whatever has happened.",
    ),
    _option(
        # What is ended at once leaves the registry nobody knows how.
        "--command-timeout", type=DurationType(least=1.0), default="5m", show_default=True,
        metavar="DURATION", help="How long each of these commands may take.",
    ),
    _option(
        "--registry-url", "registry_urls", multiple=True, metavar="URL",
        help="Another address of a registry on this storage, to be asked whether it is "
        "read-only. Repeatable.",
    ),
    _option(
        "--registry-auth-file", type=click.Path(exists=True, dir_okay=False), metavar="PATH",
        help="Credentials for asking the registry, as `docker login` writes them.",
    ),
    _option(
        "--assume-readonly", is_flag=True,
        help="Take it that nobody writes where that cannot be found out. Is recorded.",
    ),
    _option(
        "--grace", type=DurationType(), default="0", show_default=True, metavar="DURATION",
        help="Nothing younger is deleted, such as 24h or 7d.",
    ),
    _option(
        "--upload-age", type=DurationType(), metavar="DURATION",
        help="Unfinished uploads older than this go, also those that have lost their start "
        "time. Default: the config's uploadpurging, else 168h.",
    ),
    _option(
        "--max-delete", type=LimitType(), metavar="N|P%",
        help="Refuse to delete more blobs than this, or than this part of them.",
    ),
    _option("--allow-empty", is_flag=True, help="Delete even if not one manifest is live."),
    _option(
        "--accept-shrink", is_flag=True,
        help="Delete even if half of the repositories or tags are gone since the last run, or half "
        "of the manifests are missing.",
    ),
    _option(
        "--deadline", type=DeadlineType(), metavar="TIME|DURATION",
        help="Stop then, with exit code 5: at a time such as 06:00, or after 90m.",
    ),
    _option(
        "--keep-empty-repositories", is_flag=True,
        help="Leave repositories that become empty in the catalogue.",
    ),
    _option(
        "--purge-versions", is_flag=True,
        help="In a bucket that keeps versions, delete those of all that is deleted, by this run "
        "or before it, for good.",
    ),
    _option(
        "--quarantine", type=DurationType(), metavar="DURATION",
        help="Set aside what would be deleted, within the storage: `registry-gc restore` brings "
        "it back, `registry-gc purge` deletes it after this time. Frees no space before.",
    ),
    _option(
        "--allow-writable", is_flag=True,
        help="Go on while a registry takes writes. Only with a --quarantine of 24h at least; "
        "--grace is then 24h at least too.",
    ),
    _option(
        "--release", "releases", type=ReleaseType(), multiple=True,
        metavar="REPOSITORY[@DIGEST]",
        help="Do not hold this repository although something in it is damaged. Repeatable. "
        "Is recorded.",
    ),
    _option(
        "--verify", is_flag=True,
        help="Before deleting, work out a second time and in another way that nothing live goes; "
        "afterwards, look whether all that is live is there. Takes about twice as long.",
    ),
    _option(
        "--workers", type=click.IntRange(1, 1024), metavar="N",
        help="How many requests, or processes, at once. Default: what suits the storage.",
    ),
    _option(
        "--dask", metavar="ADDRESS",
        help="List and read on the Dask cluster whose scheduler is at ADDRESS, such as "
        "tcp://scheduler:8786. Object stores only.",
    ),
    _option(
        "--max-requests-per-second", type=RateType(), metavar="N",
        help="Ask the storage no more often than this.",
    ),
    _option(
        "--cache", "cache", type=FileType(), metavar="PATH",
        help="Where what manifests reference is remembered from run to run. Default: in the "
        "state directory; on a filesystem, where reading them is as fast, nowhere.",
    ),
    _option("--no-cache", is_flag=True, help="Read every manifest again; remember none."),
    _option(
        "--run-file", type=FileType(), metavar="PATH",
        help="Where to write the run file: plan, journal and audit in one SQLite file. "
        "A run that was stopped goes on with its own. Default: in the state directory.",
    ),
    _option(
        "--state-dir", type=click.Path(file_okay=False), metavar="PATH",
        help="Where run files are kept. Default: $XDG_STATE_HOME/registry-gc, for root "
        "/var/lib/registry-gc.",
    ),
    _option(
        "--metrics-file", type=click.Path(dir_okay=False), metavar="PATH",
        help="Write metrics to this file, for node_exporter's textfile collector.",
    ),
    _option("--pushgateway", metavar="URL", help="Send metrics to this Prometheus Pushgateway."),
    _option(
        "--capacity", type=SizeType(), metavar="SIZE",
        help="How much the storage may hold, such as 2TB or 500GiB, for metrics. Default: on a "
        "filesystem, its size.",
    ),
    _option(
        "--audit-log", metavar="PATH|syslog[:WHERE]",
        help="Append a JSON line for each deletion and each hold to this file, or send it to "
        "syslog; WHERE is a facility, a socket's path, or [tcp:]HOST[:PORT].",
    ),
    _option(
        "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True,
        help="What stderr gets: lines for people, or JSON objects, one a line, without bars.",
    ),
    _option(
        "--keep-runs", type=click.IntRange(min=1), metavar="N",
        help="At the end remove older run files than the N newest. Those of runs that go on, or "
        "left something undecided, stay.",
    ),
)  # fmt: skip


def collection_options(command: Command) -> Command:
    """Give *command* all options of a collection, in their order."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def _parameters() -> list[click.Parameter]:
    @collection_options
    def bearer() -> None:
        """Bears the options, as click notes them down."""

    found: list[click.Parameter] = bearer.__dict__["__click_params__"]
    return found


def defaults() -> dict[str, Any]:
    """What every option of a collection is where nobody gives it, no variable either."""
    params = _parameters()
    for param in params:
        param.envvar = None
    return click.Command("defaults", params=params).make_context("defaults", []).params


def _name(option: Callable[[Any], Any]) -> str:
    """The parameter that *option* fills."""

    @click.command()
    @option
    def probe() -> None:
        """Never called."""

    return str(probe.params[0].name)


def chosen(*names: str, **helps: str) -> Callable[[Command], Command]:
    """Those of a collection's options that another command has too, by their parameters' names.

    :param helps: what an option's help says there instead, where it does something else.
    """
    by_name = {_name(option): option for option in OPTIONS}

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = by_name[name](command)
            if name in helps:
                command.__dict__["__click_params__"][-1].help = helps[name]
        return command

    return decorate
