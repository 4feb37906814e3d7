"""The config's YAML is read as go-yaml v2 reads it, or refused. The judge is a real registry."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from real import program
from registry_drivers.errors import DriverConfigError
from registry_drivers.factory import open_storage
from registry_drivers.parameters import Parameters, Unquoted
from registry_gc.config import Config, ConfigError, UploadPurging, load_config
from registry_tree import V2

VERSION = "version: 0.1\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that both readers run in, and that roots are relative to."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("REGISTRY")]:
        monkeypatch.delenv(name)
    return tmp_path


def make_root(folder: Path, root: str) -> None:
    """A registry below *folder*, whose only repository tells where it is."""
    repository = folder / root / V2 / "repositories" / repository_in(root)
    for below in ("_layers", "_manifests/revisions", "_manifests/tags"):
        (repository / below).mkdir(parents=True)


def repository_in(root: str) -> str:
    return "in-" + root.encode().hex()


def theirs(folder: Path, environ: Mapping[str, str]) -> set[str]:
    """The repositories that ``docker-registry`` finds with the config in *folder*."""
    answer = subprocess.run(
        [program("docker-registry"), "garbage-collect", "--dry-run", "config.yml"],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return set(re.findall(r"^(in-\S+)$", answer.stdout, re.M))


def ours(environ: Mapping[str, str]) -> set[str]:
    storage = open_storage(load_config("config.yml", environ).storage)
    with os.scandir(f"{storage.root}/{V2}/repositories") as found:
        return {entry.name for entry in found}


def agree(folder: Path, text: str, root: str, environ: Mapping[str, str] | None = None) -> None:
    make_root(folder, root)
    (folder / "config.yml").write_text(text)
    repositories = theirs(folder, environ or {})
    assert len(repositories) == 1
    assert ours(environ or {}) == repositories


def load(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> Config:
    (folder / "config.yml").write_text(text)
    return load_config("config.yml", environ or {})


def filesystem(root: str) -> str:
    return f"{VERSION}storage:\n  filesystem:\n    rootdirectory: {root}\n"


# --- scalars

SAME = [
    *("a/b", "123", "true", "false", "0.1", "-5", "1e+21", "9223372036854775808", "1.5"),
    *("2024-01-01", "2024-01-01T00:00:00Z", "12:34", "1,000", "1e400", "08x", "=", "<<", "tRUE"),
    *("!!str 0123", "'0123'", '"yes"', "!!binary YQ==", "_1", "0xg", "123456.5", "1e-05"),
]
OTHER = {
    "1.10": "1.1",
    "0123": "83",
    "-0123": "-83",
    "007": "7",
    "08": "8",
    "0x10": "16",
    "0o17": "15",
    "0b101": "5",
    "-0b101": "-5",
    "1_000": "1000",
    "1e3": "1000",
    "1.0": "1",
    ".5": "0.5",
    "+5": "5",
    "-0": "0",
    "1234567.5": "1.2345675e+06",
    "18446744073709551616": "1.8446744073709552e+19",
    ".inf": "+Inf",
    ".nan": "NaN",
    "yes": "true",
    "y": "true",
    "Y": "true",
    "On": "true",
    "TRUE": "true",
    "n": "false",
    "N": "false",
    "off": "false",
    "!!int 0x10": "16",
    "!!bool y": "true",
}


@pytest.mark.parametrize("written", SAME)
@pytest.mark.parametrize("where", ["file", "variable"])
def test_a_root_is_the_text_that_the_registry_uses(folder: Path, written: str, where: str) -> None:
    root = {"!!str 0123": "0123", "!!binary YQ==": "a"}.get(written, written.strip("'\""))
    if where == "file":
        agree(folder, filesystem(written), root)
    else:
        variable = {"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": written}
        agree(folder, filesystem("/nowhere"), root, variable)


@pytest.mark.parametrize("written", OTHER)
def test_a_root_that_the_registry_reads_as_another_text_is_refused(
    folder: Path, written: str
) -> None:
    make_root(folder, written)
    make_root(folder, OTHER[written])
    (folder / "config.yml").write_text(filesystem(written))
    assert theirs(folder, {}) == {repository_in(OTHER[written])}
    with pytest.raises(DriverConfigError, match=r"filesystem\.rootdirectory: .*in quotes") as file:
        ours({})
    variable = {"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": written}
    (folder / "config.yml").write_text(filesystem("/nowhere"))
    with pytest.raises(DriverConfigError, match=r"filesystem\.rootdirectory: .*in quotes"):
        ours(variable)
    assert written not in str(file.value).split()


def test_a_text_without_quotes_is_kept_with_what_the_registry_has() -> None:
    given = Parameters("s3", {"maxthreads": Unquoted("0x10", 16), "secure": Unquoted("y", True)})
    assert given.number("maxthreads", 0) == 16
    assert given.flag("secure", default=False) is True
    with pytest.raises(DriverConfigError, match="in quotes") as caught:
        Parameters("s3", {"secretkey": Unquoted("0123", 83)}).secret("secretkey")
    assert "0123" not in str(caught.value)
    assert "83" not in str(caught.value)
    copy = pickle.loads(pickle.dumps(Unquoted("0123", 83)))
    assert (copy, copy.value) == ("0123", 83)


def test_a_boolean_as_text_is_what_go_writes() -> None:
    assert Parameters("s3", {"bucket": True}).text("bucket") == "true"
    assert Parameters("s3", {"bucket": False}).text("bucket") == "false"


@pytest.mark.parametrize(
    ("word", "expected"),
    [("y", True), ("Y", True), ("on", True), ("TRUE", True), ("n", False), ("Off", False)],
)
def test_readonly_takes_every_boolean_that_the_registry_takes(
    folder: Path, word: str, expected: bool
) -> None:
    text = filesystem("/a") + "  maintenance: {readonly: {enabled: WORD}}"
    assert load(folder, text.replace("WORD", word)).readonly is expected
    with pytest.raises(ConfigError, match="is a string: write true or false, without quotes"):
        load(folder, text.replace("WORD", f"'{word}'"))


def test_texts_outside_storage_are_as_written(folder: Path) -> None:
    # Go has fields of type string there, which take the text itself.
    config = load(
        folder,
        filesystem("/a") + "http: {prefix: 0123}\nproxy: {remoteurl: yes}\nredis: {password: 010}",
    )
    assert config.http.prefix == "0123"
    assert config.proxy_remote_url == "yes"
    assert config.redis == {"password": "010"}


# --- keys that are given more than once

AGREED = {
    "<< above": "x: &x {rootdirectory: b}\nstorage: {filesystem: {<<: *x, rootdirectory: a}}",
    "the first of several": "x: [&x {rootdirectory: a}, &y {rootdirectory: b}]\n"
    "storage: {filesystem: {<<: [*x, *y]}}",
    "<< twice": "x: [&x {rootdirectory: b}, &y {rootdirectory: a}]\n"
    "storage: {filesystem: {<<: *x, <<: *y}}",
    "<< below, with the same value": "x: &x {rootdirectory: a}\n"
    "storage: {filesystem: {rootdirectory: a, <<: *x}}",
    "<< below, with another key": "x: &x {rootdirectory: a}\n"
    "storage: {filesystem: {maxthreads: 100, <<: *x}}",
    "<< inside <<": "x: &x {rootdirectory: a}\ny: &y {<<: *x, maxthreads: 100}\n"
    "storage: {filesystem: {<<: *y}}",
    "a parameter twice": "storage: {filesystem: {rootdirectory: b, rootdirectory: a}}",
    "a driver twice": "storage:\n  filesystem: {maxthreads: 100}\n  filesystem: {rootdirectory: a}",
    "the same twice": "http: {addr: ':5', addr: ':5'}\nstorage: {filesystem: {rootdirectory: a}}",
    "elsewhere": "log: {level: info}\nlog: {level: debug}\nx: &x {level: warn}\n"
    "log: {level: debug, <<: *x}\nstorage: {filesystem: {rootdirectory: a}}",
    "an anchor twice": "x: &x {rootdirectory: b}\ny: &x {rootdirectory: a}\n"
    "storage: {filesystem: *x}",
    "<< in quotes": "x: &x {rootdirectory: b}\nstorage: {filesystem: {rootdirectory: a, '<<': *x}}",
    "a tag elsewhere": "x: !foo bar\ny: !foo {a: b}\nz: !!python/object:os.system [a]\n"
    "storage: {filesystem: {rootdirectory: a}}",
    "maxthreads in hexadecimal": "storage: {filesystem: {rootdirectory: a, maxthreads: 0x20}}",
    "no age where nothing is purged": "storage:\n  filesystem: {rootdirectory: a}\n"
    "  maintenance: {uploadpurging: {enabled: false, age: bogus}}",
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in AGREED.items()])
def test_what_every_registry_reads_alike_is_read(folder: Path, text: str) -> None:
    agree(folder, VERSION + text + "\n", "a")


MERGED = "put '<<' first, or write the key once"
TWICE = "write it once"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "x: &x {rootdirectory: /a}\nstorage:\n  filesystem:\n    rootdirectory: /b\n    <<: *x",
            rf"line 5: storage\.filesystem\.rootdirectory: .*{MERGED}",
        ),
        (
            "x: &x {rootdirectory: /a}\nstorage: {filesystem: {rootdirectory: /b, <<: [*x]}}",
            rf"storage\.filesystem\.rootdirectory: .*{MERGED}",
        ),
        (
            "x: &x\n  storage: {filesystem: {}}\nstorage: {s3: {}}\n<<: *x",
            rf"line 4: storage: .*{MERGED}",
        ),
        (
            "x: &x {addr: ':1'}\nstorage: inmemory\nhttp: {addr: ':2', <<: *x}",
            rf"http\.addr: .*{MERGED}",
        ),
        (
            "x: &x {enabled: false}\nstorage:\n  filesystem:\n"
            "  maintenance: {readonly: {enabled: true, <<: *x}}",
            rf"storage\.maintenance\.readonly\.enabled: .*{MERGED}",
        ),
        (
            "storage: inmemory\nhttp: {addr: ':1'}\nhttp: {prefix: /x}",
            rf"line 3: http: .*{TWICE}",
        ),
        ("storage: inmemory\nhttp: {addr: ':1'}\nhttp:", rf"http: .*{TWICE}"),
        ("storage: {s3: {}}\nstorage: {filesystem: {}}", rf"line 2: storage: .*{TWICE}"),
        (
            "storage: inmemory\nproxy: {remoteurl: 'http://x'}\nproxy: {username: y}",
            rf"proxy: .*{TWICE}",
        ),
        ("storage: inmemory\nhttp: {addr: ':1', addr: ':2'}", rf"http\.addr: .*{TWICE}"),
        (
            "storage: inmemory\nhttp: {tls: {certificate: x}, tls: {key: y}}",
            rf"http\.tls: .*{TWICE}",
        ),
        (
            "x: &x {tls: {certificate: x}}\nstorage: inmemory\nhttp: {<<: *x, tls: {key: y}}",
            rf"http\.tls: .*{TWICE}",
        ),
        ("x: &x {addr: a, addr: b}\nstorage: inmemory\nhttp: *x", rf"http\.addr: .*{TWICE}"),
        ("storage: inmemory\nredis: {addr: a}\nredis: {db: 1}", rf"redis: .*{TWICE}"),
        ("storage: inmemory\nhttp: {addr: !foo ':1'}", r"http\.addr: has a tag"),
    ],
)
def test_what_could_be_read_in_more_than_one_way_is_refused(
    folder: Path, text: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(folder, text)
    assert str(caught.value).startswith("config.yml: line ")
    assert "\n" not in str(caught.value)


def test_a_variable_is_looked_at_as_the_file_is(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"variable REGISTRY_HTTP: line 1: http\.addr: .*once"):
        load(folder, filesystem("/a"), {"REGISTRY_HTTP": "{addr: ':1', addr: ':2'}"})


def test_what_stands_behind_an_exclamation_mark_is_text(folder: Path) -> None:
    agree(folder, VERSION + "storage: {filesystem: {rootdirectory: ! 0123}}\n", "0123")
    text = filesystem("/a") + "  maintenance: {readonly: {enabled: ! true}}"
    with pytest.raises(ConfigError, match="is a string: write true or false"):
        load(folder, text)


def test_half_of_a_character_is_refused_as_the_registry_refuses_it(folder: Path) -> None:
    make_root(folder, "a")
    text = filesystem("a") + 'x: "\\ud800"\n'
    with pytest.raises(ConfigError, match=r"config\.yml: line 5: has half of a character"):
        load(folder, text)
    assert not theirs(folder, {})


def nested_merges(levels: int, innermost: str) -> str:
    """Mappings that each bring in the one before nine times: 9 to the power of *levels* in all."""
    lines = [f"x0: &x0 {{{innermost}}}"]
    for level in range(1, levels + 1):
        nine = ", ".join([f"*x{level - 1}"] * 9)
        lines.append(f"x{level}: &x{level} {{<<: [{nine}]}}")
    return "\n".join(lines) + "\n"


DATA = "storage: {filesystem: {rootdirectory: /a}}\n"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(nested_merges(6, "a: 1") + DATA, id="with a key"),
        pytest.param(nested_merges(7, "") + DATA + "http: {<<: *x7}\n", id="with nothing in them"),
        pytest.param(
            f"storage: {{filesystem: {{{''.join(f'a: {n}, ' for n in range(500))}}}}}\n",
            id="one key many times",
        ),
    ],
)
def test_a_few_lines_do_not_ask_for_work_without_end(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.yml: line \d+: brings in too much by '<<'"):
        load(folder, VERSION + text)


def test_as_many_merges_as_a_config_may_have_are_read(folder: Path) -> None:
    text = nested_merges(2, "rootdirectory: a") + "storage: {filesystem: {<<: *x2}}"
    agree(folder, VERSION + text + "\n", "a")


# --- tabs


@pytest.mark.parametrize(
    "text",
    [
        "storage:\n  filesystem:\n    rootdirectory: a\t\n    maxthreads: 100\n",
        "storage:\t\n  filesystem:\t\n    rootdirectory:\ta\n",
        "storage:\n  filesystem:\n    rootdirectory: a\t# data\n",
        'storage:\n  filesystem:\n    rootdirectory: "a" \t # data\t\n',
        'storage: {\n\tfilesystem: {\n\t\trootdirectory:\t"a"\t\n\t}\n}\n',
        '{\n\t"version":\t"0.1",\n\t"storage": {"filesystem": {"rootdirectory": "a"}}\n}\n',
    ],
)
def test_tabs_that_the_registry_takes_are_taken(folder: Path, text: str) -> None:
    agree(folder, text if "version" in text else VERSION + text, "a")


def test_a_variable_may_end_with_a_tab(folder: Path) -> None:
    agree(folder, filesystem("b"), "a", {"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": "a\t"})


@pytest.mark.parametrize(
    "text", ["storage:\n\t# data\n  filesystem:\n", "storage:\n\tfilesystem:\n", "x:\n-\ta: b\n"]
)
def test_a_tab_that_could_indent_is_refused_as_the_registry_refuses_it(
    folder: Path, text: str
) -> None:
    make_root(folder, "a")
    text = VERSION + text + "storage: {filesystem: {rootdirectory: a}}\n"
    with pytest.raises(ConfigError, match="is not YAML"):
        load(folder, text)
    assert not theirs(folder, {})


# --- variables


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        (filesystem("a"), "REGISTRY_HTTP_FOO_BAR", "[1"),
        (filesystem("a"), "REGISTRY_storage_FILESYSTEM_ROOTDIRECTORY", "b"),
        (filesystem("a"), "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY_DEEPER", "b"),
        (VERSION + "storage:\n", "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "a"),
        (VERSION + "storage: {filesystem: }", "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "a"),
    ],
)
def test_variables_reach_as_far_as_the_registry_lets_them(
    folder: Path, file: str, name: str, value: str
) -> None:
    agree(folder, file, "a", {name: value})


@pytest.mark.parametrize(
    "name", ["REGISTRY_STORAGE_filesystem_MAXTHREADS", "REGISTRY_STORAGE_FILESYSTEM_MaxThreads"]
)
def test_a_storage_variable_in_lower_case_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"variable {name}: write it in upper case"):
        load(folder, filesystem("a"), {name: "60"})


def test_the_registry_takes_a_lower_case_name_for_a_new_section(folder: Path) -> None:
    # Why such a name is refused: the file's root does not count any more.
    make_root(folder, "a")
    (folder / "config.yml").write_text(filesystem("a"))
    assert theirs(folder, {}) == {repository_in("a")}
    assert not theirs(folder, {"REGISTRY_STORAGE_filesystem_MAXTHREADS": "60"})


@pytest.mark.parametrize("name", ["REGISTRY_HTTP_addr", "REGISTRY_PROXY_remoteurl"])
def test_a_lower_case_variable_for_another_section_is_ignored(folder: Path, name: str) -> None:
    config = load(folder, filesystem("/a"), {name: ":5000"})
    assert (config.http.addr, config.proxy_remote_url) == ("", None)


def test_a_variable_does_not_reach_into_a_mapping_that_is_written(folder: Path) -> None:
    text = filesystem("/a") + "  maintenance: {uploadpurging: {enabled: false, age: 240h}}"
    prefix = "REGISTRY_STORAGE_MAINTENANCE_UPLOADPURGING"
    config = load(folder, text, {f"{prefix}_ENABLED": "true", f"{prefix}_AGE": "1h"})
    assert config.upload_purging == UploadPurging(enabled=False, age_seconds=240 * 3600.0)
    assert [notice.split()[0] for notice in config.notices] == [
        f"{prefix}_AGE",
        f"{prefix}_ENABLED",
    ]
    assert "storage.maintenance.uploadpurging: set 'enabled' there" in config.notices[1]
    by_variable = {prefix: "{enabled: false}", f"{prefix}_ENABLED": "true"}
    assert not load(folder, filesystem("/a"), by_variable).upload_purging.enabled


def test_variables_make_a_mapping_and_go_on_filling_it(folder: Path) -> None:
    prefix = "REGISTRY_STORAGE_MAINTENANCE_UPLOADPURGING"
    environ = {f"{prefix}_ENABLED": "true", f"{prefix}_AGE": "1h"}
    config = load(folder, filesystem("/a"), environ)
    assert config.upload_purging == UploadPurging(age_seconds=3600.0)
    assert not config.notices


def test_a_variable_that_says_what_the_file_says_is_not_worth_a_notice(folder: Path) -> None:
    text = filesystem("/a") + "  maintenance: {readonly: {enabled: true}}"
    config = load(folder, text, {"REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED": "yes"})
    assert config.readonly
    assert not config.notices


@pytest.mark.parametrize(
    "http",
    ["{headers: {A: [b]}, addr: ':5000', headers: {A: [c]}}", "{addr: ':5000', secret: !vault x}"],
)
def test_what_nobody_asks_for_may_be_read_in_more_than_one_way(folder: Path, http: str) -> None:
    agree(folder, f"{VERSION}storage: {{filesystem: {{rootdirectory: a}}}}\nhttp: {http}\n", "a")


def test_a_number_of_nanoseconds_without_end_is_a_time_to_drain(folder: Path) -> None:
    text = f"{VERSION}storage: {{filesystem: {{rootdirectory: a}}}}\nhttp: {{draintimeout: %s}}\n"
    for digits, drains in (("9" * 5000, True), ("0" * 5000, False)):
        (folder / "config.yml").write_text(text % f"'{digits}'")
        assert load_config("config.yml", {}).http.drains is drains
