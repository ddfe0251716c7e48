"""`blemish serve`."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import blemish
from blemish.cli.shared import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    BackboneOption,
    BatchSizeOption,
    CheckpointOption,
    ClassNameOption,
    ClassNamesOption,
    ConfigOption,
    DeviceOption,
    ImageSizeOption,
    JsonOption,
    MethodOption,
    NormalOption,
    OverlapOption,
    PixelThresholdOption,
    PrecisionOption,
    QuietOption,
    RuntimeOption,
    ScoreRuleOption,
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
    stop_on_kill,
    words_for_class,
)
from blemish.config import LOAD_KEYS

if TYPE_CHECKING:
    from blemish.predictor import Predictor

log = logging.getLogger("blemish.serve")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port; 0 takes a free one. [8000]")] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="BLEMISH_TOKEN",
            help="What clients must send as bearer token; needed when --host is not this machine.",
        ),
    ] = None,
    no_auth: Annotated[
        bool | None, typer.Option("--no-auth", help="Let other machines connect without a token.")
    ] = None,
    db: Annotated[
        str | None,
        typer.Option(
            "--db", metavar="FILE", help="History: a file for SQLite, or postgresql://USER@HOST/NAME."
        ),
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="DIR", help="Keep images and maps here, for the history.")
    ] = None,
    method: MethodOption = None,
    backbone: BackboneOption = None,
    checkpoint: CheckpointOption = None,
    runtime: RuntimeOption = None,
    image_size: ImageSizeOption = None,
    tile: TileOption = None,
    overlap: OverlapOption = None,
    score_rule: ScoreRuleOption = None,
    class_name: ClassNameOption = None,
    class_names: ClassNamesOption = None,
    normal: NormalOption = None,
    shots: ShotsOption = None,
    threshold: ThresholdOption = None,
    pixel_threshold: PixelThresholdOption = None,
    max_bytes: Annotated[
        int | None, typer.Option("--max-bytes", help="Of a request's body. [64000000]")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option("--max-pixels", help="Of a request's images together. [100000000]")
    ] = None,
    max_images: Annotated[int | None, typer.Option("--max-images", help="Of a request. [32]")] = None,
    queue: Annotated[
        int | None, typer.Option("--queue", help="Images accepted and not yet answered, at most. [64]")
    ] = None,
    batch_size: BatchSizeOption = None,
    batch_wait_ms: Annotated[
        float | None, typer.Option("--batch-wait-ms", help="How long an unfull batch waits for more. [5]")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", help="Seconds for a request's body to come, and again to be scored. [60]"),
    ] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    compile: Annotated[
        bool | None, typer.Option("--compile", help="Compile the network first: a slow start, then faster.")
    ] = None,
    threads: ThreadsOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """Score images over HTTP, with a page for inspection: POST /v1/predict. Ends, in order, on SIGTERM or Ctrl-C."""
    arguments = dict(locals())
    set_up_messages(quiet, verbose)
    with shown_errors(verbose):
        from blemish.deploy.history_models import checkpoint_file
        from blemish.deploy.serve_log import log_as_json
        from blemish.deploy.serve_options import ServeOptions
        from blemish.deploy.serve_run import run_service

        log_as_json(quiet, verbose)
        options, own = chosen_options(ServeOptions, "blemish serve", arguments)
        words = words_for_class(options.class_name, options.class_names)
        loading = {key: getattr(options, key) for key in LOAD_KEYS} | {"class_name": words}

        def load() -> "tuple[Predictor, Path | None]":
            if options.runtime is None:
                import torch

                torch.manual_seed(options.seed)
            predictor = blemish.load(**loading, normal_seed=options.seed, **own)
            return predictor, checkpoint_file(options.checkpoint, predictor.setup)

        def show(url: str) -> None:
            typer.echo(json.dumps({"url": url}) if as_json else url)
            log.info("ready", extra={"fields": {"url": url}})

        try:
            with stop_on_kill():
                run_service(options, load, on_ready=show)
        except KeyboardInterrupt:
            say("interrupted before the service was ready")
            return EXIT_INTERRUPTED
        log.info("stopped")
        return EXIT_DONE
