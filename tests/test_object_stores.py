"""Whole collections in object stores come to what they come to on a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from model import WEEK
from running import Disk, Result
from running import collect as collect_disk
from servers.moto import SECRET_KEY
from servers.process import free_port
from stores import Place, Servers, a_bit_of_everything, collect, keys_of, own_keys, store


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp)


PLAIN, UNTAGGED = (), ("-m",)
LIVES = [
    ("s3", PLAIN),
    ("s3", UNTAGGED),
    ("s3 below a folder", UNTAGGED),
    ("gcs", PLAIN),
    ("gcs", UNTAGGED),
    ("azure", PLAIN),
    ("azure", UNTAGGED),
    ("azure with a slash", UNTAGGED),
    ("seaweedfs", PLAIN),
    ("seaweedfs", UNTAGGED),
    ("juicefs", PLAIN),
    ("juicefs", UNTAGGED),
]


@dataclass(frozen=True)
class Life:
    """A registry that is looked at, collected, and collected again; files after each."""

    before: frozenset[str]
    dry: Result
    after_dry: frozenset[str]
    first: Result
    after_first: frozenset[str]
    second: Result
    after_second: frozenset[str]

    @classmethod
    def of(cls, collect: Callable[..., Result], files: Callable[[], set[str]]) -> Life:
        return cls(
            frozenset(files()),
            collect("--dry-run"),
            frozenset(files()),
            collect(),
            frozenset(files()),
            collect(),
            frozenset(files()),
        )


@dataclass(frozen=True)
class Lived:
    """A life in an object store, and where its own files lie."""

    place: Place
    folder: Path
    mode: tuple[str, ...]
    life: Life


@pytest.fixture(scope="module", params=LIVES, ids=lambda life: " ".join([life[0], *life[1]]))
def in_store(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Lived:
    kind, mode = request.param
    place, folder = servers.place(kind), tmp_path_factory.mktemp("run")
    store(place, a_bit_of_everything())
    life = Life.of(lambda *more: collect(place, folder, *mode, *more), lambda: keys_of(place))
    return Lived(place, folder, mode, life)


@pytest.fixture(scope="module")
def lives_on_disk(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Life]:
    lives: dict[tuple[str, ...], Life] = {}
    for mode in (PLAIN, UNTAGGED):
        disk = Disk(tmp_path_factory.mktemp("disk"))
        for path, data in a_bit_of_everything().items():
            disk.write(path, data)
        disk.age(2 * WEEK)
        run = partial(collect_disk, disk.root, *mode)
        lives[mode] = Life.of(run, disk.files)
    return lives


@pytest.fixture
def on_disk(in_store: Lived, lives_on_disk: dict[tuple[str, ...], Life]) -> Life:
    return lives_on_disk[in_store.mode]


COUNTED = (
    "delete_untagged", "repositories", "marked", "manifests", "blobs", "layer_links", "uploads",
    "already_gone", "held", "damaged", "failed", "strangers", "exit_code",
)  # fmt: skip


def test_what_is_left_is_what_is_left_on_a_disk(in_store: Lived, on_disk: Life) -> None:
    assert in_store.life.before == on_disk.before
    assert in_store.life.after_first == on_disk.after_first
    assert in_store.life.after_first < in_store.life.before


@pytest.mark.parametrize("run", ["dry", "first", "second"])
def test_the_report_says_what_it_says_of_a_disk(in_store: Lived, on_disk: Life, run: str) -> None:
    there, here = getattr(in_store.life, run).json, getattr(on_disk, run).json
    assert {name: there[name] for name in COUNTED} == {name: here[name] for name in COUNTED}
    assert there["exit_code"] == 3  # one repository is held
    assert there["storage"]["driver"] == in_store.place.driver


def test_a_dry_run_changes_nothing(in_store: Lived) -> None:
    assert in_store.life.after_dry == in_store.life.before
    assert in_store.life.dry.json["requests"]["write"] == 0
    assert in_store.life.dry.json["requests"]["delete"] == 0


def test_a_second_run_deletes_nothing(in_store: Lived) -> None:
    assert in_store.life.after_second == in_store.life.after_first
    for kind in ("blobs", "manifests", "layer_links", "uploads"):
        assert in_store.life.second.json[kind]["eligible"] == 0


def test_neither_lock_nor_anything_else_of_ours_stays(in_store: Lived) -> None:
    life = in_store.life
    assert not own_keys({*life.after_dry, *life.after_first, *life.after_second})


def test_no_secret_is_printed_or_kept(in_store: Lived) -> None:
    kept = b"".join(file.read_bytes() for file in in_store.folder.glob("state/**/*.*"))
    assert kept
    for run in (in_store.life.dry, in_store.life.first, in_store.life.second):
        for secret in in_store.place.secrets:
            assert secret not in run.text + run.errors
            assert secret.encode() not in kept


# --- What is wrong with the config


WRONG = [
    ("s3", {"bucket": "does-not-exist"}),
    ("gcs", {"bucket": "does-not-exist"}),
    ("azure", {"container": "does-not-exist"}),
    ("seaweedfs", {"secretkey": "wrong" + SECRET_KEY}),
    ("juicefs", {"secretkey": "wrong" + SECRET_KEY}),
    ("azure", {"accountkey": "d3Jvbmc="}),
]


@pytest.mark.parametrize(("kind", "wrong"), WRONG)
@pytest.mark.parametrize("arguments", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_wrong_place_or_key_is_one_line(
    servers: Servers,
    tmp_path: Path,
    kind: str,
    wrong: dict[str, str],
    arguments: tuple[str, ...],
) -> None:
    result = collect(servers.place(kind).with_parameters(**wrong), tmp_path, *arguments)
    # A place that is not there is refused as a wrong root is; who may not look cannot know.
    missing = "does-not-exist" in wrong.values()
    assert result.exit_code == (4 if missing and not arguments else 1)
    (line,) = result.errors.splitlines()
    assert line.startswith("error: ")
    assert SECRET_KEY not in result.text + line
    assert "does-not-exist" in line or not missing


@pytest.mark.parametrize(
    ("kind", "parameter"),
    [("s3", "bucket"), ("s3", "secretkey"), ("gcs", "bucket"), ("azure", "container")],
)
def test_a_missing_parameter_is_named_with_exit_code_2(
    servers: Servers, tmp_path: Path, kind: str, parameter: str
) -> None:
    result = collect(servers.place(kind).without(parameter), tmp_path)
    assert result.exit_code == 2
    (line,) = result.errors.splitlines()
    assert parameter in line
    assert not result.text


def test_an_empty_bucket_is_no_registry(servers: Servers, tmp_path: Path) -> None:
    result = collect(servers.place("s3"), tmp_path)
    assert result.exit_code == 4
    assert "no registry there" in result.errors


def test_nobody_at_the_endpoint_is_exit_code_1(servers: Servers, tmp_path: Path) -> None:
    place = servers.place("s3").with_parameters(
        regionendpoint=f"http://127.0.0.1:{free_port()}", maxretries=1
    )
    result = collect(place, tmp_path)
    assert result.exit_code == 1
    (line,) = result.errors.splitlines()
    assert "cannot connect" in line
