"""The command as scripts, cron and people call it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from model import HOUR
from registry_gc import __version__
from registry_gc.cli.main import registry_garbage_collect, registry_gc
from registry_gc.cli.options import OPTIONS
from registry_gc.cli.output import Output
from registry_gc.cli.plan import show
from registry_tree import blob_path, folder_sink, layer_link_path, sha256, tag_path
from running import Disk, Result, run, write_config

MAIN = "from registry_gc.cli.main import registry_garbage_collect as main; main()"


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.tree.image("a", None, layers=[b"untagged"])
    disk.tree.layer("a", b"orphan")
    disk.age()
    return disk


def go(disk: Disk, *arguments: str | Path, config: Path | None = None) -> Result:
    """Run on *disk* in this process."""
    return run(*arguments, config or write_config(disk.root), state=disk.folder / "state")


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    places = os.pathsep.join(place for place in sys.path if place)
    return {**os.environ, "PYTHONPATH": places, **(more or {})}


GROUP = "from registry_gc.cli.main import registry_gc; registry_gc()"


def call(
    *arguments: str | Path,
    redirect: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    main: str = MAIN,
) -> subprocess.CompletedProcess[bytes]:
    """Run the command as a process of its own; *redirect* is the shell's."""
    words = shlex.join([sys.executable, "-c", main, *map(str, arguments)])
    return subprocess.run(
        ["sh", "-c", f"exec {words} {redirect}"],
        env=environment(env),
        cwd=cwd,
        capture_output=True,
        check=False,
    )


def own_folder_is_gone(disk: Disk) -> bool:
    return not disk.has("docker/registry/registry-gc")


# Flags as Go writes them


@pytest.mark.parametrize("value", ["", "=true", "=True", "=TRUE", "=t", "=T", "=1"])
@pytest.mark.parametrize("flag", ["-d", "--dry-run"])
def test_flags_take_what_go_calls_true(disk: Disk, flag: str, value: str) -> None:
    result = go(disk, flag + value, "--output", "json")
    assert (result.exit_code, result.json["dry_run"]) == (0, True)
    assert disk.has_blob(sha256(b"orphan"))


@pytest.mark.parametrize("value", ["=false", "=False", "=FALSE", "=f", "=F", "=0"])
@pytest.mark.parametrize("flag", ["-d", "--dry-run"])
def test_flags_take_what_go_calls_false(disk: Disk, flag: str, value: str) -> None:
    result = go(disk, flag + value, "--output", "json")
    assert (result.exit_code, result.json["dry_run"]) == (0, False)
    assert not disk.has_blob(sha256(b"orphan"))


def test_the_last_flag_counts(disk: Disk) -> None:
    assert go(disk, "--dry-run=false", "-d", "--output", "json").json["dry_run"]
    assert not go(disk, "-d", "--dry-run=false", "--output", "json").json["dry_run"]


def test_the_other_stock_flags_are_as_free(disk: Disk) -> None:
    result = go(disk, "-d", "-m=true", "-q=false", "--output", "json")
    assert result.json["delete_untagged"]
    assert result.json["manifests"]["eligible"] == 1
    assert not go(disk, "-d", "--delete-untagged=0", "--output", "json").json["delete_untagged"]
    assert go(disk, "-d", "--quiet=1").text == ""
    assert go(disk, "-dmq").text == ""


@pytest.mark.parametrize(
    ("word", "dry_run", "untagged"),
    [
        ("-dm=false", True, False),
        ("-dm=true", True, True),
        ("-md=0", False, True),
        ("-dqm=T", True, True),
        ("-dq=true", True, False),
        ("-vdm=1", True, True),
        ("-dmd=false", False, True),
    ],
)
def test_the_last_of_several_flags_in_a_word_has_the_value(
    disk: Disk, word: str, dry_run: bool, untagged: bool
) -> None:
    document = go(disk, word, "--output", "json").json
    assert (document["dry_run"], document["delete_untagged"]) == (dry_run, untagged)


