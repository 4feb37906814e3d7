"""From a config to a driver: names, errors, and that nothing is imported or shown too early."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from registry_drivers import factory
from registry_drivers.base import Storage
from registry_drivers.errors import DriverConfigError, MissingExtra
from registry_drivers.factory import DRIVERS, StorageSpec, open_storage
from registry_drivers.memory import MemoryStorage

SDKS = ("boto3", "botocore", "obstore", "google.cloud", "azure", "tenacity")


def test_a_filesystem_is_opened_with_its_parameters(tmp_path: Path) -> None:
    storage = open_storage(StorageSpec("filesystem", {"rootdirectory": str(tmp_path)}))
    assert isinstance(storage, Storage)
    assert (storage.driver, storage.root) == ("filesystem", str(tmp_path))


def test_a_spec_never_shows_its_parameters() -> None:
    spec = StorageSpec("s3", {"secretkey": "hunter2"})
    assert "hunter2" not in f"{spec!r} {spec}"


def test_a_spec_crosses_process_borders(tmp_path: Path) -> None:
    spec = StorageSpec("filesystem", {"rootdirectory": str(tmp_path)})
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_an_in_memory_registry_is_refused_with_the_reason() -> None:
    with pytest.raises(DriverConfigError, match="nothing that could be collected"):
        open_storage(StorageSpec("inmemory", {}))


@pytest.mark.parametrize("name", ["swift", "oss", "S3", "", "os"])
def test_an_unknown_driver_is_named_beside_those_that_are_known(name: str) -> None:
    with pytest.raises(DriverConfigError) as caught:
        open_storage(StorageSpec(name, {}))
    assert repr(name) in str(caught.value)
    for known in DRIVERS:
        assert known in str(caught.value)


def test_a_driver_that_is_not_part_of_this_version_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(factory.DRIVERS, "tape", ("tape", "open_tape", "tape"))
    with pytest.raises(DriverConfigError, match="not part of this version") as caught:
        open_storage(StorageSpec("tape", {}))
    assert not isinstance(caught.value, MissingExtra)


@pytest.mark.parametrize("early", [True, False])
def test_a_missing_sdk_names_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, early: bool
) -> None:
    source = "import no_such_sdk" if early else "def open_tape(_):\n    import no_such_sdk"
    (tmp_path / "tape.py").write_text(source)
    package = sys.modules["registry_drivers"]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setitem(factory.DRIVERS, "tape", ("tape", "open_tape", "tape"))
    try:
        with pytest.raises(MissingExtra) as caught:
            open_storage(StorageSpec("tape", {}))
    finally:
        sys.modules.pop("registry_drivers.tape", None)
    assert "no_such_sdk" in str(caught.value)
    assert "pip install 'registry-garbage-collect[tape]'" in str(caught.value)


def test_a_driver_with_several_names_is_told_which_the_config_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[dict[str, object]] = []

    def open_two(parameters: dict[str, object], **rest: object) -> MemoryStorage:
        told.append({**parameters, **rest})
        return MemoryStorage()

    two = ModuleType("registry_drivers.two")
    two.__dict__["open_two"] = open_two
    monkeypatch.setitem(sys.modules, "registry_drivers.two", two)
    monkeypatch.setitem(factory.DRIVERS, "two", ("two", "open_two", ""))
    open_storage(StorageSpec("two", {"a": 1}))
    monkeypatch.setitem(factory.DRIVERS, "two_v2", ("two", "open_two", ""))
    open_storage(StorageSpec("two_v2", {"a": 2}))
    assert told == [{"a": 1}, {"a": 2, "driver": "two_v2"}]


def test_no_sdk_is_imported_before_it_is_needed(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from registry_drivers.factory import StorageSpec, open_storage
import registry_drivers.wrappers
storage = open_storage(StorageSpec("filesystem", {{"rootdirectory": {str(tmp_path)!r}}}))
print([name for name in {SDKS!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("missing", "package"),
    [("google.auth.transport.requests", "google-auth"), ("obstore", "obstore")],
)
def test_what_gcs_lacks_is_named_as_it_is_installed(
    missing: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtra, match=f"needs {package}: pip install"):
        open_storage(StorageSpec("gcs", {"bucket": "b"}))
