"""What a purge and a restore tell beside their answer: audit lines and metrics."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aside import DAY, Registry
from registry_tree import blob_path, layer_link_path, revision_path, sha256

Line = dict[str, Any]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """On disk, with one image that is tagged, and in quarantine one that was not."""
    made = Registry(tmp_path, None)
    tree = made.tree()
    tree.image("app", "v1", layers=[b"base", b"one"], config=b'"one"')
    tree.image("app", layers=[b"base", b"two"], config=b'"two"')
    made.quarantine()
    return made


def read(log: Path) -> list[Line]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def samples(file: Path) -> dict[tuple[str, str], float]:
    """The value of each sample, by its metric and state."""
    return {
        (one.name, one.labels.get("state", "")): one.value
        for family in text_string_to_metric_families(file.read_text())
        for one in family.samples
    }


def restore(registry: Registry, *options: str) -> int:
    return registry.command("restore", "app", *options).exit_code


def test_a_purge_tells_of_each_object_that_it_has_deleted(
    registry: Registry, tmp_path: Path
) -> None:
    waiting, log = registry.quarantined(), tmp_path / "audit"
    run = next((registry.root / "docker/registry/registry-gc/quarantine").iterdir()).name
    registry.later = 8 * DAY
    before = sizes(registry, run)
    assert registry.purge("--audit-log", str(log)).exit_code == 0
    lines = read(log)
    assert {line["path"] for line in lines} == waiting
    assert {line["path"]: line["bytes"] for line in lines} == before
    assert {(line["event"], line["result"], line["confirmed"]) for line in lines} == {
        ("delete", "deleted", True)
    }
    assert {line["set_aside_by"] for line in lines} == {run}
    assert len({line["run"] for line in lines} - {run}) == 1
    kinds = {line["path"]: line["kind"] for line in lines}
    assert kinds[blob_path(sha256(b"two"))] == "blob"
    assert kinds[layer_link_path("app", sha256(b"two"))] == "layer-link"
    assert "revision" in kinds.values()


def sizes(registry: Registry, run: str) -> dict[str, int]:
    home = registry.root / "docker/registry/registry-gc/quarantine" / run
    return {
        str(path.relative_to(home)): path.stat().st_size
        for path in (home / "docker").rglob("*")
        if path.is_file()
    }


def test_a_purge_tells_what_it_holds_and_what_it_could_not_delete(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.tree().image("broken", "v1", layers=[b"who knows"], config=b'"held"')
    registry.write({blob_path(digest): b"{cut sho"})
    stuck, log = blob_path(sha256(b"two")), tmp_path / "audit"
    unlink = os.unlink

    def refusing(path: Any, *rest: Any, **more: Any) -> None:
        if str(path).endswith("data") and sha256(b"two").removeprefix("sha256:") in str(path):
            raise PermissionError(13, "not this one")
        unlink(path, *rest, **more)

    monkeypatch.setattr(os, "unlink", refusing)
    registry.later = 8 * DAY
    assert registry.purge("--audit-log", str(log)).exit_code == 3
    lines = read(log)
    (hold,) = (line for line in lines if line["event"] == "hold")
    assert (hold["repository"], hold["digest"]) == ("broken", digest)
    (failed,) = (line for line in lines if line.get("result") == "failed")
    assert (failed["path"], failed["confirmed"], failed["bytes"]) == (stuck, False, 0)
    assert "not this one" in failed["error"]


def test_a_purge_tells_what_it_brought_back_because_it_is_live(
    registry: Registry, tmp_path: Path
) -> None:
    # Pushed again by its manifest alone, as a registry with a stale cache lets one do.
    registry.tree().image("other", "v1", layers=[b"base", b"two"], config=b'"two"')
    registry.remove(blob_path(sha256(b"two")))
    log = tmp_path / "audit"
    registry.later = 8 * DAY
    assert registry.purge("--audit-log", str(log)).exit_code == 0
    back = [line for line in read(log) if line["event"] == "restore"]
    assert [line["path"] for line in back] == [blob_path(sha256(b"two"))]
    assert back[0]["reason"] == "a live manifest needs it"
    assert (back[0]["confirmed"], back[0]["bytes"]) == (True, 3)


def test_a_restore_tells_of_each_object_that_came_back(registry: Registry, tmp_path: Path) -> None:
    waiting, log = registry.quarantined(), tmp_path / "audit"
    assert restore(registry, "--audit-log", str(log)) == 0
    lines = read(log)
    assert {line["path"] for line in lines} == waiting
    assert {(line["event"], line["result"], line["confirmed"]) for line in lines} == {
        ("restore", "restored", True)
    }
    assert {line["reason"] for line in lines} == {"asked for: app"}


@pytest.mark.parametrize("command", ["purge", "restore"])
def test_a_log_that_cannot_be_written_refuses_and_a_dry_run_leaves_none(
    registry: Registry, tmp_path: Path, command: str
) -> None:
    registry.later = 8 * DAY
    before = registry.read()
    what = ["app"] if command == "restore" else []
    state = ["--state-dir", str(tmp_path / "state")] if command == "purge" else []
    refused = registry.command(command, *what, *state, "--audit-log", str(tmp_path))
    assert (refused.exit_code, registry.read()) == (4, before)
    assert "audit log" in refused.errors
    log, metrics = tmp_path / "audit", tmp_path / "metrics"
    dry = [*what, *state, "-d", "--audit-log", str(log), "--metrics-file", str(metrics)]
    assert registry.command(command, *dry).exit_code == 0
    assert not log.exists()
    assert not metrics.exists()


def states_on(page: str) -> set[tuple[str, str]]:
    """The metrics of purges and restores that the page gives a state, each with all of those."""
    found = set()
    row = re.compile(r"\| `registry_gc_purge_(\w+)` \| `state`: of a ([^|]+)")
    for name, states in row.findall(page):
        for part in states.split("of a "):
            command, *named = re.findall(r"\w+", part)
            found |= {(f"registry_gc_{command}_{name}", state) for state in named}
    return found


def test_metrics_of_all_commands_live_in_one_file(registry: Registry, tmp_path: Path) -> None:
    metrics = tmp_path / "registry.prom"
    option = ("--metrics-file", str(metrics))
    assert registry.collect("-m", *option).exit_code == 0
    collected = samples(metrics)
    assert restore(registry, *option) == 0
    registry.quarantine()
    registry.later = 8 * DAY
    purged = registry.purge("--capacity", "1TB", *option).json["runs"][0]
    told = samples(metrics)
    state = {name: told[f"registry_gc_{name}", ""] for name in ("purge_exit_code", "exit_code")}
    assert state == {"purge_exit_code": 0, "exit_code": 0}
    assert told["registry_gc_purge_objects", "deleted"] == purged["deleted"] > 0
    assert told["registry_gc_purge_bytes", "deleted"] == purged["deleted_bytes"] > 0
    assert told["registry_gc_restore_objects", "restored"] == purged["deleted"]
    assert told["registry_gc_storage_capacity_bytes", ""] == 10**12
    page = (Path(__file__).parent.parent / "docs" / "monitoring.md").read_text()
    assert {name.replace("_restore_", "_purge_") for name, _ in told} <= set(
        re.findall(r"registry_gc_[a-z_]+", page)
    )
    commands = ("registry_gc_purge_", "registry_gc_restore_")
    assert {row for row in told if row[1] and row[0].startswith(commands)} == states_on(page)
    changed = {"registry_gc_storage_used_bytes", "registry_gc_storage_capacity_bytes"}
    assert {key: told.get(key) for key in collected if key[0] not in changed} == {
        key: value for key, value in collected.items() if key[0] not in changed
    }
    assert registry.collect("-m", *option).exit_code == 0
    after = samples(metrics)
    assert {
        key: after.get(key) for key in told if "_purge_" in key[0] or "_restore_" in key[0]
    } == {key: value for key, value in told.items() if "_purge_" in key[0] or "_restore_" in key[0]}


def test_a_refused_purge_is_told_and_the_time_of_the_last_success_stays(
    registry: Registry, tmp_path: Path
) -> None:
    metrics = tmp_path / "registry.prom"
    registry.later = DAY
    assert registry.purge("--metrics-file", str(metrics)).exit_code == 0
    success = samples(metrics)["registry_gc_purge_last_success_timestamp_seconds", ""]
    text = registry.config.read_text().replace("enabled: true", "enabled: false")
    config = tmp_path / "writable.yml"
    config.write_text(text)
    state = str(tmp_path / "state")
    done = registry.command_on(
        config, "purge", "--state-dir", state, "--metrics-file", str(metrics)
    )
    assert done.exit_code == 4
    told = samples(metrics)
    assert told["registry_gc_purge_exit_code", ""] == 4
    assert told["registry_gc_purge_last_success_timestamp_seconds", ""] == success


def test_a_revision_is_told_by_its_digest(registry: Registry, tmp_path: Path) -> None:
    log = tmp_path / "audit"
    restore(registry, "--audit-log", str(log))
    (line,) = (line for line in read(log) if line["kind"] == "revision")
    assert line["path"] == revision_path("app", line["digest"])
    assert line["repository"] == "app"
