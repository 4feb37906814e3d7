"""The guard of a run that sets aside what it deletes, while a registry may be writing.

Nothing is lost by that: what a push needs after all is brought back. So a registry that is known
to take writes, or of which nobody knows, refuses such a run no more. Whatever says that this
storage is not to be collected at all still does.
"""

from __future__ import annotations

from collections.abc import Callable

from registry_gc.guard import REASSURING, Finding, Verdict

_LIFTED = frozenset({"writable-config", "registry-writable", "registry-answers"})
_TOLD = REASSURING | {"assume-readonly"}


def while_writable(check: Callable[[], Verdict]) -> Callable[[], Verdict]:
    """A check that lets through what *check* refuses only because somebody may be writing."""

    def relaxed() -> Verdict:
        verdict = check()
        if verdict.allowed:
            return verdict
        codes = [finding.code for finding in verdict.findings]
        lifted = [code for code in codes if code in _LIFTED or code.startswith("probe-")]
        told = Finding(
            "allow-writable",
            "--allow-writable: a quarantine goes on in spite of "
            + ", ".join(dict.fromkeys(lifted)),
        )
        # A code that nobody thought of here is none of these, and refuses.
        if not lifted or set(codes) - set(lifted) - _TOLD:
            return verdict
        return Verdict("allowed", (told, *verdict.findings))

    return relaxed
