"""What the scripts beside this share: medians, processes of their own, results that can be gone on with."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blemish.machine import REPORTED_FLAGS, cpu_flags, cpu_name, package_versions, system_name

if TYPE_CHECKING:
    import torch

    from blemish.clip.model import CLIP

TYPES = {"fp32": "float32", "bf16": "bfloat16"}
BLOCKS = 24  # of ViT-L-14-336


def options(about: str | None, threads: int | None = 2) -> argparse.ArgumentParser:
    """A parser with what every script takes. threads: default of --threads; None leaves that out."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write figures there; go on with what it has"
    )
    if threads is not None:
        parser.add_argument("--threads", type=int, default=threads)
    return parser


def model_options(about: str | None, threads: int | None = 2) -> argparse.ArgumentParser:
    """`options`, and what scripts take that measure `random_clip` in processes of their own."""
    parser = options(about, threads)
    parser.add_argument(
        "--blocks", type=int, default=BLOCKS, help="of ViT-L-14-336; 4 or 8 try the script quickly"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser


def did_job(given: argparse.Namespace, run: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """Whether this process was started by `in_own_process`: then it prints what `run` returns for its job."""
    if given.job is None:
        return False
    print(json.dumps(run(json.loads(given.job))))
    return True


def seconds(run: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def alternating(
    runs: Mapping[str, Callable[[], object]], repeats: int, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each of `runs`, one after the other in every round, after a round that does not count.

    warm: leave that round out, since the caller has already run them.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(int(warm), repeats + 1):
        for name, run in runs.items():
            taken = seconds(run)
            if turn:
                found[name].append(taken)
    return found


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median, fastest, slowest and number of runs."""
    return {
        "median": statistics.median(values),
        "fastest": min(values),
        "slowest": max(values),
        "runs": len(values),
    }


def conditions(threads: int | None, precision: str | None = None) -> dict[str, Any]:
    """What figures were measured on."""
    flags = sorted(cpu_flags().intersection(REPORTED_FLAGS))
    known = {"system": system_name(), "cpu": cpu_name(), "cores": os.cpu_count(), "flags": flags}
    return known | {"threads": threads, "precision": precision, "load": os.getloadavg()[0]}


def heading(threads: int | None) -> None:
    """Print what is measured on."""
    about = conditions(threads)
    count = f"{threads} threads" if threads else f"{about['cores']} cores"
    print(
        f"{about['cpu'] or about['system']}, {' '.join(about['flags'])}, {count}, load {about['load']:.2f}",
        flush=True,
    )


class Results:
    """Rows by key, in a JSON file that is written whole after every row; without a file, in memory alone."""

    def __init__(self, path: Path | None) -> None:
        """Goes on with the rows that `path` has."""
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self.rows = json.loads(path.read_text(encoding="utf-8"))["rows"]

    def get(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of `key`, measured unless it is known, and printed."""
        known = key in self.rows
        if not known:
            self.rows[key] = measure()
            self._write()
        print(f"{key}{' (earlier)' if known else ''}: {text(self.rows[key])}", flush=True)
        return self.rows[key]

    def _write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = {"versions": package_versions(), "rows": self.rows}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        part.replace(self.path)


def text(row: Mapping[str, Any]) -> str:
    """A row on one line: medians with their spread, and single figures."""
    parts = []
    for name, value in row.items():
        if isinstance(value, dict) and "median" in value:
            parts.append(f"{name} {value['median']:.4g} ({value['fastest']:.4g} to {value['slowest']:.4g})")
        elif isinstance(value, float):
            parts.append(f"{name} {value:.4g}")
        elif isinstance(value, int | str):
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def in_own_process(script: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """What `script` prints as its last line for `--job JSON`, from a process of its own, so that memory is its own."""
    command = [sys.executable, script, "--job", json.dumps(job)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_and_watch(
    command: Sequence[str], until_line: bool = False, env: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Seconds and peak memory (MiB) of a program, from its start to its end.

    until_line: "first_line" too, the seconds to the first line that it prints. The peak is at least that of the
    calling process, which Linux counts up to the start of the program: callers stay small. Raises RuntimeError when
    the program fails.
    """
    # Not a pipe: a program that says much on standard error would wait for a reader.
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=None if env is None else dict(env)
        )
        assert process.stdout is not None
        found = {}
        if until_line:
            process.stdout.readline()
            found["first_line"] = time.perf_counter() - started
        process.stdout.read()
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        found["seconds"] = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed: {errors.read().decode(errors='replace')}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return found | {"peak_mib": usage.ru_maxrss / unit}


def random_clip(dtype: torch.dtype, blocks: int = BLOCKS) -> CLIP:
    """The papers' ViT-L-14-336 with random weights made in `dtype`, so that no other copy counts as memory, and packed.

    blocks: of the image tower, and at most that many of the text tower; fewer only try a script quickly.
    """
    from dataclasses import replace

    import torch

    from blemish.clip.config import CLIPConfig
    from blemish.clip.model import CLIP
    from blemish.clip.packed import pack
    from blemish.clip.tokenizer import Tokenizer

    shape = CLIPConfig()
    vision = replace(shape.vision, layers=blocks)
    text = replace(shape.text, layers=min(blocks, shape.text.layers))
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        clip = CLIP(replace(shape, vision=vision, text=text)).reset_parameters().freeze()
    finally:
        torch.set_default_dtype(before)
    clip.tokenizer = Tokenizer.clip()
    pack(clip.visual)  # as `blemish.load` does
    return clip
