"""``RGC_<NAME>``: each option of each command can be set by a variable, and one that is misspelt is
told.
"""

from __future__ import annotations

import click

_PREFIX = "RGC_"


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
