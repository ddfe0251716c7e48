"""`blemish evaluate`."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blemish.cli.shared import (
    EXIT_INTERRUPTED,
    AddressOption,
    BackboneOption,
    BatchSizeOption,
    ClassNamesOption,
    ConfigOption,
    DeviceOption,
    EngineOption,
    ImageSizeOption,
    JsonOption,
    OverlapOption,
    OverwriteOption,
    PrecisionOption,
    QuietOption,
    ResumeOption,
    SeedOption,
    SetOption,
    ShotsOption,
    SplitOption,
    ThreadsOption,
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
)
from blemish.config import read_class_names
from blemish.errors import BadOption

if TYPE_CHECKING:
    from blemish.run.class_pass import Spread
    from blemish.run.evaluate_options import EvaluateCommand
    from blemish.run.results import Evaluation


@app.command()
def evaluate(
    data: Annotated[
        str | None, typer.Option("--data", metavar="ROOT", help="Folder of the labelled dataset.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Its name or layout; default: recognised.")
    ] = None,
    split: SplitOption = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder for the results. [blemish-eval]")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", help="Methods, separated by commas; default: the checkpoints', or clip_ac with tiny."
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", metavar="[LABEL=]FILE", help="Learned parts; repeatable."),
    ] = None,
    backbone: BackboneOption = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            "--resolution", help="Side of maps and masks in pixels, or native; default: the network's."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", help="Of AUPRO: exact, or anomalyclip as in the papers. [exact]"),
    ] = None,
    fpr_limit: Annotated[
        float | None, typer.Option("--fpr-limit", help="False positive rate that AUPRO ends at. [0.3]")
    ] = None,
    connectivity: Annotated[
        int | None, typer.Option("--connectivity", help="Neighbours that join mask pixels, 8 or 4. [8]")
    ] = None,
    strict_iou: Annotated[
        bool | None,
        typer.Option("--strict-iou", help="IoU of the pixels above the threshold, as VCP-CLIP's code."),
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="Metrics: exact, or streaming in bounded memory. [exact]")
    ] = None,
    score_rule: Annotated[
        str | None,
        typer.Option("--score-rule", help="Image score: native, or of the map: max, topk:K. [native]"),
    ] = None,
    no_pixel: Annotated[
        bool | None, typer.Option("--no-pixel", help="Image-level metrics only; masks are not read.")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class-name", help="What the images show; default: the dataset's class.")
    ] = None,
    class_names: ClassNamesOption = None,
    normal: Annotated[
        str | None,
        typer.Option(
            "--normal",
            metavar="DIR",
            help="Normal images for few-shot methods: a folder for all classes or one with a folder a class, "
            "a memory, or ROOT for its training split.",
        ),
    ] = None,
    shots: ShotsOption = None,
    classes: Annotated[str | None, typer.Option("--classes", help="Only these, separated by commas.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="At most so many images of each class, evenly spread.")
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(
            "--save", help="What to write besides the numbers, of maps,embeddings,memory; or none. [none]"
        ),
    ] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    image_size: ImageSizeOption = None,
    tile: TileOption = None,
    overlap: OverlapOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = None,
    threads: ThreadsOption = None,
    seed: SeedOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """Measure methods on a labelled dataset: per class and mean."""
    arguments = dict(locals())
    set_up_messages(quiet, verbose)
    with shown_errors(verbose):
        from blemish.run.evaluate_options import EvaluateCommand

        if resolution is not None and resolution.isdecimal():
            arguments["resolution"] = int(resolution)
        options, own = chosen_options(EvaluateCommand, "blemish evaluate", arguments)
        return _evaluate(options, own, resume=resume, overwrite=overwrite, quiet=quiet, as_json=as_json)


def _evaluate(
    options: "EvaluateCommand",
    own: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    if options.data is None:
        raise BadOption("no dataset given; name its folder with --data ROOT")
    import torch

    from blemish.data.layouts import open_dataset
    from blemish.run.detectors import load_detectors
    from blemish.run.evaluate import evaluate as run
    from blemish.run.evaluate import exit_code
    from blemish.run.predict import check_output

    out = Path(options.out)
    check_output(out, resume=resume, overwrite=overwrite)
    torch.manual_seed(options.seed)
    dataset = open_dataset(Path(options.data).expanduser(), options.dataset, options.split)
    words = None if options.class_names is None else read_class_names(Path(options.class_names))
    detectors = load_detectors(options.methods, options.checkpoints, own, **options.loading)
    try:
        with stop_on_kill(), _spread(options, own) as spread, progress(quiet) as show:
            found = run(
                detectors,
                dataset,
                out,
                options,
                class_names=words,
                resume=resume,
                overwrite=overwrite,
                on_progress=show,
                spread=spread,
            )
    except KeyboardInterrupt:
        say(f"interrupted; what is done is in {out}, the same command with --resume goes on")
        return EXIT_INTERRUPTED
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False), flush=True)
    elif not quiet:
        _show(found)
    if not quiet:
        _summarise(found, out)
    return exit_code(found)


def _spread(options: "EvaluateCommand", own: Mapping[str, Any]) -> "AbstractContextManager[Spread | None]":
    """The workers of --engine ray; nobody for the local engine."""
    if options.engine == "local":
        return nullcontext()
    from blemish.run.scale import Crew
    from blemish.run.scale_evaluate import Recipe, spread_over

    recipe = Recipe(options.methods, options.checkpoints, own, options.loading)
    return spread_over(Crew(options.workers, options.address), recipe)


def _show(found: "Evaluation") -> None:
    """The tables on standard output."""
    from rich.console import Console

    from blemish.run.result_tables import means_table, method_notes, method_table, method_title

    # As wide as tables need: a narrow terminal wraps lines, which reads better than columns cut short.
    console = Console(width=1000, highlight=False, markup=False)
    for method in found.methods:
        console.print(method_title(method))
        console.print(method_table(method))
        for note in method_notes(method):
            console.print(f"  {note}")
        console.print()
    if len(found.methods) > 1:
        console.print(means_table(found))


def _summarise(found: "Evaluation", out: Path) -> None:
    for note in found.notes:
        say(f"note: {note}")
    images = sum(c.normal + c.anomalous for c in found.classes.values())
    failed = len(found.failed)
    parts: Sequence[str] = (
        f"{images - failed} of {images} images done",
        *([f"{failed} failed"] if failed else []),
        f"{len(found.methods)} method{'s' if len(found.methods) > 1 else ''}",
    )
    say(f"{', '.join(parts)}; {found.seconds:.1f} s")
    say(f"results: {out / 'results.json'}, {out / 'results.csv'}")
