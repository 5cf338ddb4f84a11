"""The `b2fs` command: runs the command line and turns what went wrong into one line and an exit code.

Rules
  An error that b2fs knows is one line on stderr and the exit code of `b2fs.errors.Exit`.
  Anything else is a bug: one line, code 1; its traceback only with ``--debug``. Neither shows a secret.
"""

from __future__ import annotations

import os
import sys
import traceback

import click

from b2fs.cli.main import Options, cli
from b2fs.errors import B2fsError, Exit
from b2fs.secret import redact

# What a shell reports for a program that a signal ended: 128 + SIGINT, 128 + SIGPIPE.
INTERRUPTED = 130
PIPE_CLOSED = 141


def main(args: list[str] | None = None) -> None:
    """Run `args` (default: those of the process) and exit."""
    sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    options = Options()
    try:
        # Not `cli.main`, which has an opinion of its own on broken pipes.
        with cli.make_context("b2fs", sys.argv[1:] if args is None else args, obj=options) as context:
            outcome = cli.invoke(context)
        sys.stdout.flush()
        return int(outcome or Exit.OK)
    except click.exceptions.Exit as finished:  # --help
        return finished.exit_code
    except B2fsError as error:
        say(str(error))
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at the end; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        if options.debug:
            print(redact(traceback.format_exc()), end="", file=sys.stderr)
        hint = "" if options.debug else " (b2fs --debug … shows where)"
        say(f"unexpected: {type(error).__name__}: {error}{hint}")
        return Exit.BUG


def say(message: str) -> None:
    """One line on stderr, whatever `message` holds."""
    print("b2fs:", redact(" ".join(message.split())), file=sys.stderr)


if __name__ == "__main__":
    main()
