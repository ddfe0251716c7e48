"""`blemish predict`."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import blemish
from blemish.cli.shared import (
    EXIT_INTERRUPTED,
    AddressOption,
    BackboneOption,
    BatchSizeOption,
    CheckpointOption,
    ClassNameOption,
    ClassNamesOption,
    ConfigOption,
    DeviceOption,
    EngineOption,
    ImageSizeOption,
    JsonOption,
    MethodOption,
    NormalOption,
    OverlapOption,
    OverwriteOption,
    PixelThresholdOption,
    PrecisionOption,
    QuietOption,
    ResumeOption,
    RuntimeOption,
    ScoreRuleOption,
    SeedOption,
    SetOption,
    ShotsOption,
    ThreadsOption,
    ThresholdOption,
    TileOption,
    VerboseOption,
    WorkersOption,
    app,
    chosen_options,
    progress,
    say,
    set_up_messages,
    shown_errors,
    stop_on_kill,
    words_for_class,
)
from blemish.config import LOAD_KEYS, PredictOptions
from blemish.errors import BadOption, OutputError

if TYPE_CHECKING:
    from blemish.run.predict import RunSummary


@app.command()
def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Files, folders, globs, a .txt of paths, or - for standard input; with --engine ray URLs and "
            "parquet tables too.",
        ),
    ],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder for the results. [blemish-out]")
    ] = None,
    method: MethodOption = None,
    backbone: BackboneOption = None,
    checkpoint: CheckpointOption = None,
    runtime: RuntimeOption = None,
    save: Annotated[
        str | None,
        typer.Option("--save", help="What to write, of overlay,mask,map,attention; or none. [overlay]"),
    ] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    image_size: ImageSizeOption = None,
    tile: TileOption = None,
    overlap: OverlapOption = None,
    score_rule: ScoreRuleOption = None,
    class_name: ClassNameOption = None,
    class_names: ClassNamesOption = None,
    normal: NormalOption = None,
    shots: ShotsOption = None,
    save_memory: Annotated[
        str | None,
        typer.Option(
            "--save-memory", metavar="FILE", help="Keep what is remembered of --normal, for another --normal."
        ),
    ] = None,
    threshold: ThresholdOption = None,
    pixel_threshold: PixelThresholdOption = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first so many images.")] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile", help="Compile the network first: minutes before the first image, then faster."
        ),
    ] = None,
    threads: ThreadsOption = None,
    seed: SeedOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    json_lines: JsonOption = False,
) -> int:
    """Score images and write tables, heat maps and a gallery."""
    arguments = dict(locals())
    set_up_messages(quiet, verbose)
    with shown_errors(verbose):
        options, own = chosen_options(PredictOptions, "blemish predict", arguments)
        again = {"resume": resume, "overwrite": overwrite}
        return _predict(inputs, options, own, again, quiet=quiet, stream=json_lines)


def _predict(
    inputs: Sequence[str],
    options: PredictOptions,
    own: Mapping[str, Any],
    again: Mapping[str, bool],
    *,
    quiet: bool,
    stream: bool,
) -> int:
    """Run it and summarise. again: `resume` and `overwrite`. stream: records on standard output."""
    here = options.engine == "local"
    run = _here(inputs, options, own, again) if here else _at_scale(inputs, options, own)
    try:
        with stop_on_kill(), progress(quiet) as show:
            summary = run(
                save=options.kinds,
                batch_size=options.batch_size,
                **again,
                on_record=_record_line if stream else None,
                on_progress=show,
            )
    except KeyboardInterrupt:
        say(f"interrupted; what is done is in {options.out}, the same command with --resume goes on")
        return EXIT_INTERRUPTED
    if not quiet:
        _summarise(summary)
        say(f"gallery: {summary.gallery}" if here else f"results: {options.out.rstrip('/')}/results")
    return summary.exit_code


def _here(
    inputs: Sequence[str], options: PredictOptions, own: Mapping[str, Any], again: Mapping[str, bool]
) -> "Callable[..., RunSummary]":
    """The run in this process, with the images found and the detector loaded."""
    from blemish.data.images import find_images
    from blemish.run.predict import check_output, predict_folder

    out = Path(options.out)
    check_output(out, **again)
    if options.runtime is None:
        import torch

        torch.manual_seed(options.seed)
    refs = find_images(inputs)[: options.limit]
    loading = _loading(options, own)
    if options.save_memory is not None and options.runtime is not None:
        raise BadOption(
            "--save-memory keeps what is remembered of --normal; an exported file remembers nothing anew"
        )
    detector = blemish.load(**loading)
    if options.save_memory is not None:
        detector.save_memory(Path(options.save_memory).expanduser())
    about = {"seed": options.seed, "limit": options.limit}
    return partial(predict_folder, detector, refs, out, about=about)


def _at_scale(
    inputs: Sequence[str], options: PredictOptions, own: Mapping[str, Any]
) -> "Callable[..., RunSummary]":
    """The run on the workers of --engine ray."""
    from blemish.run.scale import Crew, predict_at_scale

    if options.save_memory is not None:
        raise BadOption(
            "--save-memory is not for --engine ray; make the memory without it, then pass it as --normal"
        )
    crew = Crew(options.workers, options.address)
    loading = _loading(options, own)
    return partial(
        predict_at_scale, inputs, options.out, loading, crew, seed=options.seed, limit=options.limit
    )


def _loading(options: PredictOptions, own: Mapping[str, Any]) -> dict[str, Any]:
    """What goes to `blemish.load`."""
    words = words_for_class(options.class_name, options.class_names)
    loading = {key: getattr(options, key) for key in LOAD_KEYS} | {"class_name": words}
    return {**loading, "normal_seed": options.seed, **own}


def _record_line(record: Mapping[str, Any]) -> None:
    try:
        print(json.dumps(record), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write to standard output: {(error.strerror or str(error)).lower()}"
        ) from error


def _summarise(summary: "RunSummary") -> None:
    parts = [f"{summary.done} of {summary.total} images done"]
    if summary.skipped:
        parts.append(f"{summary.skipped} of them earlier")
    if summary.anomalous is not None:
        parts.append(f"{summary.anomalous} anomalous")
    if summary.failed:
        parts.append(f"{summary.failed} failed")
    say(f"{', '.join(parts)}; {summary.seconds:.1f} s")
