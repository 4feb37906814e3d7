"""The guard of a run that sets aside what it deletes, while a registry may be writing.

Nothing is lost by that: what a push needs after all is brought back. So a registry that is known
to take writes, or of which nobody knows, refuses such a run no more. Whatever says that this
storage is not to be collected at all still does.
"""

from __future__ import annotations

from collections.abc import Callable

from registry_gc.guard import Finding, Verdict

_ABOUT_WRITING = frozenset({"writable-config", "registry-writable", "registry-answers"})


def while_writable(check: Callable[[], Verdict]) -> Callable[[], Verdict]:
    """A check that lets through what *check* refuses because somebody may be writing."""

    def relaxed() -> Verdict:
        verdict = check()
        others = [
            finding
            for finding in verdict.findings
            if finding.code not in _ABOUT_WRITING and not finding.code.startswith("probe-")
        ]
        if verdict.verdict == "allowed" or len(others) == len(verdict.findings):
            return verdict
        codes = ", ".join(
            dict.fromkeys(finding.code for finding in verdict.findings if finding not in others)
        )
        told = Finding(
            "allow-writable", f"--allow-writable: goes on with a quarantine in spite of {codes}"
        )
        refused = any(finding.code in _NOT_AT_ALL for finding in others)
        return Verdict("refused" if refused else "allowed", (told, *verdict.findings))

    return relaxed


# What the guard says of storage that is not to be collected, whoever writes there.
_NOT_AT_ALL = frozenset(
    {"pull-through-cache", "scheduler-state", "database-in-use", "filesystem-not-in-use"}
)
