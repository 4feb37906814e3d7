"""The project itself: its rooms, its packages, its commands, its papers."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import click
import pytest

from registry_gc.cli.main import registry_gc
from registry_tree import RegistryTree, folder_sink
from running import write_config

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"registry_gc": ROOT / "gc", "registry_drivers": ROOT / "drivers"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# From the top down; a module imports from its own floor and from those below it.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"cli", "__main__"}),
    # These speak in each other's terms.
    frozenset({"apply", "collect", "session", "report", "metrics"}),
    frozenset(),  # every room that stands on no other floor: catalog, mark, plan, sweep, …
    frozenset({"layout", "manifests", "digest", "policy", "events"}),
)
MIDDLE = 2
CONCRETE = frozenset({"memory", "filesystem", "s3", "gcs", "azure"})
# Who calls delete: a sweep, or who stands in for the storage in one; a purge, in quarantine only;
# what forgets quarantines that are empty, our own notes; and the lock, its own object.
DELETING = frozenset(
    f"registry_gc.{name}"
    for name in (
        "sweep",
        "quarantine.aside",
        "quarantine.clearing",
        "quarantine.purge",
        "locking.claim",
        "locking.contest",
    )
)
CONTRACT = frozenset({"base", "errors", "paths"})
SDKS = ("boto3", "botocore", "obstore", "google.cloud.storage", "azure.core", "azure.storage.blob")
# What only some options, some answers, or a terminal ask for.
NOT_ASKED_FOR = frozenset(
    {"distributed", "http.client", "prometheus_client", "redis", "rich", "ssl", "tqdm", "urllib3"}
    | {
        f"registry_gc.{name}"
        for name in (
            "audit", "audit.log", "blob_cache.redis_client", "cli.away", "engines",
            "engines.dask_cluster", "engines.dask_worker", "guard.probe", "metrics",
            "metrics.output", "quarantine.bring_back", "quarantine.clearing", "quarantine.purge",
            "quarantine.recall", "quarantine.restore", "service.commands", "service.supervisor",
            "verify.closure", "verify.every_tag", "verify.plan_check",
        )
    }
)  # fmt: skip
LATER = ("bitmath", "numpy", "msgspec", "redis", "prometheus_client", "distributed")


@dataclass(frozen=True, slots=True)
class Import:
    """*module* imports *target*, both in full; ``typing`` when only type checkers see it."""

    module: str
    target: str
    typing: bool


def modules() -> dict[str, Path]:
    """Every module of both packages."""
    found = {}
    for source in PACKAGES.values():
        for path in sorted(source.rglob("*.py")):
            parts = path.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}


def type_checking(tree: ast.Module) -> set[ast.AST]:
    """The nodes below ``if TYPE_CHECKING``."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    ]
    return {below for block in blocks for part in block.body for below in ast.walk(part)}


def imports(name: str) -> Iterator[Import]:
    """What *name* imports from our packages, also inside functions."""
    hidden = type_checking(TREES[name])
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are written in full"
            # `from package import module` names a module, `from module import name` does not.
            targets = [
                full if (full := f"{node.module}.{alias.name}") in MODULES else str(node.module)
                for alias in node.names
            ]
        elif (target := lazy(node)) is not None:
            targets = [target]
        else:
            continue
        for target in targets:
            if target.partition(".")[0] in PACKAGES:
                yield Import(name, target, node in hidden)


def lazy(node: ast.AST) -> str | None:
    """The module that a call of ``import_module`` names."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        first = node.args[0]
        return str(first.value) if isinstance(first, ast.Constant) else ""
    return None


IMPORTS = [one for name in MODULES for one in imports(name)]


def floor(module: str) -> int:
    """On which floor *module* of the collector stands; 0 is the top."""
    room = module.split(".")[1] if "." in module else ""
    return next((n for n, rooms in enumerate(FLOORS) if room in rooms), MIDDLE)


def driver_room(module: str) -> str:
    """The module's name within ``registry_drivers``."""
    return module.partition(".")[2].partition(".")[0]


def concrete(module: str) -> bool:
    """Whether *module* is a driver, or a part of one such as ``filesystem_walk``."""
    return (
        module.startswith("registry_drivers.") and driver_room(module).partition("_")[0] in CONCRETE
    )


