"""`blemish fetch`: weights ahead of use."""

import dataclasses
import json
from typing import Annotated

import typer

from blemish.cli.shared import (
    EXIT_DONE,
    JsonOption,
    QuietOption,
    VerboseOption,
    app,
    set_up_messages,
    shown_errors,
    stop_on_kill,
)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A backbone's name or a hub repository id.")],
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> int:
    """Download a backbone ahead of use and verify it; says where datasets and authors' checkpoints are."""
    set_up_messages(quiet, verbose)
    with shown_errors(verbose), stop_on_kill():
        from blemish.run.fetch import fetch as get

        found = get(name)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(found) | {"path": str(found.path)}, indent=2))
        elif not quiet:
            origin = f", from {found.repository}" if found.repository else ""
            typer.echo(
                f"{found.name}: whole and readable{origin}\n{found.path}\nfingerprint {found.fingerprint}"
            )
    return EXIT_DONE
