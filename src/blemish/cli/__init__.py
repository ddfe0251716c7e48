"""The `blemish` command: thin verbs, each calling one public function. Nothing heavy is imported up here.

The verbs do without `from __future__ import annotations`: typer would evaluate the text of every signature, twice,
which is a third of the time that `--help` takes.
"""

from blemish.cli import benchmark, calibrate, evaluate, export, fetch, look, predict, serve, synth, train
from blemish.cli.shared import app, main

__all__ = [
    "app",
    "benchmark",
    "calibrate",
    "evaluate",
    "export",
    "fetch",
    "look",
    "main",
    "predict",
    "serve",
    "synth",
    "train",
]
