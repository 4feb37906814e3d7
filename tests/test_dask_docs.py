"""What docs/dask.md says is tried, line by line, as far as it goes without a Kubernetes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # has neither types nor stubs
import pytest
import yaml

from running import run
from servers.dask import SOURCES
from servers.process import free_port, running
from stores import Servers, a_bit_of_everything, store

ROOT = Path(__file__).resolve().parent.parent
PAPER = (ROOT / "docs" / "dask.md").read_text(encoding="utf-8")
CLUSTER: dict[str, Any] = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAPER, re.DOTALL)[0])
SCHEDULER, WORKER = CLUSTER["spec"]["scheduler"], CLUSTER["spec"]["worker"]
COMMANDS: dict[str, str] = dict(
    re.findall(r"^((?:dask \w+|registry-garbage-collect) .*?)(?:  +# (.*))?$", PAPER, re.MULTILINE)
)


def command(beginning: str, port: int) -> list[str]:
    """The paper's command that begins so, with our port for its address."""
    (line,) = (line for line in COMMANDS if line.startswith(beginning))
    ours = line.replace("scheduler:8786", f"127.0.0.1:{port}").replace("8786", str(port))
    _, *arguments = ours.split()
    return arguments


def test_the_commands_of_the_paper_come_to_what_one_process_comes_to(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    environment |= {
        "DASK_DISTRIBUTED__DASHBOARD__LINK": "",
        "DASK_TEMPORARY_DIRECTORY": str(tmp_path),
    }
    port = free_port()
    # What "dask" does on a path: `python -m dask`.
    dask = [sys.executable, "-m", "dask"]
    with ExitStack() as stack:
        place = Servers(stack, lambda name: tmp_path).place("s3")
        store(place, a_bit_of_everything())
        config = place.config(tmp_path)
        loopback = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
        scheduler = [*dask, *command("dask scheduler", port), *loopback]
        stack.enter_context(running(scheduler, [port], folder=tmp_path, environment=environment))
        worker = [*dask, *command("dask worker", port), *loopback]
        log = stack.enter_context((tmp_path / "worker.log").open("wb"))
        process = subprocess.Popen(
            worker, env=environment, cwd=tmp_path, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        arguments = command("registry-garbage-collect", port)[:-1]
        fixed = ("-m", "--output", "json", "--no-cache")
        far = run(*arguments, *fixed, config, state=tmp_path / "far")
        near = run("--dry-run", *fixed, config, state=tmp_path / "near")
    assert far.exit_code == near.exit_code
    assert near.json["blobs"]["eligible"]
    same = ("blobs", "manifests", "layer_links", "uploads", "marked", "held", "damaged", "failed")
    assert {name: far.json[name] for name in same} == {name: near.json[name] for name in same}


@pytest.mark.parametrize("version", ["1.27", "1.34"])
def test_kubernetes_takes_the_pods_and_the_service_of_the_cluster(version: str) -> None:
    about = {"name": CLUSTER["metadata"]["name"]}
    for part in (SCHEDULER, WORKER):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": part["spec"]}
        kubernetes_validate.validate(pod, version, strict=True)
    service = {"apiVersion": "v1", "kind": "Service", "metadata": about}
    spec = SCHEDULER["service"]
    kubernetes_validate.validate({**service, "spec": spec}, version, strict=True)
    (container,) = SCHEDULER["spec"]["containers"]
    assert spec["ports"][0]["targetPort"] == container["ports"][0]["name"]


def test_the_cluster_has_what_the_operator_asks_for() -> None:
    """Source: dask-kubernetes 2026.3, operator/customresources/templates.yaml."""
    assert set(CLUSTER["spec"]) == {"worker", "scheduler"}
    assert set(WORKER) == {"replicas", "spec"}
    assert set(SCHEDULER) == {"spec", "service"}
    name = CLUSTER["metadata"]["name"]
    # The operator calls the service so, and labels the scheduler's pod so.
    assert f"tcp://{name}-scheduler:8786" in PAPER
    labels = {"dask.org/cluster-name": name, "dask.org/component": "scheduler"}
    assert SCHEDULER["service"]["selector"] == labels
    images = {part["spec"]["containers"][0]["image"] for part in (SCHEDULER, WORKER)}
    assert len(images) == 1
    assert images.pop() in PAPER.partition("```yaml")[0]
