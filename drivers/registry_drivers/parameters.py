"""A driver's parameters as the registry's config has them: YAML values, or strings."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import durationpy

from registry_drivers.errors import DriverConfigError

# What Go's strconv.ParseBool takes, which is what the registry reads strings with.
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


DEFAULT_ROOT = "/var/lib/registry"
"""Where a registry keeps a filesystem's storage if its config does not say."""


class Unquoted(str):
    """Text without quotes that YAML takes for a number or a boolean, and Go writes otherwise.

    ``0123`` is 83, ``1.10`` is 1.1 and ``yes`` is true; the text is as written, :attr:`value` what
    the registry has.
    """

    __slots__ = ("value",)
    value: bool | int | float

    def __new__(cls, text: str, value: bool | int | float) -> Unquoted:
        made = super().__new__(cls, text)
        made.value = value
        return made

    def __getnewargs__(self) -> tuple[str, bool | int | float]:  # type: ignore[override]  # one more than str has
        return str(self), self.value


def resolved(value: object) -> Any:
    """*value* as the registry has it where it wants no text."""
    return value.value if isinstance(value, Unquoted) else value


class Parameters:
    """Typed access to one driver's parameters; what nobody asks for is ignored.

    Texts that were asked for as secrets are remembered in :attr:`secrets`, so that they can be
    kept out of messages.
    """

    def __init__(self, driver: str, values: Mapping[str, Any]) -> None:
        self.driver = driver
        self.secrets: list[str] = []
        self._values = values

    def __repr__(self) -> str:
        return f"Parameters({self.driver!r})"

    def error(self, name: str, message: str) -> DriverConfigError:
        """An error about the parameter *name*."""
        return DriverConfigError(f"storage.{self.driver}.{name}: {message}", driver=self.driver)

    def has(self, name: str) -> bool:
        """Whether *name* is given, and is not empty."""
        return self._values.get(name) not in (None, "")

    def text(self, *names: str, default: str = "") -> str:
        """The first of *names* that is given, as text."""
        for name in names:
            value = self._values.get(name)
            if isinstance(value, Mapping | list):
                raise self.error(name, "expected text")
            if isinstance(value, Unquoted):
                raise self.error(
                    name,
                    "is a number, true or false to the registry, in other characters than these:"
                    " write the text that it uses, in quotes",
                )
            if isinstance(value, bool):
                return "true" if value else "false"
            if value not in (None, ""):
                return str(value)
        return default

    def required(self, name: str) -> str:
        """The text of *name*.

        :raises DriverConfigError: it is missing, empty, or no text.
        """
        value = self.text(name)
        if not value:
            raise self.error(name, "missing; the driver needs it")
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise self.error(name, "has half of a character") from error
        return value

    def secret(self, *names: str) -> str:
        """As :meth:`text`, for what must never be shown."""
        value = self.text(*names)
        if value:
            self.secrets.append(value)
        return value

    def flag(self, name: str, default: bool) -> bool:
        """*name* as a boolean.

        :raises DriverConfigError: it is something else.
        """
        value = resolved(self._values.get(name))
        if value is None or value == "":
            return default
        if isinstance(value, bool):
            return value
        if str(value) in _TRUE:
            return True
        if str(value) in _FALSE:
            return False
        raise self.error(name, "expected true or false")

    def number(self, name: str, default: float) -> float:
        """*name* as a number.

        :raises DriverConfigError: it is something else.
        """
        value = resolved(self._values.get(name))
        if value is None or value == "":
            return default
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise self.error(name, "expected a number") from error
        if not math.isfinite(number):
            raise self.error(name, "expected a number")
        return number

    def seconds(self, name: str, default: float) -> float:
        """*name* as a duration: Go's (``100ms``), or a number of seconds.

        :raises DriverConfigError: it is something else.
        """
        value = self.text(name)
        if not value:
            return default
        try:
            seconds = durationpy.from_str(value).total_seconds()
        except durationpy.DurationError:
            seconds = -1.0
            with contextlib.suppress(ValueError):
                seconds = float(value)
        if not 0 <= seconds < math.inf:
            raise self.error(name, "expected a duration such as 100ms")
        return seconds

    def mapping(self, name: str) -> Mapping[str, Any]:
        """*name* as a mapping; empty when it is not given.

        :raises DriverConfigError: it is something else.
        """
        value = self._values.get(name)
        if value is None or value == "":
            return {}
        if isinstance(value, Mapping):
            return value
        raise self.error(name, "expected a mapping")

    def refuse_null(self, name: str, meant: str) -> None:
        """*name* may be left out or empty, but not ``null``: a variable without a value is that.

        :raises DriverConfigError: it is there, and is nothing.
        """
        if name in self._values and self._values[name] is None:
            raise self.error(name, f"is empty, and registries take that for {meant}")

    def folder(self) -> str:
        """``rootdirectory`` as the beginning of every key: empty, or with ``/`` at its end.

        :raises DriverConfigError: a part of it is ``.`` or ``..``, which HTTP clients take out of
            the middle of a URL, and so would ask for other keys than were meant.
        """
        folder = self.text("rootdirectory").strip("/")
        if {".", ".."}.intersection(folder.split("/")):
            raise self.error("rootdirectory", "has a part that is '.' or '..'")
        return folder + "/" if folder else ""
