"""The config says read-only and nobody answers: that is allowed, and never said to be confirmed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from applying.support import DAY, call, codes
from guarding import READ_ONLY, closed, serving
from running import Disk, Result, write_config
from test_against_model import ALONE


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A registry with an image and some garbage."""
    made = Disk(tmp_path)
    made.tree.image("app", "1")
    made.tree.layer("app", b"garbage")
    made.age(30 * DAY)
    return made


def configured(disk: Disk, address: str) -> Path:
    file = write_config(disk.root)
    document = {**yaml.safe_load(file.read_text()), "http": {"addr": address}}
    file.write_text(yaml.safe_dump(document))
    return file


def notes(done: Result) -> list[str]:
    return [line for line in done.errors.splitlines() if "nobody answers at" in line]


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--quarantine", "7d"]], ids=" ".join)
def test_a_run_goes_on_and_notes_it_once(disk: Disk, options: list[str]) -> None:
    address = closed()
    done = call(disk.root, "run", configured(disk, address), "-q", *options, *ALONE)
    assert done.exit_code == 0, done.errors
    assert done.json["guard"]["verdict"] == "allowed"
    assert codes(done) == {"nobody-answered"}
    (note,) = notes(done)
    assert f"{disk.root}.yml says read-only, and nobody answers at http://{address}; " in note
    assert "would be refused" not in done.errors


def test_a_plan_an_apply_and_a_purge_note_it_too(disk: Disk) -> None:
    config, plan = configured(disk, closed()), disk.folder / "plan"
    made = call(disk.root, "plan", config, "-o", plan, *ALONE)
    assert "24 h" not in made.errors  # it is not in use, so far as anybody knows
    for done in (
        made,
        call(disk.root, "apply", plan, *ALONE),
        call(disk.root, "purge", config),
    ):
        assert done.exit_code == 0, done.errors
        assert len(notes(done)) == 1


def test_who_has_an_answer_or_the_operators_word_is_told_nothing(disk: Disk) -> None:
    with serving(READ_ONLY) as server:
        done = call(disk.root, "run", configured(disk, server.addr), *ALONE)
    assert codes(done) == {"readonly-confirmed"}
    assert not notes(done)
    done = call(disk.root, "run", configured(disk, closed()), "--registry-stopped", *ALONE)
    assert codes(done) == {"stopped-confirmed"}
    assert not notes(done)


def test_beside_what_a_writable_registry_is_let_through_for_it_is_only_told(disk: Disk) -> None:
    config = configured(disk, closed())
    options = ["--quarantine", "7d", "--allow-writable", "--assume-readonly"]
    done = call(disk.root, "run", config, *options, *ALONE)
    assert done.exit_code == 0, done.errors
    assert codes(done) == {"assume-readonly", "nobody-answered"}
