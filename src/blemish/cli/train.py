"""`blemish train`."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blemish.cli.shared import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    BackboneOption,
    ClassNamesOption,
    ConfigOption,
    DeviceOption,
    ImageSizeOption,
    JsonOption,
    QuietOption,
    SetOption,
    SplitOption,
    ThreadsOption,
    VerboseOption,
    app,
    chosen_options,
    say,
    set_up_messages,
    shown_errors,
    stop_on_kill,
)

if TYPE_CHECKING:
    from blemish.run.train import TrainSummary

Show = Callable[[Mapping[str, Any]], None]


@app.command()
def train(
    method: Annotated[str | None, typer.Argument(metavar="METHOD", help="What to train.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="ROOT", help="Folder of the auxiliary dataset; repeatable."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", help="Its name or layout, where the folder does not tell; one per --data."),
    ] = None,
    split: SplitOption = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder of the run. [blemish-train]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in RUN.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in RUN.")] = False,
    backbone: BackboneOption = None,
    image_size: ImageSizeOption = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Default: the paper's.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", help="Images per step, over all processes; default: the paper's."),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Default: the paper's.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option("--schedule", help="Of the rate: constant, linear or cosine; default: the paper's."),
    ] = None,
    augmentation: Annotated[
        str | None,
        typer.Option("--augmentation", help="none, mosaic, vcp, vcp_mosaic or aa; default: the paper's."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            help="Keep features on disk: off, on, or how many augmented copies per image. [auto: on without "
            "augmentation]",
        ),
    ] = None,
    cache_dir: Annotated[str | None, typer.Option("--cache-dir", help="Where features are kept.")] = None,
    cache_storage: Annotated[
        str | None, typer.Option("--cache-storage", help="fp16, bf16 or int8. [fp16]")
    ] = None,
    map_size: Annotated[
        int | None,
        typer.Option("--map-size", help="Side at which maps meet masks; smaller is faster. [the image size]"),
    ] = None,
    validate_classes: Annotated[
        str | None,
        typer.Option(
            "--validate-classes", help="Classes a,b to hold out and report on; they choose nothing."
        ),
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class-name", help="In place of the dataset's class names.")
    ] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="Refuse data with anything odd.")] = None,
    class_names: ClassNamesOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only so many images, evenly spread over the data.")
    ] = None,
    threshold_images: Annotated[
        int | None,
        typer.Option("--threshold-images", help="Thresholds from so many images, evenly spread. [all]"),
    ] = None,
    init: Annotated[
        str | None, typer.Option("--init", help="A checkpoint of the method to begin with.")
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Write TensorBoard events too.")
    ] = None,
    device: DeviceOption = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="fp32, or autocast in bf16 or fp16. [auto: fp32]"),
    ] = None,
    threads: ThreadsOption = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Default: the paper's.")] = None,
    settings: SetOption = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """Learn a method's prompts and heads on an auxiliary dataset."""
    arguments = dict(locals())
    set_up_messages(quiet, verbose)
    with shown_errors(verbose):
        from blemish.run.recipe import TrainOptions
        from blemish.run.train import train as run

        if validate_classes is not None:
            arguments["validate_classes"] = [
                name.strip() for name in validate_classes.split(",") if name.strip()
            ]
        if cache is not None and cache.isdecimal():
            arguments["cache"] = int(cache)
        options, own = chosen_options(TrainOptions, "blemish train", arguments)
        try:
            with stop_on_kill(), _progress(quiet) as show:
                summary = run(options, own, resume=resume, overwrite=overwrite, show=show)
        except KeyboardInterrupt:
            say(f"interrupted; the state is in {options.out}, the same command with --resume goes on")
            return EXIT_INTERRUPTED
        if os.environ.get("RANK", "0") == "0":
            _summarise(summary, quiet, as_json)
    return EXIT_DONE


def _summarise(summary: "TrainSummary", quiet: bool, as_json: bool) -> None:
    thresholds = summary.thresholds
    if as_json:
        row = {
            "checkpoint": str(summary.checkpoint),
            "steps": summary.steps,
            "losses": summary.losses,
            "image_threshold": None if thresholds is None else thresholds.image,
            "pixel_threshold": None if thresholds is None else thresholds.pixel,
            "warnings": summary.warnings,
            "seconds": round(summary.seconds, 3),
        }
        typer.echo(json.dumps(row))
    if quiet:
        return
    if summary.losses:
        first, last = summary.losses[0], summary.losses[-1]
        say(f"{summary.steps} steps, loss {first:.4f} in the first epoch, {last:.4f} in the last")
        say(f"{summary.seconds:.1f} s")
    if thresholds is not None:
        shown = ["none" if t is None else f"{t:.4f}" for t in (thresholds.image, thresholds.pixel)]
        say(f"image threshold {shown[0]}, pixel threshold {shown[1]} (best F1 on the auxiliary data)")
    say(f"checkpoint: {summary.checkpoint}")
    say(f"use it: blemish predict IMAGES --checkpoint {summary.checkpoint}")


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Show | None]:
    """A function that shows lines of the log on a terminal; None where there is none."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("features", total=None, text="")

        def show(line: Mapping[str, Any]) -> None:
            if line["phase"] == "features":
                bar.update(task, completed=line["done"], total=line["total"], text="images encoded")
            elif line["phase"] == "training":
                name = f"epoch {line['epoch']}"
                bar.update(
                    task, description=name, completed=line["step"], total=line["steps"], text=_status(line)
                )
            else:
                rows = [f"{name} {_figures(values)}" for name, values in line["validation"].items()]
                bar.console.print(f"epoch {line['epoch']} held out: {'; '.join(rows)}", markup=False)

        yield show


def _status(line: Mapping[str, Any]) -> str:
    """Total, terms by kind, learned scalars, speed and time left, in one line."""
    from blemish.run.train_log import by_kind

    minutes, seconds = divmod(round(line["seconds_left"]), 60)
    parts = [f"loss {line['loss']:.3f}", *(f"{k} {v:.3f}" for k, v in by_kind(line["terms"]).items())]
    parts += [f"{k} {v:.3f}" for k, v in line["scalars"].items()]
    return " ".join([*parts, f"{line['images_per_second']:.1f} images/s", f"{minutes}:{seconds:02d} left"])


def _figures(values: Mapping[str, float | None]) -> str:
    return " ".join(
        f"{key} {'n/a' if value is None else format(value, '.3f')}" for key, value in values.items()
    )
