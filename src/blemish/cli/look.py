"""`blemish list`, `blemish info` and `blemish doctor`: what there is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from blemish.cli.shared import (
    EXIT_DONE,
    EXIT_NOTHING_DONE,
    EXIT_SOME_FAILED,
    JsonOption,
    VerboseOption,
    app,
    shown_errors,
)


class Kind(StrEnum):
    """What `blemish list` can list."""

    methods = "methods"
    backbones = "backbones"
    datasets = "datasets"
    checkpoints = "checkpoints"


@app.command("list")
def list_names(
    kind: Annotated[Kind | None, typer.Argument(help="Which; default: all.")] = None,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """List what there is; with --verbose also each method's options."""
    with shown_errors(verbose):
        from blemish import catalogue

        found = {k.value: getattr(catalogue, k.value)() for k in ([kind] if kind else Kind)}
        if as_json:
            typer.echo(json.dumps(found, indent=2))
            return EXIT_DONE
        for title, rows in found.items():
            if kind is None:
                typer.echo(f"{title}:" if rows else f"{title}: none yet")
            for row in rows:
                _list_row(row, "  " if kind is None else "", verbose)
    return EXIT_DONE


def _list_row(row: Mapping[str, Any], indent: str, verbose: bool) -> None:
    typer.echo(f"{indent}{row['name']:<24}{row['about']}".rstrip())
    for option in row.get("options", []) if verbose else []:
        typer.echo(f"{indent}    {option['name']} = {option['default']!r}  {option['help']}")


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A checkpoint (ours or the authors') or CLIP weights.")],
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """Say what a file holds."""
    with shown_errors(verbose):
        from blemish.catalogue import flat
        from blemish.checkpoint import describe

        found = describe(file)
        if as_json:
            typer.echo(json.dumps(found, indent=2, default=str))
        else:
            rows = list(flat(found))
            width = max(len(key) for key, _ in rows) + 2
            for key, value in rows:
                typer.echo(f"{key:<{width}}{value}")
        return EXIT_NOTHING_DONE if found["kind"] == "unknown" else EXIT_DONE


@app.command()
def doctor(verbose: VerboseOption = False, as_json: JsonOption = False) -> int:
    """Examine this machine and the installation; exit status 1 if something is broken."""
    with shown_errors(verbose):
        from blemish.doctor import examine

        checks = examine()
        if as_json:
            typer.echo(json.dumps([vars(check) for check in checks], indent=2))
        else:
            for check in checks:
                typer.echo(f"{'ok ' if check.ok else 'BAD'} {check.name:<28}{check.value}")
        return EXIT_DONE if all(check.ok for check in checks) else EXIT_SOME_FAILED
