"""Metrics: what they say of a run, and how they reach Prometheus."""

from __future__ import annotations

import base64
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
from prometheus_client.parser import text_string_to_metric_families

import registry_gc.cli.run
from core_support import Watcher
from real import program
from registry_drivers.versions import Keep
from registry_gc.events import PhaseTimer
from registry_gc.metrics import KEPT, Use, use_of
from registry_gc.report.model import Report, Tally
from registry_gc.retained import Retained
from registry_tree import RegistryTree, sha256, tag_path
from running import Disk, Result, run, write_config
from servers.process import free_port, running
from stores import Servers, collect_later, store

Samples = dict[tuple[str, ...], float]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.tree.image("a", None, layers=[b"untagged"])
    disk.tree.layer("a", b"orphan")
    disk.age()
    return disk


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "registry-gc.prom"


def go(disk: Disk, *arguments: str | Path, readonly: bool = True) -> Result:
    config = write_config(disk.root, readonly=readonly)
    return run("--output", "json", *arguments, config, state=disk.folder / "state")


def samples(text: str) -> Samples:
    """Values by name and labels but ``storage``, without the common beginning of the names."""
    return {
        (
            one.name.removeprefix("registry_gc_"),
            *(one.labels[label] for label in sorted(one.labels) if label != "storage"),
        ): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def promtool_takes(text: str) -> None:
    subprocess.run([program("promtool"), "check", "metrics"], input=text, text=True, check=True)


def test_a_collection_writes_what_it_found_and_did(disk: Disk, file: Path) -> None:
    disk.write(tag_path("b", "v1"), b"")
    disk.tree.image("b", "v2", layers=[b"of b"])
    disk.tree.image("b", None, layers=[b"held only"])
    disk.age()
    result = go(disk, "-m", "--metrics-file", file)
    found = samples(file.read_text())
    blobs, report = result.json["blobs"], result.json
    assert result.exit_code == found["exit_code",] == 3
    assert found["objects", "blob", "dead"] == blobs["eligible"] == 3
    assert found["objects", "blob", "deleted"] == blobs["deleted"] == 3
    assert found["objects", "blob", "live"] == blobs["total"] - 3
    assert found["objects", "blob", "held"] == 2  # a manifest and its layer; the config is shared
    assert found["bytes", "blob", "held"] > len(b"held only")
    assert found["objects", "blob", "failed"] == 0
    assert found["bytes", "blob", "deleted"] == blobs["deleted_bytes"]
    assert found["objects", "revision", "dead"] == report["manifests"]["deleted"] == 1
    assert found["objects", "revision", "live"] == 3
    assert found["objects", "layer_link", "deleted"] == report["layer_links"]["deleted"]
    assert found["repositories", "held"] == found["holds",] == 1
    assert found["requests", "list"] == report["requests"]["list"]
    assert found["last_success_timestamp_seconds",] == found["last_run_timestamp_seconds",]
    assert found["duration_seconds", "total"] >= found["duration_seconds", "mark"] > 0
    phases = {labels[1] for labels in found if labels[0] == "phase_duration_seconds"}
    assert {"listing repositories", "listing blobs", "deleting blob"} <= phases
    assert ("run_info", "true", "filesystem", "false", report["version"]) in found


def test_every_sample_names_its_storage(disk: Disk, file: Path) -> None:
    go(disk, "--metrics-file", file)
    families = list(text_string_to_metric_families(file.read_text()))
    assert {one.labels["storage"] for family in families for one in family.samples} == {
        str(disk.root)
    }


def test_promtool_finds_nothing_to_complain_about(disk: Disk, file: Path) -> None:
    go(disk, "-m", "--metrics-file", file, "--capacity", "2TB")
    promtool_takes(file.read_text())
    go(disk, "-m", "--metrics-file", file, readonly=False)
    promtool_takes(file.read_text())


def test_what_cannot_be_deleted_is_counted_as_failed(disk: Disk, file: Path) -> None:
    original = os.unlink

    def unlink(name: str, *arguments: object, **options: object) -> None:
        if str(name).endswith("data"):
            raise PermissionError(1, "Operation not permitted", name)
        original(name, *arguments, **options)  # type: ignore[arg-type]  # passed on as they came

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        result = go(disk, "--metrics-file", file)
    assert result.exit_code == 3
    found = samples(file.read_text())
    assert found["objects", "blob", "failed"] == len(result.json["failed"]) == 1
    assert found["bytes", "blob", "failed"] == len(b"orphan")
    assert found["objects", "blob", "deleted"] == 0


def test_a_refusal_is_told_and_keeps_what_was_known(disk: Disk, file: Path) -> None:
    go(disk, "--metrics-file", file)
    before = samples(file.read_text())
    assert go(disk, "--metrics-file", file, readonly=False).exit_code == 4
    after = samples(file.read_text())
    assert after["exit_code",] == 4
    assert after["last_run_timestamp_seconds",] > before["last_run_timestamp_seconds",]
    for kept in (
        ("last_success_timestamp_seconds",),
        ("last_plan_timestamp_seconds",),
        ("objects", "blob", "deleted"),
        ("repositories", "total"),
    ):
        assert after[kept] == before[kept]
    assert not [labels for labels in after if labels[0] == "phase_duration_seconds"]


def test_a_first_run_that_is_refused_tells_of_no_success(disk: Disk, file: Path) -> None:
    assert go(disk, "--metrics-file", file, readonly=False).exit_code == 4
    found = samples(file.read_text())
    assert {("exit_code",), ("storage_used_bytes",)} <= set(found)
    assert ("last_success_timestamp_seconds",) not in found
    assert not [labels for labels in found if labels[0] == "objects"]


def test_a_failure_is_told(disk: Disk, file: Path) -> None:
    (disk.folder / "there").touch()
    arguments = ("--metrics-file", file, "--run-file", disk.folder / "there")
    assert go(disk, *arguments).exit_code == 1
    assert samples(file.read_text())["exit_code",] == 1


def test_what_is_set_aside_is_not_deleted(disk: Disk, file: Path) -> None:
    go(disk, "--quarantine", "7d", "--metrics-file", file)
    found = samples(file.read_text())
    assert found["objects", "blob", "quarantined"] == found["objects", "blob", "dead"] == 1
    assert found["objects", "blob", "deleted"] == 0


def test_a_dry_run_is_no_success(disk: Disk, file: Path) -> None:
    go(disk, "-d", "--metrics-file", file)
    found = samples(file.read_text())
    assert found["exit_code",] == 0
    assert found["objects", "blob", "dead"] == 1
    assert found["objects", "blob", "deleted"] == 0
    assert ("last_success_timestamp_seconds",) not in found


def test_a_usage_error_leaves_the_file_as_it_is(disk: Disk, file: Path) -> None:
    go(disk, "--metrics-file", file)
    before = file.read_bytes()
    assert run("--metrics-file", file, disk.folder / "no.yml", state=disk.folder).exit_code == 2
    assert go(disk, "--metrics-file", file, "--capacity", "much").exit_code == 2
    assert file.read_bytes() == before


def test_a_fault_of_our_own_is_told_too(
    disk: Disk, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    go(disk, "--metrics-file", file)
    before = samples(file.read_text())
    monkeypatch.setattr(registry_gc.cli.run, "collect", broken)
    with pytest.raises(ZeroDivisionError):
        go(disk, "--metrics-file", file)
    after = samples(file.read_text())
    assert after["exit_code",] == 1
    assert after["objects", "blob", "live"] == before["objects", "blob", "live"]


# The file


def test_everybody_may_read_the_file_whatever_the_umask(disk: Disk, file: Path) -> None:
    before = os.umask(0o077)
    try:
        go(disk, "--metrics-file", file)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_the_file_is_replaced_at_one_blow_and_nothing_is_left_beside_it(
    disk: Disk, file: Path
) -> None:
    go(disk, "--metrics-file", file)
    with file.open() as reader:
        go(disk, "--metrics-file", file)
        assert os.fstat(reader.fileno()).st_nlink == 0  # who reads the old one reads it whole
        promtool_takes(reader.read())
    assert [path.name for path in file.parent.iterdir() if "prom" in path.name] == [file.name]


def test_a_link_stays_one_and_what_it_leads_to_is_written(disk: Disk, file: Path) -> None:
    target = file.parent / "elsewhere" / "gc.prom"
    target.parent.mkdir()
    file.symlink_to(target)
    for _ in range(2):
        assert go(disk, "--metrics-file", file).errors == ""
        assert file.is_symlink()
        assert samples(target.read_text())["exit_code",] == 0


@pytest.mark.parametrize("content", ["storage:\n  filesystem: {}\n", "up 1\n", "\0\0\0"])
def test_another_programs_file_is_left_as_it_is(disk: Disk, file: Path, content: str) -> None:
    file.write_text(content)
    result = go(disk, "--metrics-file", file)
    assert result.exit_code == 0
    assert "holds something else" in result.errors
    assert file.read_text() == content


def test_half_a_file_of_ours_is_replaced(disk: Disk, file: Path) -> None:
    go(disk, "--metrics-file", file)
    whole = file.read_text()
    file.write_text(whole[: whole.index("registry_gc_objects{") + 30])
    assert go(disk, "--metrics-file", file).errors == ""
    assert samples(file.read_text())["exit_code",] == 0


@pytest.mark.parametrize("where", ["missing/file.prom", "/dev/full", "/proc/registry-gc.prom"])
def test_a_file_that_cannot_be_written_changes_nothing_else(disk: Disk, where: str) -> None:
    device = Path(where).exists() and Path(where).lstat()
    result = go(disk, "--metrics-file", disk.folder / where)
    assert result.exit_code == result.json["exit_code"] == 0
    assert "no metrics" in result.errors
    assert not disk.has_blob(sha256(b"orphan"))
    if device:
        assert stat.S_ISCHR(Path(where).lstat().st_mode)


# How full the storage is


def test_a_filesystem_is_as_full_as_df_says(disk: Disk, file: Path) -> None:
    go(disk, "--metrics-file", file)
    found = samples(file.read_text())
    answer = subprocess.run(
        ["df", "--output=used,avail", "--block-size=1", disk.root],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    used, free = map(int, answer.stdout.split()[-2:])
    # Others write to the same disk meanwhile.
    assert found["storage_used_bytes",] == pytest.approx(used, rel=0.05)
    assert found["storage_capacity_bytes",] == pytest.approx(used + free, rel=0.05)


@pytest.mark.parametrize(
    ("text", "size"), [("2TB", 2e12), ("500 GiB", 500 * 2**30), ("1.5TB", 1.5e12), ("4096", 4096)]
)
def test_a_capacity_is_what_the_operator_says(
    disk: Disk, file: Path, text: str, size: float
) -> None:
    go(disk, "--metrics-file", file, "--capacity", text)
    assert samples(file.read_text())["storage_capacity_bytes",] == size


@pytest.mark.parametrize("text", ["2T", "two TB", "-1GB", "0", "", "TB"])
def test_a_capacity_that_is_no_size_is_a_usage_error(disk: Disk, text: str) -> None:
    result = go(disk, "--capacity", text)
    assert result.exit_code == 2
    assert "is no size" in result.errors


def test_an_object_store_is_as_full_as_what_is_left_in_it(servers: Servers, tmp_path: Path) -> None:
    place = servers.place("s3")
    files: dict[str, bytes] = {}
    tree = RegistryTree(files.__setitem__)
    tree.image("a", "v1", layers=[b"kept"])
    tree.image("a", None, layers=[b"untagged" * 1000])
    store(place, files)
    file = tmp_path / "metrics.prom"
    config = place.config(tmp_path)
    result = collect_later(config, tmp_path, "-m", "--metrics-file", str(file))
    assert result.json["blobs"]["deleted"] > 0
    found = samples(file.read_text())
    with place.opened() as storage:
        pages = storage.list("docker/registry/v2/blobs/")
        left = sum(int(page.sizes.sum()) for page in pages)
    assert found["storage_used_bytes",] == found["bytes", "blob", "live"] == left
    assert ("storage_capacity_bytes",) not in found
    collect_later(config, tmp_path, "--metrics-file", str(file), "--capacity", "1GB")
    assert samples(file.read_text())["storage_capacity_bytes",] == 1e9


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp)


def a_report(**others: Any) -> Report:
    facts: dict[str, Any] = dict.fromkeys(
        ("repositories", "emptied", "marked", "blobs_total", "already_gone", "strangers",
         "seconds_mark", "seconds_sweep", "seconds_total", "peak_rss_bytes", "exit_code"), 0
    )  # fmt: skip
    facts |= dict.fromkeys(("manifests", "blobs", "layer_links", "uploads"), Tally())
    facts |= dict.fromkeys(("held", "damaged", "failed", "findings"), ())
    facts |= {"run": "", "run_file": None, "version": "", "dry_run": False, "error": None}
    facts |= {"delete_untagged": False, "driver": "s3", "root": "", "requests": {}, "verdict": ""}
    return Report(**{**facts, **others})


@pytest.mark.parametrize(
    ("keeps", "purged", "used"),
    [((), 0, 700), ((Keep("versioning", "", listed=True),), 0, 1000 + 50),
     ((Keep("versioning", "", listed=True),), 2, 700 + 50 - 20)],
    ids=["nothing is kept", "versions stay", "versions go"],
)  # fmt: skip
def test_what_a_bucket_keeps_of_what_is_deleted_is_used_still(
    keeps: tuple[Keep, ...], purged: int, used: int
) -> None:
    report = a_report(
        blobs_bytes=900,
        uploads_bytes=100,
        blobs=Tally(deleted=1, deleted_bytes=250),
        uploads=Tally(deleted=1, deleted_bytes=50),
        keeps=keeps,
        retained=Retained(objects=1 if keeps else 0, bytes=50 if keeps else 0),
        versions=Tally(deleted=purged, deleted_bytes=10 * purged),
    )
    assert use_of(report, None) == Use(used, None)


def test_old_versions_of_what_was_current_were_not_counted_as_used() -> None:
    report = a_report(
        blobs_bytes=900,
        uploads_bytes=0,
        blobs=Tally(deleted=1, deleted_bytes=250),
        keeps=(Keep("versioning", "", listed=True),),
        retained=Retained(objects=1, bytes=50),
        # The 50, and 30 of a version that was hidden by an object of this run.
        versions=Tally(deleted=2, deleted_bytes=80),
    )
    assert use_of(report, None) == Use(650, None)


def test_nobody_knows_how_full_a_bucket_is_that_was_not_listed() -> None:
    assert use_of(a_report(), 5) == Use(None, 5)


def test_times_of_a_phase_that_comes_again_add_up() -> None:
    ticks = iter([0.0, 2.0, 2.0, 5.0, 10.0, 11.0])
    watcher = Watcher()
    timer = PhaseTimer(watcher, lambda: next(ticks))
    timer.phase("reading", 3, "manifests")
    timer.advance(3)
    timer.phase("listing", None, "blobs")  # the one before ends, finished or not
    timer.finish()
    timer.finish()
    timer.phase("reading", 1, "manifests")
    timer.notice("once")
    timer.finish()
    assert timer.seconds == {"reading": 3.0, "listing": 3.0}
    assert (watcher.advanced, watcher.notices) == (3, ["once"])


# The gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = [program("prometheus-pushgateway"), f"--web.listen-address={address}"]
    with running(command, [port], folder=tmp_path_factory.mktemp("gateway")):
        yield f"http://{address}"


def pushed(gateway: str, root: Path) -> Samples:
    """What the gateway shows of *root*, as Prometheus would scrape it."""
    with build_opener(ProxyHandler({})).open(f"{gateway}/metrics") as answer:
        text = answer.read().decode()
    ours = [
        line
        for line in text.splitlines()
        if line.startswith("registry_gc_") and f'storage="{root}"' in line
    ]
    assert all('job="registry-gc"' in line for line in ours)
    return samples(
        "\n".join(re.sub(r'(instance="",|job="registry-gc",)', "", line) for line in ours)
    )


def test_a_gateway_shows_what_the_file_says(disk: Disk, file: Path, gateway: str) -> None:
    assert go(disk, "--metrics-file", file, "--pushgateway", gateway).errors == ""
    assert pushed(gateway, disk.root) == samples(file.read_text())


def test_a_gateway_keeps_what_a_run_cannot_tell(disk: Disk, gateway: str) -> None:
    go(disk, "--pushgateway", gateway)
    before = pushed(gateway, disk.root)
    go(disk, "--pushgateway", gateway, readonly=False)
    after = pushed(gateway, disk.root)
    assert (before["exit_code",], after["exit_code",]) == (0, 4)
    assert after["last_success_timestamp_seconds",] == before["last_success_timestamp_seconds",]


def test_two_registries_share_a_gateway(tmp_path: Path, gateway: str) -> None:
    for name in ("one", "two"):
        disk = Disk(tmp_path / name)
        disk.tree.image("a", "v1", layers=[name.encode()])
        go(disk, "--pushgateway", gateway, readonly=name == "one")
    codes = [pushed(gateway, tmp_path / name / "registry")["exit_code",] for name in ("one", "two")]
    assert codes == [0, 4]


def test_a_gateway_that_does_not_answer_changes_nothing_else(disk: Disk) -> None:
    result = go(disk, "--pushgateway", f"127.0.0.1:{free_port()}")
    assert result.exit_code == result.json["exit_code"] == 0
    assert "no metrics: http://127.0.0.1" in result.errors
    assert not disk.has_blob(sha256(b"orphan"))


@contextmanager
def a_gateway_that_answers(code: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server that says *code*; method and credentials of what it was asked."""
    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, self.headers.get("Authorization", "")))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"pushed metrics are invalid")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_a_gateway_complains_about_is_passed_on(disk: Disk) -> None:
    with a_gateway_that_answers(400) as (address, _):
        result = go(disk, "--pushgateway", address)
    assert result.exit_code == 0
    assert "pushed metrics are invalid" in result.errors


def test_credentials_of_a_gateway_are_sent_and_never_shown(disk: Disk) -> None:
    with a_gateway_that_answers(403) as (address, seen):
        result = go(disk, "--pushgateway", f"http://me:se%40cret@{address}/prefix")
    ((path, sent),) = seen
    assert path.startswith("/prefix/metrics/job/registry-gc/storage@base64/")
    assert sent == "Basic " + base64.b64encode(b"me:se@cret").decode()
    assert "403" in result.errors
    assert "cret" not in result.errors + result.text


@pytest.mark.parametrize(
    "url",
    [
        "ftp://localhost",
        "http://",
        "http://[::1",
        "http://x:port",
        "http://localhost:0",
        "http://localhost:99999",
        "http://user:s3cr/et@host:9091",
        "http://user:s3cr#et@host:9091",
        "http://user:s3cr[et@host:9091",
        "http://user:s3cr\u2100et@host:9091",
    ],
)
def test_an_address_that_is_none_is_a_usage_error_that_shows_no_password(
    disk: Disk, url: str
) -> None:
    result = go(disk, "--pushgateway", url)
    assert result.exit_code == 2
    assert "--pushgateway" in result.errors
    assert "s3cr" not in result.errors
    assert disk.has_blob(sha256(b"orphan"))


@pytest.mark.parametrize("option", ["--metrics-file", "--pushgateway"])
def test_without_the_library_the_extra_is_named(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    result = go(disk, option, "localhost")
    assert result.exit_code == 2
    assert "pip install 'registry-garbage-collect[metrics]'" in result.errors
    assert go(disk).exit_code == 0


def test_the_page_about_monitoring_names_every_metric(disk: Disk, file: Path) -> None:
    go(disk, "--metrics-file", file, "--capacity", "1TB")
    page = (Path(__file__).parent.parent / "docs" / "monitoring.md").read_text()
    written = {family.name for family in text_string_to_metric_families(file.read_text())}
    named = set(re.findall(r"registry_gc_[a-z_]+", page))
    of_purge = {name for name in named if name.startswith("registry_gc_purge_")}
    of_restore = {name.replace("_purge_", "_restore_") for name in of_purge}
    assert named - of_purge == written
    assert written | of_purge | of_restore >= KEPT
