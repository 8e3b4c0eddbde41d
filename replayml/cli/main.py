"""The `replayml` command and its subcommands.

Exit codes, the same for every subcommand:

====  ==============================================================================================
code  meaning
====  ==============================================================================================
0     done
1     the command failed, or what was compared differs
2     wrong usage: an unknown option, a value that it cannot have, such as a port that is taken, a file or module that
      is not there, a missing confirmation
3     an extra is not installed
4     the file was refused: it is damaged, of another kind, or names what this program does not trust
====  ==============================================================================================

Invariants:
    * What only looks at a file imports nothing that the file names and runs nothing that is in it.
    * Each subcommand but ``demo`` prints one JSON object with ``--json``, and ``call`` always; there is no traceback
      for any file whatever.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from replayml.cli import convert, diff, explain, gc, inspect, tree, verify
from replayml.cli.report import ExitCode, give

__all__ = ["app", "main"]

CODES = "Exit codes: 0 done, 1 failed or differs, 2 wrong usage, 3 an extra is not installed, 4 the file was refused."

app = typer.Typer(
    name="replayml",
    help="Replayable PyTorch models: look at model files, compare, explain, convert and check them.",
    epilog=CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[
    Path, typer.Argument(exists=True, help="A model file: what save() or a checkpoint wrote, or a recipe.")
]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="A module of yours to import; the file may use its classes."),
]
Rename = Annotated[
    list[str] | None,
    typer.Option("--rename", metavar="OLD=NEW", help="A name in the file, of a class or a module, and that of today."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command(epilog=CODES)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the files it writes.")] = Path("replayml-demo"),
    epochs: Annotated[int, typer.Option(help="How often each model sees the data.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the shuffling.")] = 0,
) -> None:
    """Train, reload and vary a model on real handwritten digits."""
    demonstration = importlib.import_module("replayml.cli.demo")  # it alone needs Lightning, and an extra
    raise typer.Exit(demonstration.run(out, epochs=epochs, seed=seed))


@app.command("inspect", epilog=CODES)
def inspect_(file: File, as_json: AsJson = False) -> None:
    """Show what is in a file: structure, tape, names it needs, pickled values, versions, weights."""
    give(lambda: inspect.run(file), as_json=as_json)


@app.command("tree", epilog=CODES)
def tree_(file: File, imports: Imports = None, rename: Rename = None, as_json: AsJson = False) -> None:
    """Show the modules of a model, with their arguments and weights."""
    give(lambda: tree.run(file, imports or (), rename or ()), as_json=as_json)


@app.command("explain", epilog=CODES)
def explain_(
    file: File,
    tag: Annotated[str, typer.Argument(help="A path such as blocks[0].layer, '' for the model, or a selector.")],
    name: Annotated[str, typer.Argument(help="The name of the setting.")],
    imports: Imports = None,
    rename: Rename = None,
    as_json: AsJson = False,
) -> None:
    """Tell why a setting has its value: who set it, where, and what lost."""
    give(lambda: explain.run(file, tag, name, imports or (), rename or ()), as_json=as_json)


@app.command("diff", epilog=CODES)
def diff_(
    a: Annotated[Path, typer.Argument(exists=True, help="The first file.")],
    b: Annotated[Path, typer.Argument(exists=True, help="The second file.")],
    imports: Imports = None,
    rename: Rename = None,
    as_json: AsJson = False,
) -> None:
    """Tell what differs between two models, and the calls that turn the first into the second; 1 when they differ."""
    give(lambda: diff.run(a, b, imports or (), rename or ()), as_json=as_json)


@app.command("convert", epilog=CODES)
def convert_(
    source: Annotated[Path, typer.Argument(metavar="IN", exists=True, dir_okay=False, help="The old checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="What to write: NAME.ckpt, or a model file.")],
    i_trust_this_file: Annotated[
        bool, typer.Option("--i-trust-this-file", help="Read the pickle in IN, which may run anything.")
    ] = False,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="A module of yours that has another name now.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a file without pickles of an old checkpoint, of replayml or of Deeplay, in a process of its own."""
    give(
        lambda: convert.run(source, target, is_trusted=i_trust_this_file, rename=rename or ()),
        as_json=as_json,
    )


@app.command("verify", epilog=CODES)
def verify_(file: File, as_json: AsJson = False) -> None:
    """Check that a file is whole: every size and every digest."""
    give(lambda: verify.run(file), as_json=as_json)


@app.command("gc", epilog=CODES)
def gc_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="A folder with models.")],
    older_than: Annotated[float, typer.Option(min=0, help="The least age in seconds; a save may be going on.")] = 3600,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what saves that were cut short have left in a folder."""
    give(lambda: gc.run(folder, older_than=older_than, is_rehearsal=dry_run), as_json=as_json)


@app.command("serve", epilog=CODES)
def serve_(
    file: File,
    host: Annotated[str, typer.Option(help="Listen here; any but this machine's own takes a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file with the token of the callers.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="How many processes run the model.")] = 1,
    backend: Annotated[
        str, typer.Option(help="Where they run: process, on this machine, or ray, on a cluster.")
    ] = "process",
    name: Annotated[
        str | None, typer.Option(help="Its name, under which the gateway lists it: see REPLAYML_REDIS_URL.")
    ] = None,
    batch: Annotated[int, typer.Option(min=0, help="Run requests that came meanwhile together: rows at most.")] = 0,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="What an input looks like: 'float32[*,4]', * for rows.")
    ] = None,
    imports: Imports = None,
    rename: Rename = None,
    as_json: AsJson = False,
) -> None:
    """Answer requests with a model over HTTP until told to stop; the log goes to standard error."""
    serve = _serving("serve")
    options = {"host": host, "port": port, "token_file": token_file, "replicas": replicas, "batch": batch}
    names = {"backend": backend, "name": name, "inputs": inputs or (), "imports": imports or (), "rename": rename or ()}
    give(lambda: serve.run(file, **options, **names), as_json=as_json)


@app.command("call", epilog=CODES)
def call_(
    url: Annotated[str, typer.Argument(help="Where the service is, such as http://127.0.0.1:8000.")],
    text: Annotated[str, typer.Option("--json", help='The arguments: {"args": [...]}; - for standard input.')],
    token_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file with the token that it wants.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds until the call fails.")] = 60.0,
) -> None:
    """Call a service once, and print one JSON object: its answer, or an error; of a stream, one for each item."""
    call = _serving("call")
    give(lambda: call.run(url, text, token_file=token_file, timeout=timeout), as_json=True)


@app.command("status", epilog=CODES)
def status_(
    url: Annotated[
        str | None, typer.Argument(help="Where a service is; by default those that the gateway lists are told.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file with the token that it wants.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for an answer.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Tell what a service is and whether it takes requests; 1 when it does not."""
    status = _serving("status")
    give(lambda: status.run(url, token_file=token_file, timeout=timeout), as_json=as_json)


def _serving(command: str) -> ModuleType:
    """Return the module of a command that needs an extra, which the others do not."""
    try:
        importlib.import_module("replayml.serving")  # which tells what is missing, and how to install it
        return importlib.import_module(f"replayml.cli.{command}")
    except ModuleNotFoundError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(ExitCode.EXTRA) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The words after ``replayml``; by default those of the process.

    Returns:
        The exit code.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="replayml")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
