"""``contrib/kubernetes``: valid, and the registry is writable again however a run ends."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # has neither types nor stubs
import pytest
import yaml
from click.testing import CliRunner

from real import RealRegistry, program
from registry_gc.cli.main import registry_garbage_collect

FILE = Path(__file__).resolve().parent.parent / "contrib" / "kubernetes" / "cronjob.yaml"
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(FILE.read_text()))
BY_KIND = {document["kind"]: document for document in DOCUMENTS}
POD: dict[str, Any] = BY_KIND["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SCRIPT: str = BY_KIND["ConfigMap"]["data"]["collect"]
SWITCH = "REGISTRY_STORAGE_MAINTENANCE_READONLY"


@pytest.mark.parametrize("version", ["1.27", "1.32", "1.34"])
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: str(one["kind"]))
def test_kubernetes_takes_each_object(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_what_is_wrong_would_be_found() -> None:
    wrong = {**BY_KIND["CronJob"], "spec": {**BY_KIND["CronJob"]["spec"], "schedul": "* * * * *"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.32", strict=True)


def test_all_objects_are_of_one_namespace_and_name_one_another() -> None:
    assert {document["metadata"]["namespace"] for document in DOCUMENTS} == {"registry"}
    assert POD["serviceAccountName"] == BY_KIND["ServiceAccount"]["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == set(volumes)
    claim = BY_KIND["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["state"]["persistentVolumeClaim"]["claimName"] == claim
    assert volumes["script"]["configMap"]["name"] == BY_KIND["ConfigMap"]["metadata"]["name"]
    mounted = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert CONTAINER["command"] == ["sh", f"{mounted['script']}/collect"]
    variables = {one["name"]: one["value"] for one in CONTAINER["env"]}
    assert variables["RGC_STATE_DIR"] == mounted["state"]
    assert variables["HOME"] == mounted["tmp"]


def test_the_pod_may_do_nothing_that_it_need_not() -> None:
    assert POD["securityContext"]["runAsNonRoot"]
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    patching = [rule for rule in BY_KIND["Role"]["rules"] if "patch" in rule["verbs"]]
    assert [rule["resourceNames"] for rule in patching] == [["registry"]]


def test_the_commands_options_are_ones_that_there_are(tmp_path: Path) -> None:
    arguments = [*CONTAINER["args"][:-1], str(tmp_path / "no.yml")]
    answer = CliRunner().invoke(registry_garbage_collect, arguments)
    assert json.loads(answer.stderr)["message"].endswith("there is no such file")


def test_the_script_is_sound() -> None:
    command = [program("shellcheck"), "--shell", "sh", "--exclude", "SC2317", "-"]
    subprocess.run(command, input=SCRIPT, text=True, check=True)


# The switch


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """What the script finds on its PATH: stubs that write down how they are called.

    The registry's old pod is there for two more looks once the deployment has changed.
    """
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    stubs = {
        "kubectl": """
            case "$*" in
            "get pods --selector app=registry --output name") echo pod/old ;;
            *"READONLY={"*) [ -e same ] || echo deployment.apps/registry env updated ;;
            *READONLY-) [ ! -e told ] || kill "$PPID"; [ ! -e stuck ] ;;
            "get --ignore-not-found --output name pod/old")
                [ ! -e apiless ] || exit 1
                echo >>looks; [ "$(wc -l <looks)" -gt 2 ] || echo pod/old ;;
            esac
        """,
        "sleep": "",
        "registry-garbage-collect": """
            trap 'echo terminated >>calls; exit 143' TERM
            echo ready >started
            [ ! -e long ] || while :; do /bin/sleep 0.05; done
            exit "$(cat code)"
        """,
    }
    for name, text in stubs.items():
        stub = bin_folder / name
        stub.write_text(f'#!/bin/sh\necho "{name} $*" >>calls\n{text}\n')
        stub.chmod(0o755)
    (tmp_path / "collect").write_text(SCRIPT)
    (tmp_path / "code").write_text("0")
    return tmp_path


def start(pod: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sh", "collect", "-m", "config.yml"],
        cwd=pod,
        env={"PATH": f"{pod / 'bin'}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def calls(pod: Path) -> list[str]:
    return (pod / "calls").read_text().splitlines()


ON = f'kubectl set env deployment/registry {SWITCH}={{"enabled":true}}'
OFF = f"kubectl set env deployment/registry {SWITCH}-"
ROLLED_OUT = "kubectl rollout status deployment/registry --timeout 10m"
COLLECT = "registry-garbage-collect -m config.yml"


@pytest.mark.parametrize("code", [0, 1, 3, 4, 5])
def test_the_registry_is_writable_again_however_a_run_ends(pod: Path, code: int) -> None:
    (pod / "code").write_text(str(code))
    process = start(pod)
    process.communicate()
    assert process.returncode == code
    found = calls(pod)
    assert found.index(ON) < found.index(ROLLED_OUT) < found.index(COLLECT)
    assert found[-2:] == [OFF, ROLLED_OUT]


def test_collecting_waits_until_the_old_pods_are_gone(pod: Path) -> None:
    start(pod).communicate()
    found = calls(pod)
    look = "kubectl get --ignore-not-found --output name pod/old"
    assert found[: found.index(COLLECT)].count(look) == 3


def test_a_registry_that_was_left_read_only_has_no_old_pods(pod: Path) -> None:
    (pod / "same").touch()
    start(pod).communicate()
    assert calls(pod)[1:4] == [ON, ROLLED_OUT, COLLECT]


def test_nothing_is_collected_while_nobody_knows_whether_old_pods_are_gone(pod: Path) -> None:
    (pod / "apiless").touch()
    process = start(pod)
    process.communicate()
    assert process.returncode != 0
    assert COLLECT not in calls(pod)
    assert calls(pod)[-2:] == [OFF, ROLLED_OUT]


def test_a_pod_that_is_told_to_end_ends_the_run_first(pod: Path) -> None:
    (pod / "long").touch()
    process = start(pod)
    while not (pod / "started").exists():
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert calls(pod)[-3:] == ["terminated", OFF, ROLLED_OUT]


@pytest.mark.parametrize("code", [0, 3])
def test_a_pod_that_is_told_to_end_while_it_makes_the_registry_writable_ends_with_that(
    pod: Path, code: int
) -> None:
    (pod / "code").write_text(str(code))
    (pod / "told").touch()
    process = start(pod)
    process.communicate()
    assert process.returncode == code
    assert calls(pod)[-2:] == [OFF, ROLLED_OUT]


def test_a_registry_that_stays_read_only_is_told_loudly(pod: Path) -> None:
    (pod / "stuck").touch()
    process = start(pod)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "may still be read-only" in errors


def test_kubectl_sets_and_takes_back_the_variable(tmp_path: Path) -> None:
    container = {"name": "registry", "image": "registry", "env": [{"name": "A", "value": "1"}]}
    labels = {"app": "registry"}
    file = tmp_path / "deployment.json"
    file.write_text(
        json.dumps(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "registry"},
                "spec": {
                    "selector": {"matchLabels": labels},
                    "template": {
                        "metadata": {"labels": labels},
                        "spec": {"containers": [container]},
                    },
                },
            }
        )
    )

    def set_env(argument: str) -> dict[str, str]:
        done = subprocess.run(
            [program("kubectl"), "set", "env", "--local", "--filename", file, "--output", "json",
             argument],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        file.write_text(done.stdout)
        (found,) = json.loads(done.stdout)["spec"]["template"]["spec"]["containers"]
        return {one["name"]: one["value"] for one in found["env"]}

    (wanted,) = (one for one in CONTAINER["env"] if one["name"] == SWITCH)
    assert set_env(ON.split()[-1]) == {"A": "1", SWITCH: wanted["value"]}
    assert set_env(OFF.split()[-1]) == {"A": "1"}


def test_the_variable_makes_a_real_registry_read_only_and_convinces_the_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from running import run

    registry = RealRegistry(tmp_path)
    with registry.running():
        writable = run("-d", "--output", "json", registry.config, state=tmp_path / "state")
    assert writable.json["guard"]["verdict"] == "refused"
    (value,) = (one["value"] for one in CONTAINER["env"] if one["name"] == SWITCH)
    monkeypatch.setenv(SWITCH, value)
    (registry.root / "docker/registry/v2/repositories").mkdir(parents=True, exist_ok=True)
    with registry.running():
        result = run("--output", "json", registry.config, state=tmp_path / "state")
    codes = [finding["code"] for finding in result.json["guard"]["findings"]]
    assert (result.exit_code, codes) == (0, ["readonly-confirmed"])
