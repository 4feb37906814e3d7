"""Harbor and OpenShift have their tags in a database: to the storage, every image is untagged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from applying.support import DAY, call, codes
from command_line import call as a_process
from registry_gc.config import load_config
from running import Disk, Result, write_config
from test_against_model import ALONE

HARBOR = {"auth": {"htpasswd": {"realm": "harbor-registry-basic-realm", "path": "/etc/passwd"}}}
HARBOR_1 = {"auth": {"token": {"issuer": "harbor-token-issuer", "service": "registry"}}}
HARBORS_SERVICE = {"auth": {"token": {"issuer": "x", "service": "harbor-registry"}}}
OPENSHIFT = {"openshift": {"version": 1.0}}


def middleware(kind: str, name: str = "openshift") -> dict[str, Any]:
    return {"middleware": {kind: [{"name": "other"}, {"name": name, "options": {}}]}}


THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "auth.htpasswd.realm": ("Harbor", HARBOR),
    "auth.token.issuer": ("Harbor", HARBOR_1),
    "auth.token.service": ("Harbor", HARBORS_SERVICE),
    "openshift": ("OpenShift", OPENSHIFT),
    "auth.openshift": ("OpenShift", {"auth": {"openshift": {"realm": "openshift"}}}),
    "middleware.registry": ("OpenShift", middleware("registry")),
    "middleware.repository": ("OpenShift", middleware("repository")),
    "middleware.storage": ("OpenShift", middleware("storage")),
}
OTHERS: list[dict[str, Any]] = [
    {},
    {"auth": None, "middleware": None},
    {"auth": "htpasswd", "middleware": "openshift"},
    {"auth": {"htpasswd": None, "token": "harbor-registry"}},
    {"auth": {"htpasswd": {"realm": "basic-realm"}, "token": {"issuer": 5, "service": "registry"}}},
    {"auth": {"silly": {"realm": "harbor-registry-basic-realm"}}},
    {"middleware": {"storage": {"name": "openshift"}, "registry": None, "repository": [None, "x"]}},
    middleware("storage", "cloudfront"),
]


def configured(root: Path, more: dict[str, Any], *, readonly: bool = True) -> Path:
    file = write_config(root, readonly=readonly)
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **more}))
    return file


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A registry with an image that its tree has a tag for, one that it has none for, a blob."""
    made = Disk(tmp_path)
    made.tree.image("library/app", "1", layers=[b"one"])
    made.tree.image("library/app", None, layers=[b"two"])
    made.tree.layer("library/app", b"garbage")
    made.age(30 * DAY)
    return made


def collect(disk: Disk, more: dict[str, Any], *options: str, readonly: bool = True) -> Result:
    config = configured(disk.root, more, readonly=readonly)
    return call(disk.root, "run", config, *options, *ALONE)


def refused(disk: Disk, done: Result, before: set[str]) -> str:
    """It was refused for this, and nothing is gone; returns what is said."""
    assert done.exit_code == 4, done.errors
    assert done.json["guard"]["verdict"] == "refused"
    assert codes(done) - {"nothing-to-probe", "assume-readonly"} == {"tags-elsewhere"}
    assert disk.files() == before
    (said,) = {
        finding["message"]
        for finding in done.json["guard"]["findings"]
        if finding["code"] == "tags-elsewhere"
    }
    assert said in done.errors
    return str(said)


@pytest.mark.parametrize("key", THEIRS)
def test_what_nothing_tags_stays_where_a_database_has_the_tags(disk: Disk, key: str) -> None:
    owner, more = THEIRS[key]
    before = disk.files()
    said = refused(disk, collect(disk, more, "-m"), before)
    assert f": {key} is {owner}'s" in said
    assert "run without -m" in said
    plain = collect(disk, more)
    assert plain.exit_code == 0, plain.errors
    assert codes(plain) == {"nothing-to-probe"}
    assert (plain.json["blobs"]["deleted"], plain.json["manifests"]["deleted"]) == (1, 0)


@pytest.mark.parametrize("more", OTHERS, ids=str)
def test_any_other_registry_has_its_tags_in_its_storage(disk: Disk, more: dict[str, Any]) -> None:
    assert load_config(str(configured(disk.root, more)), {}).tags_elsewhere is None


