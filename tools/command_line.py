"""The command line: commands, common options, and help after mistakes."""

from __future__ import annotations

import argparse
import re
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tools.terminal import output
from tools.terminal.progress import Activity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PACKAGE: Final = "kekkai-backup"
_SHELLS: Final = ("bash", "zsh")
_NEAR: Final = 0.6
_NO_COMMANDS: Final = re.compile(r"_commands\(\) \{\n  local _commands=\(\s*\)")
_POSITIONAL: Final = re.compile(r'^(  "\*?:.*[^:\\]):"$', re.MULTILINE)
_UNKNOWN: Final = re.compile(r"unrecognized arguments: (.*)")
_CHOICE: Final = re.compile(r"invalid choice: '(.*?)'")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Leaves examples as they are, except that a terminal gets no line that is wider than it."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return output.fitted(super()._fill_text(text, width, indent))


class Parser(argparse.ArgumentParser):
    """A parser whose errors suggest the option or word that was probably meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Show the usage, the mistake, and a suggestion; exit code 2."""
        output.tell(self.format_usage())
        output.tell(f"{self.prog}: error: {message}{self._suggestion(message)}\n")
        sys.exit(2)

    def _suggestion(self, message: str) -> str:
        options = [name for action in self._actions for name in action.option_strings]
        if found := _UNKNOWN.search(message):
            for word in found[1].split():
                if word.startswith("-") and (near := nearest(word.partition("=")[0], options)):
                    return f"; did you mean {near}?"
        if found := _CHOICE.search(message):
            choices = [str(choice) for action in self._actions for choice in action.choices or ()]
            if near := nearest(found[1], choices):
                return f"; did you mean {near}?"
        return ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most similar to a mistyped one, or None."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, list(known), n=1, cutoff=_NEAR)), None)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for output."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="write JSON and no text, even on a terminal")
    group.add_argument("--quiet", action="store_true", help="no progress and no text except errors and warnings")
    group.add_argument("--no-color", action="store_true", help="no colours (NO_COLOR does the same)")


def add_program_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the program as a whole."""
    group = parser.add_argument_group("this program")
    group.add_argument("--version", action="store_true", help="show the version")
    group.add_argument("--completion", choices=_SHELLS, help="print a script for tab completion in that shell")


def configure(arguments: argparse.Namespace) -> None:
    """Configure the output by the options."""
    output.configure_output(json=arguments.json, quiet=arguments.quiet, colour=not arguments.no_color)


def run(arguments: argparse.Namespace, doing: str) -> int:
    """Run the parsed command; return the exit code.

    Arguments:
        doing: what the command does, for a person who waits.
    """
    configure(arguments)
    with Activity(doing):
        code: int = arguments.run(arguments)
    return code


def show_version() -> int:
    """Print the version."""
    from importlib.metadata import version

    sys.stdout.write(f"{PACKAGE} {version(PACKAGE)}\n")
    return 0


def show_completion(parser: argparse.ArgumentParser, shell: str) -> int:
    """Print a script that completes commands and options in a shell."""
    import shtab

    script = shtab.complete(parser, shell=shell)
    sys.stdout.write(_mended_for_zsh(script) if shell == "zsh" else script)
    return 0


def _mended_for_zsh(script: str) -> str:
    """Correct the script that shtab 1.13 prints for zsh.

    It offers commands for programs that have none, and an argument without a known form keeps zsh from inserting the
    only matching option.
    """
    if _NO_COMMANDS.search(script):
        script = script.replace("_defaults_added=0", "_defaults_added=1", 1)
    script = script.replace(':DIR:"', ':DIR:_files -/"').replace(':FILE:"', ':FILE:_files"')
    return _POSITIONAL.sub(r'\1:_files"', script)


class Commands:
    """Commands that are imported when they are named, so that a command loads only its own module.

    Arguments:
        prog: the program.
        table: the commands by name: the module in `tools.commands` with `add_arguments` and `run`, the help text, and
            the text for a person who waits.
        default: the command if none is named.
    """

    def __init__(self, prog: str, table: Mapping[str, tuple[str, str, str]], *, default: str) -> None:
        self._prog = prog
        self._table = table
        self._default = default

    def choose(self, argv: Sequence[str]) -> tuple[str | None, list[str]]:
        """The command named by the arguments, and the arguments without it; None if there is no such command."""
        for number, word in enumerate(argv):
            if not word.startswith("-"):
                return (word if word in self._table else None), [*argv[:number], *argv[number + 1 :]]
            if word not in ("--json", "--quiet", "--no-color"):
                break
        return self._default, list(argv)

    def unknown(self, word: str) -> int:
        """Report an unknown command; exit code 2."""
        near = nearest(word, self._table)
        meant = f"did you mean '{near}'?" if near else f"the commands are {', '.join(self._table)}"
        output.tell(f"usage: {self._prog} [COMMAND] [OPTION ...]\n")
        output.tell(f"{self._prog}: error: there is no command {word!r}; {meant}\n")
        return 2

    def parser(self, name: str) -> Parser:
        """The parser of one command."""
        module, meaning, _ = self._table[name]
        parser = Parser(prog=f"{self._prog} {name}", description=f"{meaning[:1].upper()}{meaning[1:]}.")
        self._fill(parser, name, module)
        return parser

    def doing(self, name: str) -> str:
        """The text for a person who waits for a command."""
        return self._table[name][2]

    def all(self, **options: Any) -> Parser:
        """One parser of all commands, for tab completion."""
        parser = Parser(prog=self._prog, **options)
        commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)
        for name, (module, meaning, _) in self._table.items():
            self._fill(commands.add_parser(name, help=meaning, description=meaning), name, module)
        return parser

    def lines(self) -> str:
        """The commands with their descriptions, for the help."""
        longest = max(map(len, self._table))
        default = {self._default: " (the default)"}
        return "\n".join(
            f"  {name:<{longest}}  {meaning}{default.get(name, '')}" for name, (_, meaning, _) in self._table.items()
        )

    def _fill(self, parser: argparse.ArgumentParser, name: str, module: str) -> None:
        command = import_module(f"tools.commands.{module}")
        command.add_arguments(parser, name)
        add_output_options(parser)
        parser.set_defaults(run=command.run, command=name)
