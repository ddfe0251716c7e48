"""`blemish synth`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from blemish.cli.shared import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    ConfigOption,
    JsonOption,
    QuietOption,
    SeedOption,
    VerboseOption,
    app,
    progress,
    say,
    set_up_messages,
    shown_errors,
    stop_on_kill,
)
from blemish.config import merge_options
from blemish.errors import UnknownName


@app.command()
def synth(
    count: Annotated[int | None, typer.Option("--count", "-n", help="Pictures in all. [1000]")] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder of the dataset. [blemish-synth]")
    ] = None,
    size: Annotated[int | None, typer.Option("--size", help="Side of a picture in pixels. [320]")] = None,
    seed: SeedOption = None,
    families: Annotated[
        str | None,
        typer.Option("--families", help="Materials, objects and defects: training, held_out or all. [all]"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes that draw; default: one per core.")
    ] = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """Draw a dataset of surfaces and objects with defects and exact masks."""
    given = {"count": count, "out": out, "size": size, "seed": seed, "families": families, "workers": workers}
    set_up_messages(quiet, verbose)
    with shown_errors(verbose):
        from blemish.synth.dataset import NAMED, SynthOptions, write_pictures

        options, others = merge_options(SynthOptions, "blemish synth", config, given, [])
        for key in others:
            raise UnknownName(f"key in {config}", key, SynthOptions.__dataclass_fields__)
        folder = Path(options.out)
        try:
            with stop_on_kill(), progress(quiet) as show:
                summary = write_pictures(
                    folder,
                    options.count,
                    options.seed,
                    options.size,
                    families=NAMED[options.families],
                    workers=options.workers,
                    on_progress=show,
                )
        except KeyboardInterrupt:
            say(f"interrupted; what is done is in {folder}, the same command goes on")
            return EXIT_INTERRUPTED
        if as_json:
            print(json.dumps(summary.to_json()), flush=True)
        elif not quiet:
            say(
                f"{summary.pictures} pictures in {folder}, {summary.drawn} of them new: {summary.normal} normal, "
                f"{summary.anomalous} anomalous, {summary.classes} classes; {summary.seconds:.1f} s"
            )
    return EXIT_DONE