def test_nothing_lifts_it(disk: Disk) -> None:
    before = disk.files()
    for options in (
        ["--assume-readonly"],
        ["--allow-empty", "--accept-shrink", "--max-delete", "100%"],
        ["--quarantine", "7d"],
        ["--registry-stopped"],
    ):
        refused(disk, collect(disk, HARBOR, "-m", *options), before)
    writable = ["--quarantine", "7d", "--allow-writable"]
    done = collect(disk, HARBOR, "-m", *writable, readonly=False)
    assert done.exit_code == 4
    assert "tags-elsewhere" in codes(done)
    assert disk.files() == before


def test_a_dry_run_is_allowed_and_says_so(disk: Disk) -> None:
    done = collect(disk, HARBOR, "-m", "--dry-run")
    assert done.exit_code == 0
    assert done.json["guard"]["verdict"] == "refused"
    assert "a collection would be refused: " in done.errors
    assert "Harbor" in done.errors
    assert done.json["manifests"]["eligible"] == 1


def test_no_registry_is_stopped_for_it(disk: Disk, tmp_path: Path) -> None:
    before, ran = disk.files(), tmp_path / "ran"
    commands = ["--stop-command", f"touch {ran}", "--start-command", f"touch {ran}"]
    state = ["--state-dir", str(disk.folder / "state")]
    done = a_process("-m", *commands, *state, configured(disk.root, OPENSHIFT))
    assert done.returncode == 4, done.stderr
    assert b"OpenShift" in done.stderr
    assert disk.files() == before
    assert not ran.exists()


def test_a_plan_is_carried_out_only_where_it_was_made_without(disk: Disk) -> None:
    config = configured(disk.root, HARBOR)
    before = disk.files()
    for name, option in (("with", "-m"), ("without", "-q")):
        made = call(disk.root, "plan", config, "-o", disk.folder / name, option, *ALONE)
        assert made.exit_code == 0, made.errors
    refused(disk, call(disk.root, "apply", disk.folder / "with", *ALONE), before)
    done = call(disk.root, "apply", disk.folder / "without", *ALONE)
    assert done.exit_code == 0, done.errors
    assert done.json["blobs"]["deleted"] == 1


def test_a_plan_that_an_older_version_has_made_is_not_carried_out_either(disk: Disk) -> None:
    plan = disk.folder / "plan"
    made = call(disk.root, "plan", configured(disk.root, {}), "-m", "-o", plan, *ALONE)
    assert made.json["guard"]["verdict"] == "allowed"
    before = disk.files()
    configured(disk.root, HARBOR)
    refused(disk, call(disk.root, "apply", plan, *ALONE), before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGISTRY_AUTH_HTPASSWD_REALM", "harbor-registry-basic-realm"),
        ("REGISTRY_AUTH_TOKEN_ISSUER", "harbor-token-issuer"),
        ("REGISTRY_AUTH_TOKEN_SERVICE", "harbor-registry"),
        ("REGISTRY_OPENSHIFT_SERVER_ADDR", "registry.example:5000"),
    ],
)
def test_variables_say_so_too(disk: Disk, name: str, value: str) -> None:
    file = str(configured(disk.root, {"auth": {"htpasswd": {"path": "/etc/passwd"}}}))
    assert load_config(file, {name: value}).tags_elsewhere is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGISTRY_AUTH", "{}"),
        ("REGISTRY_AUTH_TOKEN", "@secret"),
        ("REGISTRY_AUTH_HTPASSWD", "x"),
        ("REGISTRY_AUTH_SERVICE_HOST", "10.0.0.1"),
        ("REGISTRY_OPENSHIFT_PORT", "tcp://10.0.0.1:80"),
        ("REGISTRY_OPENSHIFT_SERVICE_HOST", "10.0.0.1"),
        ("REGISTRY_MIDDLEWARE_STORAGE", "[]"),
    ],
)
def test_a_variable_of_somebody_elses_neither_says_so_nor_takes_it_back(
    disk: Disk, name: str, value: str
) -> None:
    for more in ({}, HARBOR, HARBOR_1, middleware("storage")):
        file = str(configured(disk.root, more))
        assert load_config(file, {name: value}) == load_config(file, {})


def test_a_registry_without_a_tag_is_said_to_be_perhaps_one_of_these(disk: Disk) -> None:
    for path in sorted(disk.files()):
        if "/_manifests/tags/" in path:
            disk.remove(path)
    done = collect(disk, {}, "-m")
    assert "no-live-manifests" in codes(done)
    assert "or its tags are in a database (Harbor, OpenShift); if it is" in done.errors
