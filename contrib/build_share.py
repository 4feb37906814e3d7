"""Makes man pages and shell completions from the commands themselves: ``make readme``.

They lie in ``contrib/share`` as they are installed: the wheel puts them under ``share/``. A test
holds that they are current.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
SHARE = HERE / "contrib" / "share"
sys.path[:0] = [str(HERE / "gc"), str(HERE / "drivers")]

import click  # noqa: E402  # ours come from this checkout, whatever is installed
from click.shell_completion import get_completion_class  # noqa: E402
from click_man.man import ManPage  # noqa: E402

from registry_gc import __version__  # noqa: E402
from registry_gc.cli.main import registry_garbage_collect, registry_gc  # noqa: E402

COMMANDS = {"registry-garbage-collect": registry_garbage_collect, "registry-gc": registry_gc}
COMPLETIONS = {
    "bash": "bash-completion/completions/{}",
    "zsh": "zsh/site-functions/_{}",
    "fish": "fish/vendor_completions.d/{}.fish",
}


_JOINED = {
    # What is completed is then what follows the "=".
    "zsh": [
        ("    for type key descr in", "    compset -P '--*='\n\n    for type key descr in"),
        ("compadd -U -V unsorted", 'compadd -U -i "$IPREFIX" -V unsorted'),
    ],
    "bash": [
        (
            "    local response\n",
            """\
    local response word cword=$COMP_CWORD prefix=
    local -a words=()

    # Where "=" parts words, --option=value comes as three.
    for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
        if [[ ${#words[@]} -gt 0 && ${words[-1]} == --* ]] &&
            [[ $word == '=' || ${words[-1]} == --*= ]]; then
            words[-1]+=$word
            ((cword--))
        else
            words+=("$word")
        fi
    done
    # Where it does not, a value comes back with its option.
    if [[ ${COMP_WORDS[COMP_CWORD]} == --*=* ]]; then
        prefix=${COMP_WORDS[COMP_CWORD]%%=*}=
    fi
""",
        ),
        (
            'COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD',
            'COMP_WORDS="${words[*]}" COMP_CWORD=$cword',
        ),
        ("COMPREPLY+=($value)", "COMPREPLY+=($prefix$value)"),
    ],
    "fish": [
        (
            "    for completion in",
            "    set -l option (string match -r -- '^--[^=]+=' (commandline -t));\n\n"
            "    for completion in",
        ),
        (
            "            __fish_complete_directories $metadata[2];",
            "            for found in (__fish_complete_directories $metadata[2]);\n"
            '                echo "$option$found";\n'
            "            end;",
        ),
        (
            "            __fish_complete_path $metadata[2];",
            "            for found in (__fish_complete_path $metadata[2]);\n"
            '                echo "$option$found";\n'
            "            end;",
        ),
        ("            echo $metadata[2];", '            echo "$option"$metadata[2];'),
    ],
}
"""What of click's sources is replaced, and by what, see :func:`with_joined_values`."""


def subcommands(context: click.Context) -> dict[str, click.Command]:
    """The commands below that of *context*, by name and in order."""
    group = context.command
    if not isinstance(group, click.Group):
        return {}
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: one for name, one in found.items() if one is not None and not one.hidden}


def pages(context: click.Context) -> Iterator[tuple[str, str]]:
    """File name and text of the page of a command, and of those below it."""
    command = context.command
    page = ManPage(context.command_path)
    page.version = __version__
    page.date = ""
    text = cleandoc(command.help or "")
    page.short_help = text.partition("\n\n")[0].replace("\n", " ").rstrip(".")
    page.description = text
    page.synopsis = " ".join(command.collect_usage_pieces(context))
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    records = [one.get_help_record(context) for one in options]
    page.options = [record for record in records if record is not None]
    below = subcommands(context)
    page.commands = [(name, one.get_short_help_str(1000)) for name, one in below.items()]
    name = context.command_path.replace(" ", "-")
    # The library's title has the words of the command, and a title is one word.
    text = str(page).replace(f'"{context.command_path.upper()}"', f'"{name.upper()}"', 1)
    yield f"{name}.1", f"{text}\n{epilog(command)}"
    for name, one in below.items():
        yield from pages(click.Context(one, info_name=name, parent=context))


def epilog(command: click.Command) -> str:
    """What follows the options in ``--help``: the exit codes as they stand, and paragraphs."""
    found, notes = [], []
    for part in cleandoc(command.epilog or "").split("\n\n"):
        plain = part.replace("\\", "\\e").replace("-", "\\-")
        title, _, lines = plain.removeprefix("\b\n").partition("\n")
        if part.startswith("\b\n") and lines:
            title = {"Exit codes:": "EXIT STATUS"}.get(title, title)
            found.append(f".SH {title}\n.nf\n{lines}\n.fi\n")
        elif part:
            notes.append(plain.removeprefix("\b\n"))
    if notes:
        found.append(".SH NOTES\n" + "\n.PP\n".join(notes) + "\n")
    return "".join(found)


def with_joined_values(shell: str, source: str) -> str:
    """*source* of click's, so that it completes what follows the ``=`` in ``--option=value`` too.

    click gives the values alone; zsh puts them in the place of all, fish finds that none fits, and
    bash hands click three words.
    """
    for before, after in _JOINED[shell]:
        if source.count(before) != 1:
            raise ValueError(f"click's completion for {shell} is another: {before!r}")
        source = source.replace(before, after)
    return source


def files() -> dict[str, str]:
    """Every file below ``share``, by its path there."""
    made = {}
    for name, command in COMMANDS.items():
        context = click.Context(command, info_name=name)
        made |= {f"man/man1/{page}": text for page, text in pages(context)}
        variable = "_" + name.replace("-", "_").upper() + "_COMPLETE"
        for shell, path in COMPLETIONS.items():
            kind = get_completion_class(shell)
            assert kind is not None
            # As Completion.source(), which also looks for a bash on this machine.
            whole = kind(command, {}, name, variable)
            source = whole.source_template % whole.source_vars()
            made[path.format(name)] = with_joined_values(shell, source) + "\n"
    return made


def main() -> None:
    """Make all of them anew."""
    shutil.rmtree(SHARE, ignore_errors=True)
    for path, text in files().items():
        file = SHARE / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
