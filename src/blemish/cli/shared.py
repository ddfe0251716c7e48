"""What every verb shares: the program, its common options, messages, progress, errors and exit statuses."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

import blemish
from blemish.config import merge_options, read_class_names
from blemish.errors import BadOption, BlemishError, UnknownName

T = TypeVar("T")
# New objects between two runs of the garbage collector. Python's 700 take 0.1 s of the start for what imports make.
OBJECTS_BETWEEN_COLLECTIONS = 50_000
EXIT_DONE, EXIT_SOME_FAILED, EXIT_NOTHING_DONE, EXIT_INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="blemish",
    help="Zero-shot visual anomaly detection and segmentation with CLIP.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


MethodOption = Annotated[
    str | None, typer.Option("--method", help="Method; default: the checkpoint's, or clip_ac with tiny.")
]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        "--backbone", help="Name, file, folder or hub repository; default: the checkpoint's, or tiny."
    ),
]
CheckpointOption = Annotated[
    str | None, typer.Option("--checkpoint", help="Learned parts: our .safetensors or the authors' .pth.")
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(
        "--runtime", metavar="FILE", help="A model from `blemish export`, .onnx or .xml; needs no torch."
    ),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps. [auto]")]
PrecisionOption = Annotated[str | None, typer.Option("--precision", help="auto, fp32, bf16 or fp16. [auto]")]
ImageSizeOption = Annotated[
    int | None,
    typer.Option("--image-size", help="Side of the network input in pixels; default: the checkpoint's."),
]
BatchSizeOption = Annotated[int | None, typer.Option("--batch-size", help="Images per network pass. [8]")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads; default: one per core.")]
TileOption = Annotated[
    str | None,
    typer.Option(
        "--tile",
        metavar="N|square|none",
        help="Cut larger images into tiles of N pixels, or into squares of their shorter side; default: the "
        "checkpoint's, or none.",
    ),
]
OverlapOption = Annotated[
    float | None, typer.Option("--overlap", help="Share of a tile common with the next. [0.25]")
]
ScoreRuleOption = Annotated[
    str | None,
    typer.Option(
        "--score-rule",
        help="Image score: native (the method's own), or of the map: max, topk:K; default: the checkpoint's.",
    ),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of all random numbers. [0]")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A method's own option, or preset=NAME; repeatable."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.toml", help="The same keys in a file; the command line wins."),
]
NormalOption = Annotated[
    str | None,
    typer.Option(
        "--normal",
        metavar="DIR",
        help="1 to 64 normal images for few-shot methods: a folder or a file, or a memory made of them.",
    ),
]
ShotsOption = Annotated[
    int | None, typer.Option("--shots", help="Only so many of the normal images, drawn by --seed.")
]
ClassNamesOption = Annotated[
    str | None,
    typer.Option("--class-names", metavar="FILE.toml", help='Words for classes: pcb1 = "circuit board".'),
]
EngineOption = Annotated[
    str | None, typer.Option("--engine", help="local, or ray for many processes or machines. [local]")
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", help="Of --engine ray, each with a model; default: one a GPU, or 4 cores."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="HOST:PORT", help="A running Ray cluster, or auto; default: start one here."
    ),
]
SplitOption = Annotated[str | None, typer.Option("--split", help="test, train or all. [test]")]
ClassNameOption = Annotated[
    str | None, typer.Option("--class-name", help="What the images show, for methods that use it.")
]
ThresholdOption = Annotated[
    float | None,
    typer.Option("--threshold", help="Image score that counts as anomalous; default: the checkpoint's."),
]
PixelThresholdOption = Annotated[
    float | None, typer.Option("--pixel-threshold", help="The same for map values.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in OUT.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in OUT.")]
OverwriteFileOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing FILE.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on standard error.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="More messages, and tracebacks of errors.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"blemish {blemish.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


@contextlib.contextmanager
def stop_on_kill() -> Iterator[None]:
    """Make `kill` end a run as Ctrl-C does: what is being written is finished, then nothing more."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Callable[[int, int, str | None], None]]:
    """A function (done, total, error) that shows progress on a terminal, and errors anywhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total, error: say(f"failed: {one_line(error)}") if error else None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=None, rate="")

        def show(done: int, total: int, error: str | None) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:.1f}/s" if speed else "")
            if error:
                bar.console.print(f"failed: {one_line(error)}", markup=False, highlight=False, soft_wrap=True)

        yield show


def one_line(text: str) -> str:
    """Text with what is not printable escaped: a file's name may hold line breaks and terminal commands."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def set_up_messages(quiet: bool, verbose: bool) -> None:
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s: %(message)s", force=True)
    if not verbose:
        warnings.simplefilter("ignore")
        # They remark on damaged files by themselves, and the image is reported as failed all the same.
        for reader in ("tifffile", "PIL"):
            logging.getLogger(reader).setLevel(logging.CRITICAL)


class Failed(Exception):
    """An error that has been shown; carries the exit status."""


@contextlib.contextmanager
def shown_errors(verbose: bool) -> Iterator[None]:
    """Show errors in one or two lines, with the traceback when `verbose`."""
    try:
        yield
    except BlemishError as error:
        fail(f"error: {error}", verbose)
    except BrokenPipeError:
        # The reader of our output has gone; nothing may be flushed to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Failed from None
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            fail(
                "error: torch is not installed, and all but --runtime FILE needs it: pip install torch",
                verbose,
            )
        first = (str(error) or "no message").splitlines()[0]
        fail(
            f"internal error: {type(error).__name__}: {first}\nrun it again with --verbose for the traceback",
            verbose,
        )


def chosen_options(kind: type[T], owner: str, arguments: Mapping[str, Any]) -> tuple[T, dict[str, Any]]:
    """What `merge_options` makes of all arguments of a verb; those that are no options of `kind` are left out."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = {key: value for key, value in arguments.items() if key in names}
    return merge_options(kind, owner, arguments["config"], given, arguments.get("settings") or [])


def words_for_class(class_name: str | None, class_names: str | None) -> str | None:
    """What the images show: the words of the file --class-names for --class-name, where there is a file.

    Raises BadOption or UnknownName.
    """
    if class_names is None:
        return class_name
    words = read_class_names(Path(class_names))
    if class_name is None:
        raise BadOption("--class-names has words for --class-name; pass that too, or leave both out")
    if class_name not in words:
        raise UnknownName(f"class of {class_names}", class_name, words)
    return words[class_name]


def fail(text: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    say(text)
    raise Failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the program's own) and return the exit status."""
    if argv is None:  # a program of its own
        gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    try:
        return app(args=argv, prog_name="blemish", standalone_mode=False) or EXIT_DONE
    except Failed:
        return EXIT_NOTHING_DONE
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        # Usage errors of typer's parser; its exception classes have moved between packages.
        if not hasattr(error, "format_message"):
            raise
        say(usage_message(error))
        return EXIT_NOTHING_DONE


def usage_message(error: Any) -> str:
    text = str(error.format_message()).strip()
    context = getattr(error, "ctx", None)
    if "\n" in text or context is None:
        return text
    return f"error: {text.rstrip('.')}. Try '{context.command_path} --help'."
