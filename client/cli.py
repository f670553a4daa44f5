"""The root of the command line: composes the command groups of all stages and turns errors into exit codes.

Everything heavy is imported inside a command's body, so that `affserve --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from affserve.benchmarks.cli import bench_app  # only here: the root alone knows every stage
from affserve.client.commands.data import crop, import_
from affserve.client.commands.doctor import doctor
from affserve.client.commands.infer import CommandWithColumns, annotate, infer
from affserve.client.commands.live import live
from affserve.client.commands.results import convert, summary
from affserve.client.commands.status import status
from affserve.client.commands.view import view
from affserve.export.engine_sets import NO_TELEMETRY
from affserve.export.export_cli import export
from affserve.export.serve_cli import serve
from affserve.export.server.events import write_to_stderr
from affserve.train.cli import data_app, evaluate, train_app
from affserve.train.errors import AffserveError, MissingExtraError, UsageError, remedy
from affserve.train.signals import INTERRUPTED, was_interrupted

EXTRA_OF = {
    **dict.fromkeys(("torch", "torchvision", "open_clip", "timm", "safetensors"), "train"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export"),
    **dict.fromkeys(("starlette", "uvicorn", "websockets", "python_multipart"), "page"),
    "ray": "ray",
}

LEAST_OPEN_FILES = 64  # a server, its shared memory and one video have some 25
OPEN_FILES = 10_240  # more than any command needs, and the most that macOS allows


class Sentences(TyperGroup):
    """A group of commands whose help shows the first sentence of each, whole."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl([(name, first_sentence(command.help)) for name, command in commands if command])


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a help text."""
    paragraph = " ".join((text or "").split("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".") + "."


app = typer.Typer(
    name="affserve",
    cls=Sentences,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: half the start-up time, and the same text in a pipe
    pretty_exceptions_enable=False,
)
data_app.command()(crop)
data_app.command("import")(import_)  # with the client's faces, which training knows nothing of
app.add_typer(data_app, name="data", cls=Sentences)
app.add_typer(train_app, name="train", cls=Sentences)
app.command()(export)
app.command()(serve)
app.command()(status)
app.command()(evaluate)
app.command(cls=CommandWithColumns)(infer)
app.command()(annotate)
app.command()(convert)
app.command()(summary)
app.command()(live)
app.command()(view)
app.command()(doctor)
app.add_typer(bench_app, name="bench", cls=Sentences)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"affserve {version('affserve')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Face video in, affect out: train, export, serve and call CLIP + sequence models on Triton."""


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("build/demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of reusing what is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Go the whole way: draw a corpus, train, export, serve, infer, and compare with the truth.

    Takes some minutes on two cores. Stages that were done before are reused.
    """
    from json import dumps

    from affserve.client.commands.demo import default_config, print_progress, run_demo
    from affserve.client.commands.demo_report import next_steps, table

    comparison = run_demo(folder, default_config(), fresh=fresh, log=print_progress)
    if json:
        return typer.echo(dumps(comparison.as_dict()))
    steps = "\n".join(next_steps(comparison, _program()))
    return typer.echo(f"\n{table(comparison)}\n\nTry next (Ctrl-C ends the second and the third):\n{steps}")


def _program() -> str:
    """Return how affserve was called, for commands to print: by its path where the shell would not find it."""
    from shutil import which

    called = Path(sys.argv[0])
    if called.suffix == ".py":
        return f"{sys.executable} -m affserve.client"
    found = which(called.name)
    return called.name if found and Path(found).resolve() == called.resolve() else sys.argv[0]


def main() -> None:
    """Run the command line; an error that is the user's to act on is one line on stderr and exit code 1 or 2.

    Ctrl-C ends with 130, also where a command was started with SIGINT ignored, as a shell does in the background.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= NO_TELEMETRY | os.environ  # what is set already stays
    try:
        _run()
    finally:
        if was_interrupted():
            sys.exit(INTERRUPTED)


def _run() -> None:
    try:
        _allow_open_files()
        app()
    except AffserveError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        if (extra := EXTRA_OF.get(error.name or "")) is None:
            raise  # not a missing extra but a broken installation: the trace is what is needed
        _fail(MissingExtraError(str(error.name), extra))
    except OSError as error:
        if (what_to_do := remedy(error)) is None:
            raise
        _fail(AffserveError(f"{error}; {what_to_do}"))


def _allow_open_files() -> None:
    """Let this process open what the machine allows: at its own limit every library says something else, or aborts."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= most < LEAST_OPEN_FILES:  # -1 is no limit
        raise AffserveError(
            f"a process may have {most} files open here, and affserve needs {LEAST_OPEN_FILES}; "
            f"{remedy(OSError(errno.EMFILE, ''))}"
        )
    wanted = OPEN_FILES if most < 0 else min(OPEN_FILES, most)
    if 0 <= now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _fail(error: AffserveError) -> NoReturn:
    write_to_stderr(f"error: {error}")
    sys.exit(2 if isinstance(error, UsageError) else 1)
