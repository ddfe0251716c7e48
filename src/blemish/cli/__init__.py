"""The `blemish` command: thin verbs, each calling one public function. Nothing heavy is imported up here."""

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
