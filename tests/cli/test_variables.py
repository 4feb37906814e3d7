"""Options and their variables: one for each option, the same to all commands."""

from __future__ import annotations

import json
import re
from typing import Any

import click
import pytest
from click.testing import CliRunner

from command_line import go
from registry_gc.cli.main import registry_garbage_collect, registry_gc
from registry_gc.cli.options import OPTIONS
from registry_gc.cli.plan import show
from registry_tree import sha256
from running import Disk, write_config


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
        assert (answer.exit_code, f"{option}', from {variable}: " in answer.stderr) == (2, True)


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


@pytest.mark.parametrize("name", ["RGC_GRACE", "RGC_WORKERS", "RGC_OUTPUT"])
def test_a_slip_in_a_variable_names_the_variable(
    disk: Disk, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "soon")
    result = go(disk)
    assert result.exit_code == 2
    assert f", from {name}: " in result.errors


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
