"""`blemish export`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import blemish
from blemish.cli.shared import (
    BackboneOption,
    CheckpointOption,
    ClassNameOption,
    ConfigOption,
    ImageSizeOption,
    JsonOption,
    MethodOption,
    NormalOption,
    OverlapOption,
    OverwriteFileOption,
    PixelThresholdOption,
    QuietOption,
    SeedOption,
    SetOption,
    ShotsOption,
    ThreadsOption,
    ThresholdOption,
    TileOption,
    VerboseOption,
    app,
    chosen_options,
    say,
    set_up_messages,
    shown_errors,
)
from blemish.deploy.export_options import ExportOptions

if TYPE_CHECKING:
    from blemish.deploy.export import ExportReport


@app.command()
def export(
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE", help="Model to write: .onnx, or .xml for OpenVINO."),
    ] = None,
    method: MethodOption = None,
    backbone: BackboneOption = None,
    checkpoint: CheckpointOption = None,
    image_size: ImageSizeOption = None,
    class_name: ClassNameOption = None,
    normal: NormalOption = None,
    shots: ShotsOption = None,
    tile: TileOption = None,
    overlap: OverlapOption = None,
    threshold: ThresholdOption = None,
    pixel_threshold: PixelThresholdOption = None,
    int8: Annotated[
        bool | None, typer.Option("--int8", help="Eight-bit weights; activations too with --data.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="ROOT", help="Pictures to measure on and to compare on. [generated]"),
    ] = None,
    preprocess: Annotated[
        bool | None,
        typer.Option("--preprocess", help="Take pixels of any size; resizing is done inside the model."),
    ] = None,
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX operator set, 18 to 23. [18]")] = None,
    overwrite: OverwriteFileOption = False,
    threads: ThreadsOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """Write a detector as an ONNX or OpenVINO model, compared with the detector itself."""
    arguments = dict(locals())
    set_up_messages(quiet, verbose)
    with shown_errors(verbose):
        options, own = chosen_options(ExportOptions, "blemish export", arguments)
        from blemish.deploy.export import export as write

        detector = blemish.load(**options.loading, **own)
        report = write(
            detector,
            Path(str(options.out)).expanduser(),
            int8=options.int8,
            data=None if options.data is None else Path(options.data).expanduser(),
            preprocess=options.preprocess,
            opset=options.opset,
            overwrite=overwrite,
        )
        if as_json:
            typer.echo(json.dumps(report.to_dict(), indent=2))
        if not quiet:
            for line in _report(report):
                say(line)
        return 0


def _report(report: "ExportReport") -> Iterator[str]:
    """What a person wants to know, line by line."""
    written = ", ".join(map(str, report.files))
    yield f"{written}: {report.method}, {report.precision}, {report.bytes / 1e6:.1f} MB"
    yield (
        f"fp32 against the detector on {report.samples} of {report.source}: maps within "
        f"{report.map_difference:.1g}, scores within {report.score_difference:.1g}"
    )
    if report.preprocess_difference is not None:
        yield f"with resizing inside: maps and scores within {report.preprocess_difference:.1g}"
    found = report.quantised
    if found is None:
        yield f"{report.seconds:.3f} s an image"
        return
    yield f"size {found.bytes_fp32 / 1e6:.1f} -> {report.bytes / 1e6:.1f} MB"
    yield f"time {found.seconds_fp32:.3f} -> {report.seconds:.3f} s an image"
    yield (
        f"on {found.images} images: scores change by {found.score_change_mean:.2g} (at most "
        f"{found.score_change_max:.2g}), maps correlate by {found.map_correlation:.4f}"
    )
    if found.auroc is not None and found.auroc_fp32 is not None:
        yield f"image AUROC {found.auroc_fp32:.4f} -> {found.auroc:.4f}"
