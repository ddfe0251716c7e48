"""`blemish calibrate`."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from blemish.cli.shared import (
    EXIT_INTERRUPTED,
    BackboneOption,
    BatchSizeOption,
    CheckpointOption,
    ClassNameOption,
    ConfigOption,
    DeviceOption,
    ImageSizeOption,
    JsonOption,
    MethodOption,
    OverlapOption,
    OverwriteFileOption,
    PrecisionOption,
    QuietOption,
    ScoreRuleOption,
    SeedOption,
    SetOption,
    SplitOption,
    ThreadsOption,
    TileOption,
    VerboseOption,
    app,
    chosen_options,
    one_line,
    progress,
    say,
    set_up_messages,
    shown_errors,
    stop_on_kill,
)

if TYPE_CHECKING:
    from blemish.calibrate import Rate
    from blemish.run.calibrate import Calibration


@app.command()
def calibrate(
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="ROOT", help="Folder of normal images, or of a labelled dataset."),
    ] = None,
    from_db: Annotated[
        str | None,
        typer.Option(
            "--from-db",
            metavar="FILE",
            help="In its place: the history of `blemish serve`, a file or postgresql:// URL, with verdicts.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Its name or layout, where the folder does not tell."),
    ] = None,
    split: SplitOption = None,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            "--false-alarm-rate",
            help="Share of normal images that may be called anomalous; uses the normal images alone. [best F1; "
            "0.01 when all images are normal]",
        ),
    ] = None,
    pixel_false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            "--pixel-false-alarm-rate",
            help="Share of normal pixels above the pixel threshold; default: the same share of images as above "
            "may have any.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Checkpoint to write. [the one given, when it is ours]"
        ),
    ] = None,
    overwrite: OverwriteFileOption = False,
    method: MethodOption = None,
    backbone: BackboneOption = None,
    checkpoint: CheckpointOption = None,
    image_size: ImageSizeOption = None,
    tile: TileOption = None,
    overlap: OverlapOption = None,
    score_rule: ScoreRuleOption = None,
    class_name: ClassNameOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = None,
    threads: ThreadsOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """Set a checkpoint's thresholds from normal, labelled or judged images, and say what to expect of them."""
    arguments = dict(locals())
    set_up_messages(quiet, verbose)
    with shown_errors(verbose):
        from blemish.run.calibrate import CalibrateOptions, calibrate_checkpoint

        options, own = chosen_options(CalibrateOptions, "blemish calibrate", arguments)
        try:
            with stop_on_kill(), progress(quiet) as show:
                if options.from_db is not None:
                    from blemish.deploy.history_calibrate import calibrate_from_history

                    found = calibrate_from_history(options, own, overwrite=overwrite)
                else:
                    found = calibrate_checkpoint(options, own, overwrite=overwrite, on_progress=show)
        except KeyboardInterrupt:
            say("interrupted; no checkpoint was written")
            return EXIT_INTERRUPTED
        typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(_report(found)))
        if not quiet:
            say(f"thresholds written to {one_line(str(found.checkpoint))}")
        return found.exit_code


def _report(found: "Calibration") -> Iterator[str]:
    """What a person wants to know, line by line."""
    thresholds = found.thresholds
    yield (
        f"{thresholds.how} on {one_line(found.dataset)}: {thresholds.normal} normal and "
        f"{thresholds.anomalous} anomalous images, {thresholds.masks} with masks"
    )
    for name, value, f1 in (
        ("image", thresholds.image, thresholds.image_f1),
        ("pixel", thresholds.pixel, thresholds.pixel_f1),
    ):
        if value is not None:
            yield f"{name} threshold  {value:.6g}" + ("" if f1 is None else f"  (F1 {f1:.3f})")
    yield f"{'expected':<42}{'rate':>8}  {'95 % interval':<18}here"
    yield from _row("normal images called anomalous", thresholds.false_alarms)
    yield from _row("anomalous images called anomalous", thresholds.detections)
    yield from _row("normal images with a marked region", thresholds.region_alarms)
    yield from _row("anomalies touched by a marked region", thresholds.region_detections)
    for name, share in (
        ("normal pixels marked", thresholds.pixel_false_alarms),
        ("anomalous pixels marked", thresholds.pixel_detections),
    ):
        if share is not None:
            yield f"{name:<42}{share:>8.2%}"
    if thresholds.how == "best F1":
        yield "note: the thresholds were chosen on these very images, so the rates are somewhat too good"
    for note in (*found.notes, *thresholds.notes):
        yield f"note: {one_line(note)}"
    if found.failed:
        yield f"{len(found.failed)} of {found.total} images failed and were left out"


def _row(name: str, rate: "Rate | None") -> Iterator[str]:
    if rate is not None:
        between = f"{rate.low:.1%} to {rate.high:.1%}"
        yield f"{name:<42}{rate.value:>8.1%}  {between:<18}{rate.count} of {rate.total}"
