"""``contrib/``: alert rules and dashboard speak of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from real import program
from running import Disk, run, write_config

CONTRIB = Path(__file__).resolve().parent.parent / "contrib"
RULES = CONTRIB / "prometheus" / "registry-gc.rules.yml"
DASHBOARD: dict[str, Any] = json.loads((CONTRIB / "grafana" / "registry-gc.json").read_text())
NAME = re.compile(r"registry_gc_[a-z_]+")
MATCHER = re.compile(r'([a-z_]+)="([^"]*)"')


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """What a run writes: the labels of each sample, by metric."""
    disk = Disk(tmp_path_factory.mktemp("disk"))
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.tree.layer("a", b"orphan")
    disk.age()
    file = disk.folder / "metrics.prom"
    arguments = ("--metrics-file", file, "--capacity", "1TB", write_config(disk.root))
    assert run(*arguments, state=disk.folder / "state").exit_code == 0
    return {
        family.name: [dict(one.labels) for one in family.samples]
        for family in text_string_to_metric_families(file.read_text())
    }


def promtool(*arguments: str | Path) -> None:
    subprocess.run([program("promtool"), *map(str, arguments)], check=True, cwd=RULES.parent)


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", RULES)


def test_the_rules_alert_when_they_should_and_only_then() -> None:
    promtool("test", "rules", RULES.with_name("registry-gc.rules_test.yml"))


def test_every_rule_is_tried_by_the_rules_test() -> None:
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    trials = yaml.safe_load(RULES.with_name("registry-gc.rules_test.yml").read_text())["tests"]
    fired = {
        trial["alertname"]
        for test in trials
        for trial in test["alert_rule_test"]
        if trial.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in rules}


def expressions() -> list[str]:
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    found = [rule["expr"] for rule in rules]
    found += [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return found


@pytest.mark.parametrize("expression", expressions())
def test_what_is_asked_for_is_written(
    expression: str, written: dict[str, list[dict[str, str]]]
) -> None:
    names = NAME.findall(expression)
    assert names
    assert set(names) <= set(written)
    for name, labels in re.findall(r"(registry_gc_[a-z_]+)\{([^}]*)\}", expression):
        wanted = dict(MATCHER.findall(labels.replace('storage=~"$storage"', "")))
        assert any(wanted.items() <= sample.items() for sample in written[name]), labels


@pytest.mark.parametrize("expression", expressions())
def test_prometheus_can_read_each_expression(expression: str, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rule = {"record": "x", "expr": expression.replace("$storage", ".*")}
    rules.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": [rule]}]}))
    promtool("check", "rules", rules)


def test_the_dashboard_asks_its_own_variables_and_lays_panels_side_by_side() -> None:
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "storage"}
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all("$storage" in target["expr"] for target in panel["targets"])
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
