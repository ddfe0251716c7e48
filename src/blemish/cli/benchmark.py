"""`blemish benchmark`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blemish.cli.shared import (
    EXIT_INTERRUPTED,
    BatchSizeOption,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    PrecisionOption,
    QuietOption,
    ResumeOption,
    ThreadsOption,
    VerboseOption,
    app,
    progress,
    say,
    set_up_messages,
    shown_errors,
    stop_on_kill,
)

if TYPE_CHECKING:
    from blemish.run.benchmark import BenchmarkSummary


@app.command()
def benchmark(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN.toml", help="Methods, datasets and seeds; see recipes/.")
    ],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder for the results. [blemish-benchmark]")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=ROOT",
            help="Folder of a dataset or training set of the plan; ROOT alone: where the others lie.",
        ),
    ] = None,
    checkpoints: Annotated[
        str | None, typer.Option("--checkpoints", help="Folder of the plan's checkpoints. [the plan's]")
    ] = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Go on where training set and target overlap.")
    ] = False,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    limit: Annotated[
        int | None, typer.Option("--limit", help="At most so many images of each class, for a trial.")
    ] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    json_lines: JsonOption = False,
) -> int:
    """Run a plan of methods, datasets and seeds; tables with the papers' figures beside the measured ones."""
    given = {key: value for key, value in locals().items() if key not in ("plan", "data")}
    set_up_messages(quiet, verbose)
    with shown_errors(verbose):
        from blemish.run.benchmark import BenchmarkOptions
        from blemish.run.benchmark import benchmark as run_benchmark
        from blemish.run.plan import read_plan, with_roots

        known = BenchmarkOptions.__dataclass_fields__
        options = BenchmarkOptions(**{k: v for k, v in given.items() if k in known and v is not None})
        chosen, roots = with_roots(read_plan(plan), data or [])
        try:
            with stop_on_kill(), progress(quiet) as show:
                summary = run_benchmark(
                    chosen, roots, options, resume=resume, overwrite=overwrite, on_progress=show
                )
        except KeyboardInterrupt:
            say(f"interrupted; what is done is in {options.out}, the same command with --resume goes on")
            return EXIT_INTERRUPTED
        if json_lines:
            print(json.dumps(asdict(summary) | {"report": str(summary.report)}, default=str), flush=True)
        if not quiet:
            _summarise(summary)
        return summary.exit_code


def _summarise(summary: "BenchmarkSummary") -> None:
    parts = [f"{summary.done} of {summary.total} cells done"]
    if summary.skipped:
        parts.append(f"{summary.skipped} of them earlier")
    if summary.failed:
        parts.append(f"{summary.failed} failed")
    say(f"{', '.join(parts)}; {summary.seconds:.1f} s")
    say(f"tables: {summary.out / 'tables.md'}, {summary.out / 'results.csv'}")
    say(f"report: {summary.report}")
