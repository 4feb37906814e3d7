"""``RGC_<NAME>``: each option of each command can be set by a variable, and one that is misspelt is
told.
"""

from __future__ import annotations

import os
import re

import click

_PREFIX = "RGC_"
# Kubernetes sets these where a service is called so.
_OF_A_SERVICE = re.compile(r"RGC_(?:SERVICE_(?:HOST|PORT).*|PORT(?:_\d+_.*)?)")


def variable_of(option: click.Parameter) -> str | None:
    """The variable that sets *option*: None where it has no long name, or is ``--version``."""
    if not isinstance(option, click.Option) or not option.expose_value:
        return None
    long = next((name for name in option.opts if name.startswith("--")), None)
    return None if long is None else _PREFIX + long[2:].replace("-", "_").upper()


def name_variables(command: click.Command) -> None:
    """Have every option of *command* read its variable, and its help say so."""
    said = None
    for option in command.params:
        option.envvar = variable_of(option)
        if isinstance(option, click.Argument) and option.name == "config" and not option.required:
            # Who has set it for apply, which has an option of that name, means all of them.
            option.envvar = f"{_PREFIX}CONFIG"
            continue
        if said is None and option.envvar:
            said = f"{option.opts[-1]} as {option.envvar}"
    if said is None or "RGC_<NAME>" in (command.epilog or ""):
        return
    unnamed = [one.opts[0] for one in command.params if _has_none(one)]
    but = f" but {' and '.join(unnamed)}" if unnamed else ""
    sentence = f"Every option{but} can be set as RGC_<NAME>: {said}.\n"
    command.epilog = "\n".join(filter(None, (command.epilog, sentence)))


def _has_none(option: click.Parameter) -> bool:
    return isinstance(option, click.Option) and option.expose_value and option.envvar is None


def tell_unknown(context: click.Context) -> None:
    """Say on stderr which variables set no option of any command: whoever set one meant one.

    The context's object tells all commands.
    """
    given = {name for name in os.environ if name.startswith(_PREFIX)}
    given -= {str(option.envvar) for option in context.command.params}
    given = {name for name in given if not _OF_A_SERVICE.fullmatch(name)}
    if not given or context.obj is None:
        return
    # Most runs have none left, and need not import the other commands.
    known = {str(one.envvar) for command in context.obj() for one in command.params if one.envvar}
    as_json = context.params.get("log_format") == "json"
    for name in sorted(given - known):
        _tell(name, known, as_json=as_json)


def _tell(name: str, known: set[str], *, as_json: bool) -> None:
    from difflib import get_close_matches

    from registry_gc.progress import say
    from registry_gc.wording.shown import shown

    meant = get_close_matches(name, known, 1, 0.8)
    hint = f"; did you mean {meant[0]}?" if meant else ""
    say("note", f"{shown(name)} sets no option, and is ignored{hint}", as_json=as_json)
