"""The options of a collection, as DESIGN's contract and ``--help`` have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from registry_gc.cli.flags import (
    DeadlineType,
    DurationType,
    FileType,
    FolderType,
    LimitType,
    NamedType,
    RateType,
    ReleaseType,
    SchedulerType,
    SizeType,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Command = TypeVar("Command", bound=Callable[..., Any])


def paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """For a shell, of what is a path or another word: the paths."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


OPTIONS = (
    click.option(
        "-d", "--dry-run/--no-dry-run", default=False,
        help="Delete nothing; say what would go.",
    ),
    click.option(
        "-m", "--delete-untagged/--no-delete-untagged", default=False,
        help="Also delete manifests that no tag leads to.",
    ),
    click.option("-q", "--quiet/--no-quiet", default=False, help="No text on stdout, no progress."),
    click.option("-v", "--verbose", is_flag=True, help="Also name each manifest and blob marked."),
    click.option(
        "--output", type=click.Choice(["text", "json"]), default="text", show_default=True,
        help="Lines for people and scripts, or one JSON document.",
    ),
    click.option(
        "--registry-stopped", is_flag=True,
        help="The registry is stopped, its process has ended: go on if every address refuses the "
        "connection.",
    ),
    click.option(
        "--stop-command", metavar="COMMAND",
        help="Stops the registry before the collection, by `sh -c`, and waits for its end.",
    ),
    click.option(
        "--start-command", metavar="COMMAND",
        help="Starts it again, whatever has happened.",
    ),
    click.option(
        "--readonly-command", metavar="COMMAND",
        help="Instead of stopping it: makes the registry read-only. The config is read afterwards.",
    ),
    click.option(
        "--readwrite-command", metavar="COMMAND",
        help="Makes it writable again, whatever has happened.",
    ),
    click.option(
        # What is ended at once leaves the registry nobody knows how.
        "--command-timeout", type=DurationType(least=1.0), default="5m", show_default=True,
        metavar="DURATION", help="How long each of these commands may take.",
    ),
    click.option(
        "--registry-url", "registry_urls", multiple=True, metavar="URL",
        help="Another address of a registry on this storage, to be asked whether it is "
        "read-only. Repeatable.",
    ),
    click.option(
        "--registry-auth-file", type=click.Path(exists=True, dir_okay=False), metavar="PATH",
        help="Credentials for asking the registry, as `docker login` writes them.",
    ),
    click.option(
        "--assume-readonly", is_flag=True,
        help="Take it that nobody writes where that cannot be found out. Is recorded.",
    ),
    click.option(
        "--grace", type=DurationType(), default="0", show_default=True, metavar="DURATION",
        help="Nothing younger is deleted, such as 24h or 7d.",
    ),
    click.option(
        "--upload-age", type=DurationType(), metavar="DURATION",
        help="Unfinished uploads older than this go, also those that have lost their start "
        "time. Default: the config's uploadpurging, else 168h.",
    ),
    click.option(
        "--max-delete", type=LimitType(), metavar="N|P%",
        help="Refuse to delete more blobs than this, or than this part of them.",
    ),
    click.option("--allow-empty", is_flag=True, help="Delete even if not one manifest is live."),
    click.option(
        "--accept-shrink", is_flag=True,
        help="Delete even if half of the repositories or tags are gone since the last run, or half "
        "of the manifests are missing.",
    ),
    click.option(
        "--deadline", type=DeadlineType(), metavar="TIME|DURATION",
        help="Stop then, with exit code 5: at a time such as 06:00, or after 90m.",
    ),
    click.option(
        "--keep-empty-repositories", is_flag=True,
        help="Leave repositories that become empty in the catalogue.",
    ),
    click.option(
        "--purge-versions", is_flag=True,
        help="In a bucket that keeps versions, delete those of all that is deleted, by this run "
        "or before it, for good.",
    ),
    click.option(
        "--quarantine", type=DurationType(), metavar="DURATION",
        help="Set aside what would be deleted, within the storage: `registry-gc restore` brings "
        "it back, `registry-gc purge` deletes it after this time. Frees no space before.",
    ),
    click.option(
        "--allow-writable", is_flag=True,
        help="Go on while a registry takes writes. Only with a --quarantine of 24h at least; "
        "--grace is then 24h at least too.",
    ),
    click.option(
        "--release", "releases", type=ReleaseType(), multiple=True,
        metavar="REPOSITORY[@DIGEST]",
        help="Do not hold this repository although something in it is damaged. Repeatable. "
        "Is recorded.",
    ),
    click.option(
        "--verify", is_flag=True,
        help="Before deleting, work out a second time and in another way that nothing live goes; "
        "afterwards, look whether all that is live is there. Takes about twice as long.",
    ),
    click.option(
        "--workers", type=click.IntRange(1, 1024), metavar="N",
        help="How many requests, or processes, at once. Default: what suits the storage.",
    ),
    click.option(
        "--dask", type=SchedulerType(), metavar="ADDRESS",
        help="List and read on the Dask cluster whose scheduler is at ADDRESS, such as "
        "tcp://scheduler:8786. Object stores only.",
    ),
    click.option(
        "--max-requests-per-second", type=RateType(), metavar="N",
        help="Ask the storage no more often than this.",
    ),
    click.option(
        "--cache", "cache", type=FileType(), metavar="PATH",
        help="Where what manifests reference is remembered from run to run. Default: in the "
        "state directory; on a filesystem, where reading them is as fast, nowhere.",
    ),
    click.option("--no-cache", is_flag=True, help="Read every manifest again; remember none."),
    click.option(
        "--run-file", type=FileType(), metavar="PATH",
        help="Where to write the run file: plan, journal and audit in one SQLite file. "
        "A run that was stopped goes on with its own. Default: in the state directory.",
    ),
    click.option(
        "--state-dir", type=FolderType(), metavar="PATH",
        help="Where run files are kept. Default: $XDG_STATE_HOME/registry-gc, for root "
        "/var/lib/registry-gc.",
    ),
    click.option(
        "--metrics-file", type=NamedType(dir_okay=False), metavar="PATH",
        help="Write metrics to this file, for node_exporter's textfile collector.",
    ),
    click.option(
        "--pushgateway", metavar="URL",
        help="Send metrics to this Prometheus Pushgateway.",
    ),
    click.option(
        "--capacity", type=SizeType(), metavar="SIZE",
        help="How much the storage may hold, such as 2TB or 500GiB, for metrics. Default: on a "
        "filesystem, its size without what is kept for root.",
    ),
    click.option(
        "--audit-log", metavar="PATH|syslog[:WHERE]", shell_complete=paths,
        help="Append a JSON line for each deletion and each hold to this file, or send it to "
        "syslog; WHERE is a facility, a socket's path, or [tcp:]HOST[:PORT].",
    ),
    click.option(
        "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True,
        help="What stderr gets: lines for people, or JSON objects, one a line, without bars.",
    ),
    click.option(
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
    """What :data:`OPTIONS` make, in their order."""
    return [option(click.Command("")).params[0] for option in OPTIONS]


def defaults() -> dict[str, Any]:
    """What every option of a collection is where nobody gives it, no variable either."""
    params = _parameters()
    for param in params:
        param.envvar = None
    return click.Command("defaults", params=params).make_context("defaults", []).params


def chosen(*names: str, **helps: str) -> Callable[[Command], Command]:
    """Those of a collection's options that another command has too, by their parameters' names.

    :param helps: what an option's help says there instead, where it does something else.
    """
    by_name = {made.name: option for made, option in zip(_parameters(), OPTIONS, strict=True)}

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = by_name[name](command)
            if name in helps:
                command.__dict__["__click_params__"][-1].help = helps[name]
        return command

    return decorate
