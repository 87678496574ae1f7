"""`uscl`: the zoo on the command line, a module a heading of its help.

Defining the commands imports click and no more; what a command works with is imported when it runs.
"""

from __future__ import annotations

import difflib
import signal
import sys
import warnings
from collections.abc import Sequence

import click

from ..errors import UsclError
from ..names import escape_unprintable
from ..signals import interruptible
from . import adapt, check, pretrain, use, weights
from .output import coloured, painted, say


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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Of a name that is none, with those that it may be."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2)
            hint = f" (Did you mean {' or '.join(near)}?)" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


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
    came: list[int] = []
    try:
        # --debug is taken anywhere, since it is added after something has gone wrong
        with interruptible() as came:
            status = cli.main(
                [word for word in given if word != "--debug"],
                "uscl",
                standalone_mode=False,
                color=coloured(),
            )
        # of a command that ended itself, as `audit --fail` does
        if isinstance(status, int) and status:
            sys.exit(status)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if debug:
            raise
        _say_error(_of_grammar(error))
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        number = came[0] if came else signal.SIGINT
        by = f", by {signal.Signals(number).name}" if came else ""
        _say_error(f"uscl: interrupted{by}")
        sys.exit(128 + number)
    except BrokenPipeError:
        # `uscl list | head`: the reader has enough
        sys.stderr.close()
        sys.exit(0)
    except ModuleNotFoundError as error:
        if debug or (error.name or "").startswith("uscl_zoo"):
            raise
        # the commands of training alone need more than comes with uscl-zoo or says so itself
        missing = (error.name or "").partition(".")[0]
        _say_error(f"uscl: needs {missing}: pip install 'uscl-zoo[training]'")
        sys.exit(2)
    except MemoryError:
        if debug:
            raise
        _say_error("uscl: not enough memory; --debug shows where")
        sys.exit(2)
    except (UsclError, OSError) as error:
        if debug:
            raise
        _say_error(f"uscl: {_in_words(error)}")
        sys.exit(getattr(error, "exit_code", 2))
    finally:
        warnings.formatwarning = usual


def _say_error(message: str) -> None:
    """Say what went wrong; of a line, who says it in red."""
    who, colon, rest = message.partition("uscl: ")
    say(f"{painted('uscl:', 'wrong')} {rest}" if colon and not who else message, err=True)


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
