"""The `blemish` command: thin verbs, each calling one public function. Nothing heavy is imported up here."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import blemish
from blemish.config import LOAD_KEYS, PredictOptions, merge_options
from blemish.errors import BlemishError, OutputError

if TYPE_CHECKING:
    from blemish.run.predict import RunSummary

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


class Kind(StrEnum):
    """What `blemish list` can list."""

    methods = "methods"
    backbones = "backbones"
    datasets = "datasets"
    checkpoints = "checkpoints"


MethodOption = Annotated[
    str | None, typer.Option("--method", help="Method; default: the checkpoint's, or anomaly_clip.")
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
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps. [auto]")]
PrecisionOption = Annotated[str | None, typer.Option("--precision", help="auto, fp32, bf16 or fp16. [auto]")]
ImageSizeOption = Annotated[
    int | None,
    typer.Option("--image-size", help="Side of the network input in pixels; default: the checkpoint's."),
]
BatchSizeOption = Annotated[int | None, typer.Option("--batch-size", help="Images per network pass. [8]")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads; default: one per core.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of all random numbers. [0]")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A method's own option, or preset=NAME; repeatable."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.toml", help="The same keys in a file; the command line wins."),
]
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


@app.command()
def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT", help="Files, folders, globs, a .txt of paths, or - for standard input."
        ),
    ],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder for the results. [blemish-out]")
    ] = None,
    method: MethodOption = None,
    backbone: BackboneOption = None,
    checkpoint: CheckpointOption = None,
    save: Annotated[
        str | None, typer.Option("--save", help="Pictures to write, of overlay,mask,map; or none. [overlay]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in OUT.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in OUT.")] = False,
    image_size: ImageSizeOption = None,
    tile: Annotated[
        int | None, typer.Option("--tile", help="Cut larger images into tiles of this side in pixels.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option("--overlap", help="Share of a tile common with the next. [0.25]")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class-name", help="What the images show, for methods that use it.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="Image score that counts as anomalous; default: the checkpoint's."),
    ] = None,
    pixel_threshold: Annotated[
        float | None, typer.Option("--pixel-threshold", help="The same for map values.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first so many images.")] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = None,
    threads: ThreadsOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    json_lines: JsonOption = False,
) -> int:
    """Score images and write tables, heat maps and a gallery."""
    given = {key: value for key, value in locals().items() if key in PredictOptions.__dataclass_fields__}
    _set_up_messages(quiet, verbose)
    with _errors(verbose):
        options, own = merge_options(config, given, settings or [])
        return _predict(
            inputs, options, own, resume=resume, overwrite=overwrite, quiet=quiet, stream=json_lines
        )


def _predict(
    inputs: Sequence[str],
    options: PredictOptions,
    own: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    stream: bool,
) -> int:
    import torch

    from blemish.data.images import find_images
    from blemish.run.predict import check_output, predict_folder

    out = Path(options.out)
    check_output(out, resume=resume, overwrite=overwrite)
    torch.manual_seed(options.seed)
    refs = find_images(inputs)[: options.limit]
    detector = blemish.load(**{key: getattr(options, key) for key in LOAD_KEYS}, **own)
    try:
        with _stop_on_kill(), _progress(quiet) as show:
            summary = predict_folder(
                detector,
                refs,
                out,
                save=options.kinds,
                batch_size=options.batch_size,
                resume=resume,
                overwrite=overwrite,
                about={"seed": options.seed, "limit": options.limit},
                on_record=_record_line if stream else None,
                on_progress=show,
            )
    except KeyboardInterrupt:
        _say(f"interrupted; what is done is in {out}, the same command with --resume goes on")
        return EXIT_INTERRUPTED
    if not quiet:
        _summarise(summary)
    return summary.exit_code


@contextlib.contextmanager
def _stop_on_kill() -> Iterator[None]:
    """Make `kill` end a run as Ctrl-C does: what is being written is finished, then nothing more."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _record_line(record: Mapping[str, Any]) -> None:
    try:
        print(json.dumps(record), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write to standard output: {(error.strerror or str(error)).lower()}"
        ) from error