def calls(name: str) -> Iterator[str]:
    """The functions that *name* calls, as they are written."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


# --- rooms ------------------------------------------------------------------------------------


def test_the_source_roots_are_no_packages() -> None:
    assert not [path for path in PACKAGES.values() if (path / "__init__.py").exists()]


def test_the_drivers_import_nothing_of_the_collector() -> None:
    wrong = [
        one
        for one in IMPORTS
        if one.module.startswith("registry_drivers") and one.target.startswith("registry_gc")
    ]
    assert wrong == []


def test_the_collector_imports_no_concrete_driver() -> None:
    wrong = [
        one for one in IMPORTS if one.module.startswith("registry_gc") and concrete(one.target)
    ]
    assert wrong == []


def test_only_the_factory_imports_concrete_drivers() -> None:
    wrong = [
        one
        for one in IMPORTS
        if one.module.startswith("registry_drivers")
        and concrete(one.target)
        and not concrete(one.module)
        and driver_room(one.module) != "factory"
    ]
    assert wrong == []


def test_imports_point_downwards() -> None:
    wrong = [
        one
        for one in IMPORTS
        if one.module.startswith("registry_gc.")
        and one.target.startswith("registry_gc.")
        and floor(one.target) < floor(one.module)
    ]
    assert wrong == []


def test_the_lowest_rooms_know_of_the_drivers_only_their_contract() -> None:
    wrong = [
        one
        for one in IMPORTS
        if one.module.startswith("registry_gc.")
        and floor(one.module) == len(FLOORS) - 1
        and one.target.startswith("registry_drivers.")
        and driver_room(one.target) not in CONTRACT
    ]
    assert wrong == []


def test_no_imports_go_round_in_a_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for one in IMPORTS:
        if not one.typing and one.target != one.module:
            graph[one.module].add(one.target)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_the_command_line_prints_and_exits() -> None:
    wrong = [
        (name, call)
        for name in MODULES
        for call in calls(name)
        if call in {"print", "sys.exit", "exit", "quit", "SystemExit"}
        and not name.startswith("registry_gc.cli")
        and name != "registry_gc.progress"
    ]
    assert wrong == []


def test_only_the_sweep_deletes_and_the_lock_its_own_object() -> None:
    wrong = [
        (name, call)
        for name in MODULES
        for call in calls(name)
        if name.startswith("registry_gc")
        and call.endswith((".delete", ".remove_folders", ".rmtree", ".rmdir"))
        and name not in DELETING
    ]
    assert wrong == []


def test_who_imports_a_module_of_a_folder_imports_no_other_with_it() -> None:
    """But for the two folders that are themselves what most callers need."""
    folders = {name for name in MODULES if MODULES[name].name == "__init__.py"}
    importing = folders & {one.module for one in IMPORTS}
    assert importing == {"registry_gc.guard", "registry_gc.metrics"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_lives_in_it(name: str) -> None:
    assert ast.get_docstring(TREES[name])


# --- start-up ---------------------------------------------------------------------------------


def python(*arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python with both source roots and nothing else of ours; *path* goes before PATH."""
    roots = ":".join(map(str, PACKAGES.values()))
    environment = {"PYTHONPATH": roots, "PATH": f"{path}/usr/bin:/bin", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", ["registry_garbage_collect", "registry_gc"])
def test_help_imports_no_sdk_and_nothing_heavy(command: str) -> None:
    program = (
        f"import sys; from registry_gc.cli.main import {command} as run\n"
        "try: run(['--help'])\n"
        "finally: sys.stderr.write('\\n'.join(sys.modules))\n"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert set(done.stderr.splitlines()) & {*SDKS, *LATER} == set()


def test_the_help_of_the_group_imports_none_of_its_commands() -> None:
    program = (
        "import sys; from registry_gc.cli.main import registry_gc as run\n"
        "try: run(['--help'])\n"
        "finally: sys.stderr.write('\\n'.join(sys.modules))\n"
    )
    done = python("-c", program)
    imported = set(done.stderr.splitlines())
    assert {module for module, _ in registry_gc.later.values()} & imported == set()
    assert imported >= {"registry_gc.cli.main", "registry_gc.cli.lazy"}


def test_what_the_help_of_the_group_says_of_a_command_is_how_the_help_of_that_begins() -> None:
    context = click.Context(registry_gc)
    commands = {name: registry_gc.get_command(context, name) for name in registry_gc.later}
    told = {name: text for name, (_, text) in registry_gc.later.items()}
    sentences = {
        name: re.split(r"(?<=\.)\s", " ".join((command.help or "").split()))[0]
        for name, command in commands.items()
        if command is not None
    }
    assert told == sentences
    assert {name: command and command.name for name, command in commands.items()} == {
        name: name for name in told
    }


def test_a_collection_imports_only_what_it_was_asked_for(tmp_path: Path) -> None:
    tree = RegistryTree(folder_sink(tmp_path / "registry"))
    tree.image("app", "1", layers=[b"layer"])
    config = write_config(tmp_path / "registry")
    program = (
        "import sys; from registry_gc.cli.main import registry_garbage_collect as run\n"
        "try: run(sys.argv[1:])\n"
        "finally: sys.stderr.write('\\n'.join(sys.modules))\n"
    )
    done = python("-c", program, "--state-dir", str(tmp_path / "state"), str(config))
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.splitlines()) & {*SDKS, *NOT_ASKED_FOR} == set()


# --- packages ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both distributions, built from this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def sources() -> set[str]:
    """Every file of both packages, by its path below its source root."""
    return {
        path.relative_to(source).as_posix()
        for package, source in PACKAGES.items()
        for path in (source / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_both_packages_and_what_is_shared_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    info = f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info"
    share = ROOT / "contrib" / "share"
    shared = {path.relative_to(share).as_posix() for path in share.rglob("*") if path.is_file()}
    data = info.replace(".dist-info", ".data/data/share")
    assert names == sources() | {f"{data}/{path}" for path in shared} | {
        f"{info}/{name}"
        for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_the_sdist_holds_what_is_needed_to_build_and_test(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {name.partition("/")[0] for name in names} == {
        ".gitignore",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "PKG-INFO",
        "README.md",
        "benchmarks",
        "contrib",
        "docs",
        "drivers",
        "gc",
        "pyproject.toml",
        "tests",
    }
    assert {"tests/test_project.py", "contrib/cron/registry-garbage-collect"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_both_commands_resolve() -> None:
    scripts = PROJECT["project"]["scripts"]
    assert set(scripts) == {"registry-garbage-collect", "registry-gc"}
    for name, target in scripts.items():
        entry = importlib.metadata.EntryPoint(name, target, "console_scripts")
        assert callable(entry.load())


def test_the_changelog_begins_with_this_version() -> None:
    program = "import registry_gc; print(registry_gc.__version__)"
    version = python("-c", program).stdout.strip()
    top = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert top
    assert top[1] == version


# --- papers -----------------------------------------------------------------------------------


def papers() -> list[Path]:
    """Every text file that is ours."""
    folders = [".ci", "gc", "drivers", "tests", "benchmarks", "contrib", "docs"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files += [path for path in ROOT.iterdir() if path.suffix in {".md", ".toml"}]
    files.append(ROOT / "Makefile")
    return [
        path
        for path in files
        if path.is_file() and "__pycache__" not in path.parts and b"\0" not in path.read_bytes()
    ]


def test_no_file_names_a_machine_path_a_registry_host_or_a_secret() -> None:
    forbidden = re.compile(
        # Split or escaped, so that this file is not its own finding.
        r"/wo[r]k/|/root[/]|/home/[a-z]|"
        r"\b(?:docker|quay|ghcr|gcr|mcr\.microsoft|registry\.gitlab|public\.ecr\.aws)[.](?:io|com)\b|"
        r"\b(?:pypi|npmjs|debian|pythonhosted)[.](?:org|com)\b|"
        r"AKIA(?![0-9A-Z]*EXAMPLE)[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE[ ]KEY|"
        r"gl[p]at-|gh[p]_[A-Za-z0-9]{20}"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in papers()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert found == []


def test_the_links_between_our_papers_lead_somewhere() -> None:
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in papers()
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
        if not (path.parent / target).exists()
    ]
    assert broken == []


def finding_codes() -> set[str]:
    """The codes of all findings that the collector can come to."""
    return {
        str(node.args[0].value)
        for name in TREES
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in {"Finding", "refuse", "PlanRefused"}
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def test_troubleshooting_knows_every_finding_and_no_other() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    documented = {code for row in rows for code in re.findall(r"`([a-z]+(?:-[a-z]+)*)`", row)} - {
        "held",
        "damaged",
        "failed",
        "strangers",
    }
    assert documented == finding_codes()


def test_the_readme_shows_the_help_that_the_command_prints() -> None:
    script = ROOT / "contrib" / "fill_help.py"
    program = (
        f"import sys; sys.path.insert(0, {str(script.parent)!r}); import fill_help as f\n"
        "readme = (f.HERE / 'README.md').read_text(encoding='utf-8')\n"
        "sys.exit(f.split(readme)[1] != f.block(f.help_text()))\n"
    )
    assert python("-c", program).returncode == 0, "make readme"


# --- what is shown ----------------------------------------------------------------------------


def test_the_demo_shows_a_collection_and_leaves_every_tag_whole(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "registry-garbage-collect"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable}\n"
        "from registry_gc.cli.main import registry_garbage_collect\n"
        "registry_garbage_collect()\n"
    )
    command.chmod(0o755)
    done = python(
        str(ROOT / "benchmarks" / "demo.py"), str(tmp_path / "demo"), path=f"{command.parent}:"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # What somebody sees first has nothing to worry about in it.
    assert "note:" not in done.stdout + done.stderr
    assert "Every tag still has all of its manifests, configs and layers." in done.stdout
    assert "A second run finds nothing more to delete." in done.stdout
    for what in ("index of 2.0", "night 1", "signature of 2.1", "upload begun"):
        assert what in done.stdout


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("/etc/a.yml", "/etc/a.yml"),
        ("/etc/my  own.yml", "/etc/my  own.yml"),
        ("~/my own.yml", "/me/my own.yml"),
        ("a~/b.yml", "a~/b.yml"),
    ],
)
def test_make_run_takes_the_config_as_it_is_named(given: str, file: str) -> None:
    """With ``~`` also where the shell leaves that as it is, as most do in such a word."""
    told = subprocess.run(
        ["make", "-n", "run", f"CONFIG={given}"],
        cwd=ROOT,
        env={**os.environ, "HOME": "/me"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines()[-1].endswith(f' --dry-run "{file}"')
