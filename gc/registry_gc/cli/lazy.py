"""A group of commands that imports a command when it is named, and not for the group's help.

Eight commands with their options take longer to import than anything else of ours that ``--help``
needs; a script that calls one of them pays for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from registry_gc.cli.flags import untraced


class LazyGroup(click.Group):
    """A group with commands that are not imported yet.

    :param later: by each such command's name, the module that has it under this name, and the
        first sentence of its help, which the group's own help shows.
    """

    def __init__(
        self, *args: Any, later: Mapping[str, tuple[str, str]] | None = None, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self.later = dict(later or {})

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Read the arguments, or answer ``--help`` and ``--version``."""
        with untraced():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that is named."""
        with untraced():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return sorted({*self.commands, *self.later})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, which is imported now."""
        if cmd_name not in self.commands and cmd_name in self.later:
            module, _ = self.later[cmd_name]
            command = getattr(import_module(module), cmd_name)
            assert isinstance(command, click.Command)
            self.add_command(command, cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands, without importing one."""
        shown = {
            name: click.Command(name, short_help=text) for name, (_, text) in self.later.items()
        }
        click.Group(self.name, {**shown, **self.commands}).format_commands(ctx, formatter)
