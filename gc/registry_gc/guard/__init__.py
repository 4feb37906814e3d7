"""May anything be deleted at all? What the config, the storage and the running registry say.

Nothing is deleted unless it is known that nobody can write. Known is: the config says read-only,
and each address answers so or refuses the connection; or the operator says that the registry is
stopped, and each address refuses the connection. Whatever is not an answer to that is unknown,
and unknown refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from registry_drivers.base import Reader
from registry_drivers.errors import NotFound
from registry_gc.config import Config, HttpConfig
from registry_gc.guard.addresses import Address
from registry_gc.guard.answer import Answer, AnswerKind
from registry_gc.guard.registries import Registries

__all__ = ["Finding", "Guard", "GuardOptions", "Verdict"]

LOCKFILES = "docker/registry/lockfiles/"  # GitLab's, "registry/storage/driver/lockers.go"
SCHEDULER_STATE = "scheduler-state.json"  # a pull-through cache's, in the storage's root
DRAINS = (
    "http.draintimeout is set: a registry that was told to stop refuses connections while it still"
    " finishes uploads; only when its process has ended is it stopped"
)


class GuardOptions(msgspec.Struct, frozen=True):
    """What the operator says about the registry.

    :param registry_urls: further addresses of registries on this storage.
    :param registry_stopped: no registry runs.
    :param assume_readonly: take what cannot be known as read-only; what is known to take
        writes stays refused.
    :param auth_file: credentials for the probe, as ``docker login`` writes them.
    :param timeout: seconds to wait for one answer.
    :param before: where the registry listened before a command that may have edited the config:
        whether it has ended there, or was restarted, is asked too.
    """

    registry_urls: tuple[str, ...] = ()
    registry_stopped: bool = False
    assume_readonly: bool = False
    auth_file: str | None = None
    timeout: float = 5.0
    before: HttpConfig | None = None


class Finding(msgspec.Struct, frozen=True):
    """One thing that was found out: a stable code, and a line that says what to do."""

    code: str
    message: str


REASSURING = frozenset(
    {
        "nothing-to-probe",
        "nobody-answered",
        "readonly-confirmed",
        "stopped-confirmed",
        "command-not-run",
    }
)
"""The codes of findings that are only told."""


def objections(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that speak against deleting."""
    return [finding for finding in findings if finding.code not in REASSURING]


class Verdict(msgspec.Struct, frozen=True):
    """May be deleted, must not, or nobody knows; only ``allowed`` lets a sweep begin."""

    verdict: Literal["allowed", "refused", "unknown"]
    findings: tuple[Finding, ...]

    @property
    def allowed(self) -> bool:
        """Whether a sweep may begin, or go on."""
        return self.verdict == "allowed"

    @property
    def notes(self) -> list[str]:
        """What the operator should know although it speaks against nothing."""
        return [found.message for found in self.findings if found.code == "nobody-answered"]


class Guard:
    """Looks whether anybody can write; cheap, and safe to call from any thread.

    Each :meth:`check` costs the storage one listing and one look at a file, and each address one
    short request.

    :raises ConfigError: an address or the file of credentials is not usable.
    """

    def __init__(self, config: Config, storage: Reader, options: GuardOptions) -> None:
        self._config = config
        self._storage = storage
        self._options = options
        self._registries = Registries(config, options)

    def check(self) -> Verdict:
        """What is known at this moment.

        :raises StorageError: the storage could not be asked.
        """
        refusals = [*self._proxy(), *self._database()]
        writing, unknown, confirmed = self._writing(self._registries.ask())
        if refusals or writing:
            return Verdict("refused", (*refusals, *writing, *unknown, *confirmed))
        return Verdict("unknown" if unknown else "allowed", (*unknown, *confirmed))

    def _proxy(self) -> Iterator[Finding]:
        if self._config.proxy_remote_url:
            yield Finding(
                "pull-through-cache",
                f"{self._config.path}: proxy.remoteurl is set: a pull-through cache writes on"
                " every pull, and removes what is old itself; collect no such storage",
            )
        try:
            self._storage.stat(SCHEDULER_STATE)
        except NotFound:
            return
        yield Finding(
            "scheduler-state",
            f"{SCHEDULER_STATE} lies in the storage's root: a pull-through cache uses or used"
            " this storage; if none does any more, remove that file",
        )

    def _database(self) -> Iterator[Finding]:
        database = self._config.database
        files = self._storage.children(LOCKFILES).files
        if database == "on":
            yield Finding(
                "database-in-use",
                f"{self._config.path}: database.enabled is set: the metadata database says what"
                " is live, not the storage; use that registry's online collection",
            )
        if "database-in-use" in files:
            yield Finding(
                "database-in-use",
                f"{LOCKFILES}database-in-use exists: a registry with a metadata database uses"
                " this storage; use its online collection",
            )
        elif database == "prefer" and "filesystem-in-use" not in files:
            yield Finding(
                "filesystem-not-in-use",
                f"{self._config.path}: database.enabled is 'prefer', and"
                f" {LOCKFILES}filesystem-in-use is missing: nothing says that the storage and not"
                " the database knows what is live; start the registry once, or set"
                " database.enabled to false",
            )

    def _writing(
        self, answers: list[tuple[Address, Answer]]
    ) -> tuple[list[Finding], list[Finding], list[Finding]]:
        """Findings that somebody can write, that may be so, and that are only told."""
        kinds = {answer.kind for _, answer in answers}
        usable = not self._registries.unusable
        told: list[Finding] = []
        if self._options.registry_stopped and usable and kinds <= {AnswerKind.REFUSES}:
            told.append(_stopped(answers, drains=self._registries.drains))
        elif (
            self._config.readonly and usable and kinds <= {AnswerKind.REFUSES, AnswerKind.READ_ONLY}
        ):
            told.append(_readonly(self._config.path, answers))
        known, unknown = ([], []) if told else self._doubts(answers)
        if self._options.assume_readonly:
            known, doubts = _assumed(known, unknown)
            return known, [], [*doubts, *told]
        return known, unknown, told

    def _doubts(self, answers: list[tuple[Address, Answer]]) -> tuple[list[Finding], list[Finding]]:
        known: list[Finding] = []
        unknown: list[Finding] = []
        for address, answer in answers:
            finding = _doubt(address, answer, stopped=self._options.registry_stopped)
            if finding is not None:
                (unknown if finding.code.startswith("probe-") else known).append(finding)
        unknown += [Finding("probe-bad-address", why) for why in self._registries.unusable]
        if not self._config.readonly and not self._options.registry_stopped:
            known.append(_writable_config(self._config.path))
        return known, unknown