@pytest.mark.parametrize("word", ["-dm=maybe", "-dm=", "-dx=true", "-=true", "-dmfalse", "-dm==1"])
def test_a_word_of_flags_that_means_nothing_is_a_usage_error(disk: Disk, word: str) -> None:
    assert go(disk, word).exit_code == 2
    assert disk.has_blob(sha256(b"orphan"))


@pytest.mark.parametrize("option", ["--cache", "--run-file"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_file_of_ours_is_never_put_in_the_place_of_a_device(
    disk: Disk, option: str, make: Callable[[Path], None]
) -> None:
    path = disk.folder / "device"
    make(path)
    kind = path.stat().st_mode
    result = go(disk, option, path)
    assert result.exit_code == 2
    assert option in result.errors
    assert path.stat().st_mode == kind
    assert disk.has_blob(sha256(b"orphan"))


@pytest.mark.parametrize("argument", ["--dry-run=maybe", "-m=", "-q=yes", "--delete-untagged=2"])
def test_a_flag_with_another_value_is_a_usage_error(disk: Disk, argument: str) -> None:
    result = go(disk, argument)
    assert result.exit_code == 2
    assert "neither true nor false" in result.errors
    assert disk.has_blob(sha256(b"orphan"))


def test_what_comes_after_two_dashes_is_no_flag(disk: Disk) -> None:
    config = write_config(disk.root).rename(disk.folder / "-d=true")
    before = Path.cwd()
    os.chdir(disk.folder)
    try:
        result = run("--output", "json", "--", config.name, state=disk.folder / "state")
    finally:
        os.chdir(before)
    assert (result.exit_code, result.json["dry_run"]) == (0, False)


@pytest.fixture
def no_working_directory(tmp_path: Path) -> Iterator[None]:
    """The working directory was removed, as a job's scratch folder may be."""
    before = Path.cwd()
    folder = tmp_path / "scratch"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    yield
    os.chdir(before)


@pytest.mark.usefixtures("no_working_directory")
@pytest.mark.parametrize(
    "line",
    [
        ["run", "--run-file", "x", "CONFIG"],
        ["run", "--cache", "x", "--stop-command", "touch stopped", "CONFIG"],
        ["run", "config.yml"],
        ["plan", "-o", "x", "CONFIG"],
        ["purge", "--cache", "x", "CONFIG"],
        ["report", "--html", "x", "CONFIG"],
        ["verify", "RELATIVE"],
    ],
)
def test_a_relative_path_without_a_working_directory_is_a_usage_error(
    disk: Disk, line: list[str]
) -> None:
    places = {"CONFIG": write_config(disk.root), "RELATIVE": disk.folder / "relative.yml"}
    places["RELATIVE"].write_text("version: 0.1\nstorage: {filesystem: {rootdirectory: here}}\n")
    words = [str(places.get(word, word)) for word in line]
    answer = CliRunner().invoke(registry_gc, [*words, "--output", "json"])
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert "is relative, and the working directory cannot be found" in answer.stderr
    assert disk.has_blob(sha256(b"orphan"))


@pytest.mark.usefixtures("no_working_directory")
def test_without_a_working_directory_absolute_paths_will_do(disk: Disk) -> None:
    assert go(disk).exit_code == 0
    assert not disk.has_blob(sha256(b"orphan"))


# Options and their variables


def test_every_option_can_be_set_by_a_variable_of_its_name() -> None:
    for parameter in registry_garbage_collect.params:
        long = [name for name in parameter.opts if name.startswith("--")]
        if parameter.name in ("help", "version", "config"):
            continue
        assert parameter.envvar == "RGC_" + long[0][2:].replace("-", "_").upper()
        assert getattr(parameter, "help", ""), long
    assert len(registry_garbage_collect.params) == len(OPTIONS) + 2


def all_commands() -> dict[str, click.Command]:
    """Every command by how it is called, ``plan show`` among them."""
    context = click.Context(registry_gc)
    found: dict[str, click.Command] = {
        "registry-garbage-collect": registry_garbage_collect,
        "plan show": show,
    }
    for name in registry_gc.list_commands(context):
        command = registry_gc.get_command(context, name)
        assert command is not None
        found[name] = command
    return found


def test_every_option_of_every_command_reads_its_variable_and_help_says_so() -> None:
    unnamed = set()
    for called, command in all_commands().items():
        options = [one for one in command.params if isinstance(one, click.Option)]
        options = [one for one in options if one.name != "version"]
        for option in options:
            long = [name for name in option.opts if name.startswith("--")]
            if not long:
                unnamed.add((called, *option.opts))
                continue
            assert option.envvar == "RGC_" + long[0][2:].replace("-", "_").upper(), called
        assert ("RGC_<NAME>" in (command.epilog or "")) is bool(options), called
    # Of another name than --run-file, which is another thing: the README says so.
    assert unnamed == {("plan", "-o")}


def test_a_variable_means_the_same_to_all_commands() -> None:
    kinds: dict[object, set[str]] = {}
    for command in all_commands().values():
        for option in command.params:
            if isinstance(option, click.Option) and option.envvar:
                kind = f"{option.type!r} {option.is_flag} {option.multiple} {option.default}"
                kinds.setdefault(option.envvar, set()).add(
                    re.sub(" object at 0x[0-9a-f]+", "", kind)
                )
    assert {name for name, kind in kinds.items() if len(kind) > 1} == {"RGC_OUTPUT"}


@pytest.mark.parametrize(
    ("command", "variable", "value"),
    [
        ("report", "RGC_OUTPUT", "csv"),
        ("report", "RGC_TOP", "many"),
        ("report", "RGC_GROUP_DEPTH", "0"),
        ("runs", "RGC_OUTPUT", "xml"),
        ("verify", "RGC_CONTENT", "maybe"),
        ("verify", "RGC_UNTAGGED", "maybe"),
        ("verify", "RGC_WHOLE_INDEXES", "maybe"),
        ("restore", "RGC_DRY_RUN", "maybe"),
        ("purge", "RGC_DRY_RUN", "maybe"),
    ],
)
def test_variables_set_options_of_other_commands(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, command: str, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    words = [command] if command == "runs" else [command, str(write_config(disk.root))]
    answer = CliRunner().invoke(registry_gc, words)
    if value == "csv":
        assert (answer.exit_code, answer.stdout.partition(",")[0]) == (0, "name")
    else:
        option = "--" + variable[4:].lower().replace("_", "-")
        assert (answer.exit_code, f"{option}': " in answer.stderr) == (2, True)


@pytest.mark.parametrize("called", [*all_commands()])
def test_a_variable_that_no_command_knows_is_told(
    called: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RGC_DRYRUN", "true")
    monkeypatch.setenv("RGC_OLDER_THAN", "30d")  # another command's, in a file for all of them
    monkeypatch.setenv("RGC_GROUP_DEPTH", "2")
    config = str(write_config(disk.root))
    plan = disk.folder / "plan"
    if called in ("apply", "plan show"):
        CliRunner().invoke(registry_gc, ["plan", config, "-o", str(plan)])
    lines = {
        "registry-garbage-collect": [config],
        "run": ["run", config],
        "plan": ["plan", config, "-o", str(plan)],
        "plan show": ["plan", "show", str(plan)],
        "apply": ["apply", str(plan)],
        "explain": ["explain", config, "a:v1"],
        "runs": ["runs"],
    }
    command = registry_garbage_collect if called == "registry-garbage-collect" else registry_gc
    answer = CliRunner().invoke(command, lines.get(called, [called, config]))
    assert answer.exit_code in (0, 1)
    told = [line for line in answer.stderr.splitlines() if "RGC_" in line]
    assert told == ["note: RGC_DRYRUN sets no option, and is ignored; did you mean RGC_DRY_RUN?"]


def test_what_kubernetes_sets_for_a_service_of_that_name_is_not_told(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP_ADDR"):
        monkeypatch.setenv(f"RGC_{name}", "tcp://10.0.0.1:80")
    assert "sets no option" not in go(disk, "--dry-run").errors


def test_a_variable_names_the_config_of_each_command(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RGC_CONFIG", str(write_config(disk.root)))
    monkeypatch.setenv("RGC_STATE_DIR", str(disk.folder / "state"))
    for words in (["run", "--dry-run"], ["report"], ["verify"]):
        answer = CliRunner().invoke(registry_gc, words)
        assert (answer.exit_code, "RGC_CONFIG" in answer.stderr) == (0, False), words


def test_an_unknown_variable_is_told_as_json_where_that_is_asked_for(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RGC_\n?", "1")
    monkeypatch.setenv("RGC_LOG_FORMAT", "json")
    told = json.loads(go(disk).errors.splitlines()[0])
    assert (told["level"], told["message"]) == (
        "note",
        "RGC_\\n? sets no option, and is ignored",
    )


@pytest.mark.parametrize(
    ("variables", "check"),
    [
        ({"RGC_DRY_RUN": "true"}, lambda found: found["dry_run"]),
        ({"RGC_DRY_RUN": "0"}, lambda found: not found["dry_run"]),
        ({"RGC_DELETE_UNTAGGED": "1"}, lambda found: found["manifests"]["eligible"] == 1),
        ({"RGC_GRACE": "1w"}, lambda found: found["blobs"]["eligible"] == 0),
        ({"RGC_MAX_DELETE": "0"}, lambda found: found["exit_code"] == 4),
        ({"REGISTRY_DRY_RUN": "true"}, lambda found: not found["dry_run"]),
    ],
)
def test_variables_set_options(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], check: Any
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert check(go(disk, "--output", "json").json)


def test_the_command_line_overrides_the_variables(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RGC_DRY_RUN", "true")
    assert not go(disk, "--dry-run=false", "--output", "json").json["dry_run"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--no-such-option"], "No such option"),
        (["--grace", "tomorrow"], "no duration"),
        (["--grace", "-1h"], "negative"),
        (["--grace", "3600"], "no unit"),
        (["--upload-age", "1y"], "no duration"),
        (["--max-delete", "half"], "neither a count nor a percentage"),
        (["--max-delete", "101%"], "neither a count nor a percentage"),
        (["--workers", "0"], "--workers"),
        (["--max-requests-per-second", "0"], "--max-requests-per-second"),
        (["--max-requests-per-second", "nan"], "no number"),
        (["--output", "yaml"], "yaml"),
        (["--registry-auth-file", "/no/such/file"], "/no/such/file"),
        (["--registry-url", "not a url"], "not a url"),
        (["--run-file", "/"], "directory"),
        (["one.yml", "two.yml"], "unexpected extra argument"),
    ],
    ids=str,
)
def test_a_slip_on_the_command_line_is_exit_code_2_and_says_which(
    disk: Disk, arguments: list[str], complaint: str
) -> None:
    result = go(disk, *arguments)
    assert result.exit_code == 2
    assert complaint in result.errors
    assert result.text == ""
    assert disk.has_blob(sha256(b"orphan"))


# Configs


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is no such file"),
        (b"", "is empty"),
        (b"\0\xff", "is not YAML"),
        (b"storage: [", "is not YAML"),
        (b"just text", "is no mapping"),
        (b"version: 0.1", "storage"),
        (b"storage: {}", "names no driver"),
        (b"storage: {tape: {}}", "tape"),
        (b"storage: {filesystem: {}, s3: {}}", "keep one"),
        (b"storage: {inmemory: {}}", "in-memory"),
        (b"storage: {filesystem: {rootdirectory: [x]}}", "rootdirectory"),
        (b"storage: {filesystem: {}, maintenance: {readOnly: {enabled: true}}}", "readOnly"),
        (b"storage: {filesystem: {}, maintenance: {readonly: {enabled: 'true'}}}", "enabled"),
    ],
    ids=str,
)
@pytest.mark.parametrize("output", ["text", "json"])
def test_a_bad_config_is_one_line_that_names_the_file(
    disk: Disk, content: bytes | None, complaint: str, output: str
) -> None:
    config = disk.folder / "bad.yml"
    if content is not None:
        config.write_bytes(content)
    result = go(disk, "--output", output, config=config)
    assert result.exit_code == 2
    assert result.text == ""
    (line,) = result.errors.splitlines()
    assert line.startswith("error: ")
    assert str(config) in line
    assert complaint in line


def test_without_a_config_the_one_that_is_found_is_named(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(disk.root)
    monkeypatch.setenv("REGISTRY_CONFIGURATION_PATH", str(config))
    result = run("-d", state=disk.folder / "state")
    assert result.exit_code == 0
    assert f"note: using {config}" in result.errors


# Exit codes, and the document for each


def test_exit_code_0_is_done(disk: Disk) -> None:
    result = go(disk, "-m", "--output", "json")
    assert (result.exit_code, result.errors) == (0, "")
    assert result.json["guard"]["verdict"] == "allowed"
    assert result.json["blobs"] == {
        "total": 6,
        "eligible": 3,
        "eligible_bytes": result.json["blobs"]["deleted_bytes"],
        "deleted": 3,
        "deleted_bytes": result.json["blobs"]["deleted_bytes"],
    }
    assert own_folder_is_gone(disk)


def test_exit_code_1_is_failed(disk: Disk) -> None:
    existing = disk.folder / "run.sqlite"
    existing.write_bytes(b"mine")
    result = go(disk, "--output", "json", "--run-file", existing)
    assert result.exit_code == 1
    assert "exists already" in result.json["error"]
    assert "exists already" in result.errors
    assert existing.read_bytes() == b"mine"
    assert disk.has_blob(sha256(b"orphan"))
    assert own_folder_is_gone(disk)


def test_exit_code_3_is_done_but_for_what_is_held(disk: Disk) -> None:
    disk.write(tag_path("b", "v1"), b"")
    result = go(disk, "--output", "json")
    assert result.exit_code == 3
    assert result.held == {"b"}
    assert "1 held" in result.errors
    assert not disk.has_blob(sha256(b"orphan"))
    assert go(disk, "--output", "json", "-d").exit_code == 3


def test_exit_code_4_is_refused_and_nothing_was_deleted(disk: Disk) -> None:
    config = write_config(disk.root, readonly=False)
    result = go(disk, "--output", "json", config=config)
    assert result.exit_code == 4
    assert result.json["guard"]["verdict"] == "refused"
    assert result.json["run_file"] is None
    assert "refused, nothing was deleted" in result.errors
    assert disk.has_blob(sha256(b"orphan"))
    dry = go(disk, "--output", "json", "-d", config=config)
    assert (dry.exit_code, dry.json["guard"]["verdict"]) == (0, "refused")
    assert "a collection would be refused" in dry.errors


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_every_exit_but_a_usage_error_prints_one_document(
    disk: Disk, code: int, quiet: tuple[str, ...]
) -> None:
    arguments: list[str | Path] = ["--output", "json", *quiet]
    if code == 1:
        (disk.folder / "there").touch()
        arguments += ["--run-file", disk.folder / "there"]
    if code == 3:
        disk.write(tag_path("b", "v1"), b"")
    if code == 4:
        arguments += ["--max-delete", "0"]
    result = go(disk, *arguments)
    assert result.exit_code == result.json["exit_code"] == code
    assert (result.json["error"] is None) is (code in (0, 3))


def many_orphans(disk: Disk) -> Path:
    """So many that the lines about them do not fit into a pipe."""
    sink = folder_sink(disk.root)
    for number in range(700):
        digest = sha256(b"%d" % number)
        sink(blob_path(digest), b"")
        sink(layer_link_path("a", digest), digest.encode())
    disk.age()
    return write_config(disk.root)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_exit_codes_130_and_143_are_interrupted_and_safe_to_go_on(
    disk: Disk, number: signal.Signals
) -> None:
    config = many_orphans(disk)
    files = disk.files()
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "--state-dir", str(disk.folder / "state"), str(config)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    # Who has begun to write these lines cannot end before somebody reads the rest.
    process.stdout.read(1)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert errors == f"error: interrupted by {number.name}\n".encode()
    assert disk.files() == files
    assert own_folder_is_gone(disk)
    assert go(disk).exit_code == 0


# Output


def test_text_begins_with_the_stock_lines_and_ends_with_a_summary(disk: Disk) -> None:
    result = go(disk, "-m")
    lines = result.text.splitlines()
    assert lines[:3] == ["a", "", "3 blobs marked, 3 blobs and 1 manifests eligible for deletion"]
    assert len(result.lines("blob eligible for deletion: ")) == 3
    assert result.lines("a: layer link eligible for deletion: ")
    assert any(line.startswith("freed ") for line in lines)
    assert lines[-1].startswith("  run file ")


def test_verbose_names_what_is_marked(disk: Disk) -> None:
    assert len(go(disk, "-d", "-m", "-v").lines("a: marking manifest ")) == 1
    assert not go(disk, "-d", "-m").lines("a: marking manifest ")


def test_quiet_prints_nothing_but_problems(disk: Disk) -> None:
    result = go(disk, "-q")
    assert (result.exit_code, result.text, result.errors) == (0, "", "")
    refused = go(disk, "-q", config=write_config(disk.root, readonly=False))
    assert refused.text == ""
    assert refused.errors.startswith("error: ")


def test_a_refused_run_prints_no_summary(disk: Disk) -> None:
    result = go(disk, config=write_config(disk.root, readonly=False))
    assert result.text == ""


@pytest.mark.parametrize(
    ("redirect", "output"),
    [
        (">&-", "text"),
        (">&-", "json"),
        (">/dev/full", "text"),
        (">/dev/full", "json"),
        ("| :", "text"),
        ("2>&-", "text"),
        (">&- 2>/dev/full", "text"),
        ("<&- >&- 2>&-", "text"),
    ],
)
def test_no_way_of_closing_stdout_stops_a_sweep(disk: Disk, redirect: str, output: str) -> None:
    config = many_orphans(disk)
    state = disk.folder / "state"
    done = call("--state-dir", state, "--output", output, config, redirect=redirect)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert not disk.has_blob(sha256(b"orphan"))
    assert disk.has_blob(sha256(b"kept"))
    assert own_folder_is_gone(disk)
    (run_file,) = (state / "runs").glob("*.sqlite")
    with closing(sqlite3.connect(run_file)) as connection, connection:
        assert connection.execute("SELECT DISTINCT state FROM deletions").fetchall() == [
            ("deleted",)
        ]


@pytest.mark.parametrize("command", ["verify", "explain", "report", "runs"])
@pytest.mark.parametrize(
    ("redirect", "code"), [(">/dev/full", 1), (">&-", 0), ("| :", 0), (">/dev/null", 0)]
)
def test_what_only_looks_fails_where_its_answer_is_lost(
    disk: Disk, command: str, redirect: str, code: int
) -> None:
    disk.tree.image("a", "v1")
    config = str(write_config(disk.root))
    arguments = {"runs": [], "explain": [config, "a"]}.get(command, [config])
    states = [] if command in ("verify", "explain") else ["--state-dir", str(disk.folder / "s")]
    done = call(command, *states, *arguments, redirect=redirect, main=GROUP)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "how",
    [
        ("--registry-stopped",),
        ("--stop-command", "true", "--start-command", "true"),
        ("--readonly-command", "true", "--readwrite-command", "true"),
    ],
)
@pytest.mark.parametrize("timeout", [None, "60s"])
def test_a_registry_that_may_drain_is_told_of_on_stderr(
    disk: Disk, how: tuple[str, ...], timeout: str | None
) -> None:
    config, state = many_orphans(disk), disk.folder / "state"
    env = {} if timeout is None else {"REGISTRY_HTTP_DRAINTIMEOUT": timeout}
    done = call("--state-dir", state, *how, config, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"its process has ended") == (timeout is not None)


@pytest.mark.parametrize("output", ["text", "json"])
@pytest.mark.parametrize(
    ("redirect", "code"), [(">/dev/full", 1), (">&-", 0), ("| :", 0), (">/dev/null", 0)]
)
@pytest.mark.parametrize("command", ["registry-garbage-collect", "run", "plan"])
def test_a_dry_run_fails_where_its_answer_is_lost(
    disk: Disk, command: str, output: str, redirect: str, code: int
) -> None:
    config = write_config(disk.root)
    state = ("--state-dir", disk.folder / "state", "--output", output)
    if command == "plan":
        plan = disk.folder / "plan.sqlite"
        done = call("plan", "-o", plan, *state, config, redirect=redirect, main=GROUP)
    elif command == "run":
        done = call("run", "-d", *state, config, redirect=redirect, main=GROUP)
    else:
        done = call("-d", *state, config, redirect=redirect)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert disk.has_blob(sha256(b"orphan"))


def test_a_reader_that_goes_away_is_told_of_on_stderr(disk: Disk) -> None:
    done = call("--state-dir", disk.folder / "state", many_orphans(disk), redirect=">/dev/full")
    assert b"note: nothing more goes to stdout: " in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_that_stdout_cannot_say_are_shown_and_collected(disk: Disk, encoding: str) -> None:
    for name in ("odd-\udcff", "snow-\N{SNOWMAN}"):
        disk.tree.image(name, None, layers=[name.encode("utf-8", "surrogateescape")])
        disk.tree.upload(name, "u\udcfe", "2020-01-01T00:00:00Z")
    disk.age(30 * 24 * HOUR)
    config, state = write_config(disk.root), disk.folder / "state"
    done = call("-m", "--state-dir", state, config, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"odd-\\xff" in done.stdout
    assert ("snow-\N{SNOWMAN}" if encoding == "utf-8" else "snow-\\u2603").encode() in done.stdout
    assert not [path for path in disk.files() if "odd" in path or "snow" in path]


def test_json_is_printed_with_names_that_are_no_utf8(disk: Disk) -> None:
    disk.tree.tag("odd-\udcff", "v1", sha256(b"never pushed"))
    result = go(disk, "--output", "json")
    assert result.exit_code == 3
    assert "odd-\udcff" in result.json["damaged"][0]["path"]


def test_without_a_terminal_there_is_no_progress_bar(disk: Disk) -> None:
    done = call("--state-dir", disk.folder / "state", many_orphans(disk))
    assert done.stderr == b""


# State


def test_a_state_directory_that_cannot_be_written_is_replaced_and_named(disk: Disk) -> None:
    (disk.folder / "file").touch()
    wanted = disk.folder / "file" / "state"
    config = write_config(disk.root)
    done = call("--state-dir", wanted, config, env={"TMPDIR": str(disk.folder)})
    assert done.returncode == 0
    assert f"note: the state directory {wanted} cannot be written".encode() in done.stderr
    assert not disk.has_blob(sha256(b"orphan"))
    assert list(disk.folder.glob("registry-gc-*/runs/*.sqlite"))


def test_the_run_file_is_where_it_is_wanted_also_by_a_relative_path(disk: Disk) -> None:
    done = call("--run-file", "here.sqlite", write_config(disk.root), cwd=disk.folder)
    assert done.returncode == 0
    assert (disk.folder / "here.sqlite").exists()


def test_run_files_of_several_runs_lie_side_by_side(disk: Disk) -> None:
    for _ in range(3):
        assert go(disk).exit_code == 0
    assert len(list((disk.folder / "state/runs").glob("*.sqlite"))) == 3


# Help


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_every_option_and_every_exit_code(flag: str) -> None:
    answer = CliRunner().invoke(registry_garbage_collect, [flag])
    assert answer.exit_code == 0
    for parameter in registry_garbage_collect.params:
        assert parameter.name == "config" or any(name in answer.stdout for name in parameter.opts)
    for code in (0, 1, 2, 3, 4, 5, 130):
        assert re.search(rf"^ +{code}  +\w", answer.stdout, re.MULTILINE)
    assert "RGC_<NAME>" in answer.stdout


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version_is_told(flag: str) -> None:
    for command in (registry_garbage_collect, registry_gc):
        answer = CliRunner().invoke(command, [flag])
        assert (answer.exit_code, __version__ in answer.stdout) == (0, True)


def test_run_is_the_drop_in_in_the_group(disk: Disk) -> None:
    arguments = ["run", "-d", "--output", "json", "--state-dir", str(disk.folder / "state")]
    answer = CliRunner().invoke(registry_gc, [*arguments, str(write_config(disk.root))])
    assert answer.exit_code == 0
    assert json.loads(answer.stdout)["dry_run"]
    assert "run" in CliRunner().invoke(registry_gc, ["--help"]).stdout


def test_help_loads_nothing_that_takes_time() -> None:
    code = (
        "import sys\n"
        "from registry_gc.cli.main import registry_garbage_collect as main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'numpy', 'yaml', 'msgspec', 'sqlite3', 'boto3', 'obstore', 'urllib3', 'tqdm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_what_works_a_plan_out_again_is_loaded_for_verify_alone() -> None:
    code = (
        "import sys, registry_gc.apply, registry_gc.cli.run\n"
        "names = ('plan_check', 'closure', 'wholeness', 'every_tag', 'library')\n"
        "heavy = {f'registry_gc.verify.{name}' for name in names}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_long_texts_go_out_before_many_of_them_wait(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "\n".join(["a line of a plan that has very many"] * 1000)
    out = ""
    most = 0
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal out, most, taken
        for _ in range(200):
            taken += len(text) + 1
            yield text
            out += capsys.readouterr().out
            most = max(most, taken - len(out))

    Output().lines(texts())
    out += capsys.readouterr().out
    assert out == (text + "\n") * 200
    assert most < 1 << 19


@pytest.mark.parametrize("asked", [["--help"], ["--version"], ["plan", "--help"]])
def test_a_help_that_nobody_can_store_ends_with_a_line(asked: list[str]) -> None:
    command = "registry_garbage_collect" if len(asked) == 1 else "registry_gc"
    code = f"import registry_gc.cli.main as main; main.{command}()"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, *asked],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["error: [Errno 28] No space left on device"]


def test_a_config_that_may_not_be_read_is_told_in_our_words(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(disk.root)

    def refuse(path: object, *_: object, **__: object) -> bool:
        return str(path) != str(config)

    # What click asks, and would say nothing of the user.
    monkeypatch.setattr(os, "access", refuse)

    def denied(path: str, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("registry_gc.config_file.open", denied, raising=False)
    answer = CliRunner().invoke(registry_garbage_collect, ["--dry-run", str(config)])
    assert answer.exit_code == 2
    assert answer.stderr.startswith(f"error: {config}: user ")
    assert answer.stderr.count("\n") == 1