def _summarise(summary: RunSummary) -> None:
    parts = [f"{summary.done} of {summary.total} images done"]
    if summary.skipped:
        parts.append(f"{summary.skipped} of them earlier")
    if summary.anomalous is not None:
        parts.append(f"{summary.anomalous} anomalous")
    if summary.failed:
        parts.append(f"{summary.failed} failed")
    _say(f"{', '.join(parts)}; {summary.seconds:.1f} s")
    _say(f"gallery: {summary.gallery}")


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int, str | None], None]]:
    """A function (done, total, error) that shows progress on a terminal, and errors anywhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total, error: _say(f"failed: {_one_line(error)}") if error else None
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
                bar.console.print(
                    f"failed: {_one_line(error)}", markup=False, highlight=False, soft_wrap=True
                )

        yield show


@app.command("list")
def list_names(
    kind: Annotated[Kind | None, typer.Argument(help="Which; default: all.")] = None,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """List what there is; with --verbose also each method's options."""
    with _errors(verbose):
        from blemish import catalogue

        found = {k.value: getattr(catalogue, k.value)() for k in ([kind] if kind else Kind)}
        if as_json:
            typer.echo(json.dumps(found, indent=2))
            return EXIT_DONE
        for title, rows in found.items():
            if kind is None:
                typer.echo(f"{title}:" if rows else f"{title}: none yet")
            for row in rows:
                _list_row(row, "  " if kind is None else "", verbose)
    return EXIT_DONE


def _list_row(row: Mapping[str, Any], indent: str, verbose: bool) -> None:
    typer.echo(f"{indent}{row['name']:<24}{row['about']}".rstrip())
    for option in row.get("options", []) if verbose else []:
        typer.echo(f"{indent}    {option['name']} = {option['default']!r}  {option['help']}")


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A checkpoint (ours or the authors') or CLIP weights.")],
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """Say what a file holds."""
    with _errors(verbose):
        from blemish.catalogue import flat
        from blemish.checkpoint import describe

        found = describe(file)
        if as_json:
            typer.echo(json.dumps(found, indent=2, default=str))
        else:
            rows = list(flat(found))
            width = max(len(key) for key, _ in rows) + 2
            for key, value in rows:
                typer.echo(f"{key:<{width}}{value}")
        return EXIT_NOTHING_DONE if found["kind"] == "unknown" else EXIT_DONE


@app.command()
def doctor(verbose: VerboseOption = False, as_json: JsonOption = False) -> int:
    """Examine this machine and the installation; exit status 1 if something is broken."""
    with _errors(verbose):
        from blemish.doctor import examine

        checks = examine()
        if as_json:
            typer.echo(json.dumps([vars(check) for check in checks], indent=2))
        else:
            for check in checks:
                typer.echo(f"{'ok ' if check.ok else 'BAD'} {check.name:<28}{check.value}")
        return EXIT_DONE if all(check.ok for check in checks) else EXIT_SOME_FAILED


def _one_line(text: str) -> str:
    """Text with what is not printable escaped: a file's name may hold line breaks and terminal commands."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _set_up_messages(quiet: bool, verbose: bool) -> None:
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s: %(message)s", force=True)
    if not verbose:
        warnings.simplefilter("ignore")
        # It remarks on damaged files by itself, and the image is reported as failed all the same.
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class _Failed(Exception):
    """An error that has been shown; carries the exit status."""


@contextlib.contextmanager
def _errors(verbose: bool) -> Iterator[None]:
    """Show errors in one or two lines, with the traceback when `verbose`."""
    try:
        yield
    except BlemishError as error:
        _fail(f"error: {error}", verbose)
    except BrokenPipeError:
        # The reader of our output has gone; nothing may be flushed to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise _Failed from None
    except Exception as error:
        first = (str(error) or "no message").splitlines()[0]
        _fail(
            f"internal error: {type(error).__name__}: {first}\nrun it again with --verbose for the traceback",
            verbose,
        )


def _fail(text: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    _say(text)
    raise _Failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the program's own) and return the exit status."""
    try:
        return app(args=argv, prog_name="blemish", standalone_mode=False) or EXIT_DONE
    except _Failed:
        return EXIT_NOTHING_DONE
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        # Usage errors of typer's parser; its exception classes have moved between packages.
        if not hasattr(error, "format_message"):
            raise
        _say(_usage_message(error))
        return EXIT_NOTHING_DONE


def _usage_message(error: Any) -> str:
    text = str(error.format_message()).strip()
    context = getattr(error, "ctx", None)
    if "\n" in text or context is None:
        return text
    return f"error: {text.rstrip('.')}. Try '{context.command_path} --help'."
