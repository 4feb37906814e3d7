"""From a registry's config to a driver; the only place that knows the drivers there are."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from registry_drivers.base import Storage
from registry_drivers.errors import DriverConfigError, MissingExtra

DRIVERS = {
    "filesystem": ("filesystem", "open_filesystem", ""),
    "s3": ("s3", "open_s3", "s3"),
    "s3_v2": ("s3", "open_s3", "s3"),
    "s3aws": ("s3", "open_s3", "s3"),
    "gcs": ("gcs", "open_gcs", "gcs"),
    "azure": ("azure", "open_azure", "azure"),
    "azure_v2": ("azure", "open_azure", "azure"),
}


@dataclass(frozen=True, slots=True)
class StorageSpec:
    """Which storage: everything needed to open it, here or on another machine."""

    driver: str
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)


def open_storage(spec: StorageSpec) -> Storage:
    """Open the storage that *spec* names.

    :raises DriverConfigError: an unknown driver, or parameters it cannot work with.
    :raises MissingExtra: its SDK is not installed.
    """
    if spec.driver == "inmemory":
        raise DriverConfigError("an in-memory registry keeps nothing to collect", driver="inmemory")
    if spec.driver not in DRIVERS:
        known = ", ".join(sorted(DRIVERS))
        raise DriverConfigError(f"unknown storage driver {spec.driver!r}; known are {known}")
    module_name, function, extra = DRIVERS[spec.driver]
    try:
        module = importlib.import_module(f"registry_drivers.{module_name}")
    except ModuleNotFoundError as error:
        if error.name == f"registry_drivers.{module_name}":
            raise DriverConfigError(
                "this driver is known, but not part of this version", driver=spec.driver
            ) from error
        raise MissingExtra(
            f"needs a package that is not installed ({error.name}): "
            f"pip install 'registry-garbage-collect[{extra}]'",
            driver=spec.driver,
        ) from error
    storage: Storage = getattr(module, function)(spec.parameters)
    return storage
