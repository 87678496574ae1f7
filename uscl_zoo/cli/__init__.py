"""`uscl`: the zoo on the command line, a module a heading of its help.

Defining the commands imports click and no more; what a command works with is imported when it runs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import click

from ..errors import UsclError
from ..names import escape_unprintable
from . import adapt, check, pretrain, use, weights


class _Zoo(click.CommandCollection):
    """The commands of all headings, each listed under its own."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading in self.sources:
            assert isinstance(heading, click.Group)
            rows = [
                (name, command.get_short_help_str(100))
                for name, command in heading.commands.items()
            ]
            with formatter.section(heading.help or ""):
                formatter.write_dl(rows)


@click.group(
    cls=_Zoo,
    sources=[module.commands for module in (use, adapt, check, pretrain, weights)],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="uscl-zoo")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Backbones pretrained on ultrasound video, and the way they are made."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: an error a user can mend is one line and exit status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    escape_unprintable(sys.stdout, sys.stderr)
    usual, warnings.formatwarning = warnings.formatwarning, _of_warning
    try:
        # --debug is taken anywhere, since it is added after something has gone wrong
        status = cli.main(
            [word for word in given if word != "--debug"], "uscl", standalone_mode=False
        )
        # of a command that ended itself, as `audit --fail` does
        if isinstance(status, int) and status:
            sys.exit(status)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if debug:
            raise
        click.echo(_of_grammar(error), err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("uscl: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # `uscl list | head`: the reader has enough
        sys.stderr.close()
        sys.exit(0)
    except ModuleNotFoundError as error:
        if debug or (error.name or "").startswith("uscl_zoo"):
            raise
        # the commands of training alone need more than comes with uscl-zoo or says so itself
        missing = (error.name or "").partition(".")[0]
        click.echo(f"uscl: needs {missing}: pip install 'uscl-zoo[training]'", err=True)
        sys.exit(2)
    except (UsclError, OSError) as error:
        if debug:
            raise
        click.echo(f"uscl: {_in_words(error)}", err=True)
        sys.exit(getattr(error, "exit_code", 2))
    finally:
        warnings.formatwarning = usual


def _of_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning as a line, without the line of code that it came from."""
    return f"uscl: {' '.join(str(message).splitlines())}\n"


def _of_grammar(error: click.ClickException) -> str:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message()
    message = error.format_message().rstrip(".")
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "uscl"
    return f"uscl: {message}; see `{path} --help`"


def _in_words(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, UsclError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split("\n"))
