"""From a registry's config to a driver; the only place that knows the drivers there are.

Drivers and their SDKs are imported when a storage is opened, never before: start-up must not
pay for what a run does not use.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from registry_drivers.base import Storage
from registry_drivers.errors import DriverConfigError, MissingExtra
from registry_drivers.versions import Versioned

# Name in the config -> module, the function in it that opens a storage, and the extra.
DRIVERS = {
    "filesystem": ("filesystem", "open_filesystem", ""),
    "s3": ("s3", "open_s3", "s3"),
    "s3_v2": ("s3", "open_s3", "s3"),
    "s3aws": ("s3", "open_s3", "s3"),
    "gcs": ("gcs", "open_gcs", "gcs"),
    "azure": ("azure", "open_azure", "azure"),
    "azure_v2": ("azure", "open_azure", "azure"),
}

# Module of the driver -> module and class that knows what its storage keeps of what is deleted.
_VERSIONS = {
    "s3": ("s3_versions", "S3Versions"),
    "gcs": ("gcs_versions", "GCSVersions"),
    "azure": ("azure_versions", "AzureVersions"),
}


@dataclass(frozen=True, slots=True)
class StorageSpec:
    """Which storage: everything needed to open it, here or in another process.

    ``parameters`` are those of the config, secrets among them: they are never shown.
    """

    driver: str
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)


def open_storage(spec: StorageSpec) -> Storage:
    """Open the storage that *spec* names.

    :raises DriverConfigError: an unknown driver, or parameters it cannot work with.
    :raises MissingExtra: its SDK is not installed.
    """
    if spec.driver == "inmemory":
        raise DriverConfigError(
            "an in-memory registry keeps nothing that could be collected", driver=spec.driver
        )
    if spec.driver not in DRIVERS:
        known = ", ".join(sorted(DRIVERS))
        raise DriverConfigError(f"unknown storage driver {spec.driver!r}; known are {known}")
    module_name, function, extra = DRIVERS[spec.driver]
    try:
        module = importlib.import_module(f"registry_drivers.{module_name}")
        storage: Storage = getattr(module, function)(spec.parameters, **_spelling(spec.driver))
    except ImportError as error:
        raise _not_importable(error, spec.driver, module_name, extra) from error
    return storage


def versions_of(storage: Storage) -> Versioned | None:
    """Who tells what *storage* keeps of what is deleted; None where a delete is a delete.

    :param storage: a driver itself: wrappers count, or wait, for requests that they see.
    """
    module_name, class_name = _VERSIONS.get(DRIVERS.get(storage.driver, ("",))[0], ("", ""))
    if not module_name:
        return None
    module = importlib.import_module(f"registry_drivers.{module_name}")
    versions: Versioned = getattr(module, class_name)(storage)
    return versions


def _spelling(driver: str) -> dict[str, str]:
    # A driver with several names is told which one the config has, for its messages.
    module_name = DRIVERS[driver][0]
    names = [name for name, (module, _, _) in DRIVERS.items() if module == module_name]
    return {"driver": driver} if len(names) > 1 else {}


def _not_importable(
    error: ImportError, driver: str, module_name: str, extra: str
) -> DriverConfigError:
    if error.name == f"registry_drivers.{module_name}" and isinstance(error, ModuleNotFoundError):
        return DriverConfigError(
            "this driver is known, but not part of this version", driver=driver
        )
    return MissingExtra(
        f"needs a package that cannot be imported ({error}): "
        f"pip install 'registry-garbage-collect[{extra}]'",
        driver=driver,
    )
