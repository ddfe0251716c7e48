"""`blemish list`, `blemish info` and `blemish doctor`: what there is."""

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blemish.cli.shared import (
    EXIT_DONE,
    EXIT_NOTHING_DONE,
    EXIT_SOME_FAILED,
    JsonOption,
    QuietOption,
    ThreadsOption,
    VerboseOption,
    app,
    one_line,
    progress,
    say,
    set_up_messages,
    shown_errors,
    stop_on_kill,
)
from blemish.files import printable_name

if TYPE_CHECKING:
    from blemish.data.layouts import Dataset

WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
MODEL_ENDINGS = (".onnx", ".xml")


class Kind(StrEnum):
    """What `blemish list` can list."""

    methods = "methods"
    backbones = "backbones"
    datasets = "datasets"
    checkpoints = "checkpoints"


@app.command("list")
def list_names(
    kind: Annotated[Kind | None, typer.Argument(help="Which; default: all.")] = None,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """List what there is; with --verbose also each method's options."""
    with shown_errors(verbose):
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
    file: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A checkpoint (ours or the authors'), CLIP weights, an exported model, or a dataset's folder.",
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="What the folder is, in place of what it is recognised as."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Side at which masks must not be empty. [518]")
    ] = None,
    prepare: Annotated[
        Path | None,
        typer.Option("--prepare", metavar="OUT", help="Write the dataset to OUT in MVTec layout instead."),
    ] = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """Say what a file or a dataset's folder holds; exit status 1 if something in a dataset or a model is off."""
    set_up_messages(quiet, verbose)
    with shown_errors(verbose):
        if dataset is not None or prepare is not None or _may_be_dataset(file):
            from blemish.data.layouts import open_dataset

            found = open_dataset(file, dataset, "all")
            if prepare is not None:
                return _prepare(found, prepare, quiet)
            return _check(found, image_size, threads, quiet, as_json)
        return _describe(file, as_json)


def _may_be_dataset(path: Path) -> bool:
    """Whether a path is a folder without weights directly in it, or a list of pictures."""
    if path.is_dir():
        try:
            return not any(p.suffix.lower() in WEIGHT_ENDINGS for p in path.iterdir())
        except OSError:  # whoever opens it will name the cause
            return True
    return path.is_file() and path.suffix.lower() in (".json", ".jsonl", ".csv")


def _describe(file: Path, as_json: bool) -> int:
    from blemish.catalogue import flat

    found = _found(file)
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
    else:
        rows = list(flat(found))
        width = max(len(key) for key, _ in rows) + 2
        for key, value in rows:
            typer.echo(f"{key:<{width}}{value}")
    if found["kind"] == "unknown":
        return EXIT_NOTHING_DONE
    return EXIT_SOME_FAILED if "missing" in found else EXIT_DONE


def _found(file: Path) -> dict[str, Any]:
    """What a file is; exported models are looked at without torch."""
    if file.suffix.lower() in MODEL_ENDINGS:
        from blemish.deploy.describe import describe_model

        return describe_model(file)
    from blemish.describe import describe

    return describe(file)


def _prepare(dataset: "Dataset", out: Path, quiet: bool) -> int:
    from blemish.data.prepare import prepare

    failed = 0
    with stop_on_kill(), progress(quiet) as show:

        def count(done: int, total: int, error: str | None) -> None:
            nonlocal failed
            failed += error is not None
            show(done, total, error)

        prepare(dataset, out, on_progress=count)
    if not quiet:
        left_out = f"; {failed} left out" if failed else ""
        say(
            f"{len(dataset.samples) - failed} pictures of {dataset.name} are in {printable_name(out)}{left_out}"
        )
    return EXIT_SOME_FAILED if failed else EXIT_DONE


def _check(
    dataset: "Dataset", image_size: int | None, threads: int | None, quiet: bool, as_json: bool
) -> int:
    from blemish.catalogue import dataset_lines
    from blemish.data.check import check_dataset

    with progress(quiet) as show:
        report = check_dataset(dataset, image_size, threads=threads, on_progress=show)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        for line in dataset_lines(report):
            typer.echo(one_line(line))
    return EXIT_DONE if report.ok else EXIT_SOME_FAILED


@app.command()
def doctor(verbose: VerboseOption = False, as_json: JsonOption = False) -> int:
    """Examine this machine and the installation; exit status 1 if something is broken."""
    with shown_errors(verbose):
        from blemish.doctor import examine

        checks = examine()
        if as_json:
            typer.echo(json.dumps([vars(check) for check in checks], indent=2))
        else:
            for check in checks:
                typer.echo(f"{'ok ' if check.ok else 'BAD'} {check.name:<28}{check.value}")
        return EXIT_DONE if all(check.ok for check in checks) else EXIT_SOME_FAILED
