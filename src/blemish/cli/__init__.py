"""The `blemish` command: thin verbs, each calling one public function. Nothing heavy is imported up here."""

from blemish.cli import look, predict, train
from blemish.cli.shared import app, main

__all__ = ["app", "look", "main", "predict", "train"]
