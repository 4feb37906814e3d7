"""The registries of a storage, as config and command line name them, to be asked all together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from registry_gc.config import Config, HttpConfig
from registry_gc.guard.addresses import (
    Address,
    UnusableAddress,
    configured_address,
    given_address,
    not_asked,
)
from registry_gc.guard.answer import Answer

if TYPE_CHECKING:
    # HTTP and TLS take longer to import than a small registry takes to look through.
    from registry_gc.guard import GuardOptions
    from registry_gc.guard.probe import Probe

_BEFORE = " (so the config said before the command)"


class Registries:
    """Safe to ask from any thread. ``unusable``: why one that the config names cannot be asked.

    ``drains``: one finishes what is being uploaded after it has closed its port.

    :raises ConfigError: a given address or the file of credentials is not usable.
    """

    def __init__(self, config: Config, options: GuardOptions) -> None:
        self._options = options
        self._addresses: list[Address] = []
        self.unusable: list[str] = []
        self._configured(config.path, config.http)
        self.drains = config.http.drains
        if options.before is not None:
            self._configured(config.path, options.before, _BEFORE)
            self.drains |= options.before.drains
        self._addresses += [given_address(url) for url in options.registry_urls]
        self._probe = self._prober() if self._addresses or options.auth_file else None

    def ask(self) -> list[tuple[Address, Answer]]:
        """What each says at this moment, in the same order every time."""
        if self._probe is None:
            return []
        return [(address, self._probe.ask(address)) for address in self._addresses]

    def _configured(self, path: str, http: HttpConfig, which: str = "") -> None:
        """Ask where *http* says that the registry listens, unless that is asked already."""
        try:
            address = configured_address(http)
        except UnusableAddress as error:
            self.unusable.append(f"{path}: the registry{which} cannot be asked: {error}")
            return
        # Who listens at one socket is asked once, as the config now says: a registry that has
        # still an older prefix, or no TLS yet, answers neither "read-only" to that.
        address = address and not_asked(address, self._addresses)
        if address is not None:
            self._addresses.append(replace(address, name=address.name + which))

    def _prober(self) -> Probe:
        from registry_gc.guard.probe import Probe

        credentials = None
        if self._options.auth_file:
            from registry_gc.guard.credentials import load_credentials

            credentials = load_credentials(self._options.auth_file)
        return Probe(credentials, self._options.timeout)
