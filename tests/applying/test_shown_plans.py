"""A plan is a file: shown to people and programs, without secrets, and in nobody's way."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from msgspec.structs import asdict

from applying.support import DAY, OLD, apply, call, plan
from registry_gc.machine.processes import Process
from registry_gc.runs.plan_file import PlanFile
from running import Disk, write_config

pytestmark = pytest.mark.usefixtures("by_name")


def show(file: Path, form: str) -> str:
    """What ``plan show`` prints."""
    from registry_gc.cli.main import registry_gc

    answer = CliRunner().invoke(registry_gc, ["plan", "show", str(file), "--format", form])
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def test_a_plan_can_be_shown_to_people_and_programs(disk: Disk) -> None:
    file = plan(disk.root, "-m")
    rows = [json.loads(line) for line in show(file, "jsonl").splitlines()]
    table = list(csv.DictReader(io.StringIO(show(file, "csv"))))
    assert [row["path"] for row in rows] == [row["path"] for row in table]
    assert {row["state"] for row in rows} == {"planned"}
    assert {row["kind"] for row in rows} == {"tag-index", "revision", "layer-link", "blob"}
    assert {row["path"] for row in rows} >= {OLD}
    text = show(file, "text")
    assert str(disk.root) in text
    assert OLD in text
    apply(disk.root, file)
    assert {json.loads(line)["state"] for line in show(file, "jsonl").splitlines()} == {"deleted"}
    assert "applied" in show(file, "text")


def test_what_is_no_plan_cannot_be_shown(tmp_path: Path) -> None:
    from registry_gc.cli.main import registry_gc

    (tmp_path / "file").write_bytes(b"x" * 5000)
    answer = CliRunner().invoke(registry_gc, ["plan", "show", str(tmp_path / "file")])
    assert answer.exit_code == 1
    assert answer.stderr.count("\n") == 1


def test_a_plan_holds_no_secret(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("app", "v1")
    disk.age(30 * DAY)
    config = write_config(disk.root)
    document = yaml.safe_load(config.read_text())
    document["http"] = {"secret": "very-secret-word"}
    config.write_text(yaml.safe_dump(document))
    file = tmp_path / "plan"
    assert call(disk.root, "plan", config, "-o", file).exit_code == 0
    assert b"very-secret-word" not in file.read_bytes()


def test_a_plan_never_replaces_a_file(disk: Disk) -> None:
    file = plan(disk.root, "-m")
    data = file.read_bytes()
    again = call(disk.root, "plan", write_config(disk.root), "-o", file)
    assert again.exit_code == 1
    assert "exists already" in again.errors
    assert file.read_bytes() == data


def test_show_is_a_command_and_every_other_word_a_config(disk: Disk) -> None:
    from registry_gc.cli.main import registry_gc

    for arguments, code in ((["plan"], 2), (["plan", "show"], 2), (["plan", "--help"], 0)):
        answer = CliRunner().invoke(registry_gc, arguments)
        assert answer.exit_code == code
    os.chdir(disk.folder)
    write_config(disk.root).rename(disk.folder / "show")
    assert call(disk.root, "plan", "./show", "-o", disk.folder / "shown").exit_code == 0


@pytest.mark.parametrize(
    ("left", "goes"),
    [
        ({"ended": 1.0}, True),
        ({"process": "dead"}, True),
        ({"process": "alive"}, False),
        ({}, False),
        ({"ended": 1.0, "planned": True}, False),
        ({"ended": 1.0, "purpose": "run"}, False),
    ],
)
def test_what_an_interrupted_plan_has_left_is_in_nobodys_way(
    tmp_path: Path, left: dict[str, Any], goes: bool
) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("app", "v1", layers=[b"live"])
    disk.age()
    current = asdict(Process.current())
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    processes = {"alive": current, "dead": {**current, "pid": ended.pid}}
    file = tmp_path / "plan"
    begun = PlanFile.create(str(file))
    said = {**left, "process": processes[left["process"]]} if "process" in left else left
    begun.record_meta(**{"purpose": "plan", **said})
    begun.close()
    again = call(disk.root, "plan", write_config(disk.root), "-o", file)
    assert again.exit_code == (0 if goes else 1), again.errors
    assert goes or "exists already" in again.errors