def _assumed(known: list[Finding], unknown: list[Finding]) -> tuple[list[Finding], list[Finding]]:
    """What --assume-readonly does not lift, and what it is told with."""
    writable = [finding for finding in known if finding.code == "registry-writable"]
    doubts = [finding for finding in known if finding.code != "registry-writable"] + unknown
    codes = ", ".join(dict.fromkeys(finding.code for finding in doubts))
    if codes:
        message = f"taken as read-only on the operator's word, in spite of {codes}"
    elif writable:
        message = "does not help where a registry is known to take writes"
    else:
        message = "was given, and not needed"
    return writable, [Finding("assume-readonly", f"--assume-readonly: {message}"), *doubts]


def _stopped(answers: list[tuple[Address, Answer]], *, drains: bool) -> Finding:
    names = ", ".join(address.name for address, _ in answers)
    # That its process has ended cannot be seen from here; the operator says so.
    drained = f"; {DRAINS}" if drains else ""
    if not names:
        said = f"the registry is said to be stopped; no address is known to ask{drained}"
        return Finding("nothing-to-probe", said)
    said = f"the registry is said to be stopped, and {names} refuses the connection{drained}"
    return Finding("stopped-confirmed", said)


def _readonly(path: str, answers: list[tuple[Address, Answer]]) -> Finding:
    says = f"{path} says read-only"
    if not answers:
        return Finding("nothing-to-probe", f"{says}, and names no address to ask")
    if all(answer.kind is AnswerKind.REFUSES for _, answer in answers):
        # What only the file says is allowed, and confirmed by nobody.
        names = ", ".join(address.name for address, _ in answers)
        return Finding(
            "nobody-answered",
            f"{says}, and nobody answers at {names}; a registry in another container or on another"
            " host, or one that was started before the config was changed, is not seen: name it"
            " with --registry-url, or stop it and say --registry-stopped",
        )
    told = ", ".join(f"{address.name} {answer.kind.value}" for address, answer in answers)
    return Finding("readonly-confirmed", f"{says}, and {told}")


def _writable_config(path: str) -> Finding:
    return Finding(
        "writable-config",
        f"{path}: storage.maintenance.readonly.enabled is not true: set it and restart the"
        " registry, or stop the registry and pass --registry-stopped",
    )


def _doubt(address: Address, answer: Answer, *, stopped: bool) -> Finding | None:
    """Why an address' answer does not do; None where it does."""
    detail = answer.detail or answer.kind.value
    said = f"{address.name}{':' if detail.startswith('its ') else ''} {detail}"
    if answer.kind is AnswerKind.WRITABLE:
        return Finding(
            "registry-writable",
            f"{said}: it takes writes; make it read-only and restart it, or stop it",
        )
    if stopped and answer.answered:
        return Finding(
            "registry-answers",
            f"the registry is said to be stopped, but {said}: stop what listens there",
        )
    if answer.kind is AnswerKind.UNAUTHORIZED:
        remedy = answer.remedy or "give credentials for it with --registry-auth-file"
        return Finding(
            "probe-unauthorized", f"{said}: whether it takes writes stays unknown; {remedy}"
        )
    if answer.kind is AnswerKind.SILENT:
        remedy = answer.remedy or "make it reachable from here, or stop it"
        return Finding(
            "probe-no-answer",
            f"{address.name} does not answer: {answer.detail}; whether it takes writes stays"
            f" unknown: {remedy}",
        )
    if answer.kind is AnswerKind.ODD:
        remedy = answer.remedy or "give the registry's own address with --registry-url"
        return Finding(
            "probe-odd-answer",
            f"{said} to OPTIONS, as no registry does that is well: whether it takes writes stays"
            f" unknown; {remedy}",
        )
    return None
