"""Each example of docs/stop-and-start.md, run as it stands.

``gitlab-ctl``, ``systemctl`` and ``docker`` are ours: they check how they are called, and stop and
start a real registry. Paths are replaced by those of the test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.service import Service

PAGE = Path(__file__).resolve().parent.parent / "docs" / "stop-and-start.md"
EXAMPLES = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
ASKED = (
    ["gitlab-ctl stop registry", "gitlab-ctl start registry"],
    ["systemctl stop docker-registry", "systemctl start docker-registry"],
    ["docker stop registry", "docker start registry"],
    [
        "docker compose -f compose.yaml stop registry",
        "docker compose -f compose.yaml start registry",
    ],
    ["systemctl restart docker-registry", "systemctl restart docker-registry"],
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "service").over() as service:
        subprocess.run([service.path("start")], check=True, stdout=subprocess.DEVNULL)
        service.fill(tmp_path / "oci")
        service.tools("gitlab-ctl", "systemctl", "docker")
        yield service


def test_every_example_has_what_its_tool_is_asked() -> None:
    assert len(EXAMPLES) == len(ASKED)


@pytest.mark.parametrize(("example", "asked"), list(zip(EXAMPLES, ASKED, strict=False)))
def test_an_example_does_what_it_says(service: Service, example: str, asked: list[str]) -> None:
    for path in ("/var/opt/gitlab/registry", "/etc/docker/registry", "/srv/registry"):
        example = example.replace(f"{path}/data", str(service.registry.root))
        example = example.replace(path, str(service.folder))
    example = example.replace("127.0.0.1:5000", service.registry.address)
    places = os.pathsep.join(place for place in sys.path if place)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example],
        env={
            **os.environ,
            "PATH": f"{service.folder}/bin:{os.environ['PATH']}",
            "PYTHONPATH": places,
            "RGC_STATE_DIR": str(service.folder / "state"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "blob eligible for deletion" in done.stdout
    assert service.asked() == asked
    assert "POST" in service.registry.request("OPTIONS", "a/blobs/uploads/").headers["Allow"]
    assert service.registry.pull_everything() == {"a": ["stays"]}
