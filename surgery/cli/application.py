"""The commands put together, and what their outcomes exit with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from surgery import __version__
from surgery.cli import adapting, catalogue, promises, reviewing, text_commands
from surgery.cli.commands import GroupedCommands
from surgery.cli.exit_codes import FINE, MISUSED, STOPPED
from surgery.cli.screen import say, show
from surgery.language.diagnostics import SurgeryError

HELP = """Adapt PyTorch models with a declarative spec.

\b
MODEL  a transformers directory, a hub id, a GGUF or .pt2 file,
       or package.module:factory, a function that returns the model
SPEC   a .peft file, the name of a recipe such as unipelt,
       or the spec itself, quoted
"""

ENDING = """\b
Exit codes:
  0    success
  1    an error, a failed guarantee, or `fmt --check` would change files
  2    `diff --exit-code` found changes
  64   wrong usage
  130  stopped by Ctrl-C
  141  nobody reads the output any more, as behind `| head`

`surgery COMMAND --help` shows arguments, options and examples.
"""

application = typer.Typer(
    name="surgery",
    cls=GroupedCommands,
    help=HELP,
    epilog=ENDING,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (reviewing, promises, adapting, text_commands, catalogue):
    group.register(application)


def _version(asked: bool) -> None:
    if asked:
        show(f"surgery {__version__}")
        raise typer.Exit


@application.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str] | None) -> int:
    """Run one command; the exit code.

    Raises:
        SurgeryError, OSError: as `ending.py` expects them.

    """
    given = None if arguments is None else list(arguments)
    try:
        code: Any = application(given, prog_name="surgery", standalone_mode=False)
    except (SurgeryError, OSError):
        raise
    except typer.Abort:
        say("stopped")
        return STOPPED
    except Exception as misuse:
        # Typer carries its own click or uses the installed one; their errors share this method.
        explain: Any = getattr(misuse, "format_message", None)
        if explain is None:
            raise
        context: Any = getattr(misuse, "ctx", None)
        if context is not None:
            say(context.get_usage())
        say(f"error: {explain()}")
        if context is not None:
            say(f"  = help: `{context.command_path} --help` shows how it is called")
        return MISUSED
    return code if isinstance(code, int) else FINE
