"""What a training run says while it goes on: run.json, metrics.jsonl, a picture of the curves, TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from blemish.checkpoint import package_versions
from blemish.errors import BadOption, OutputError
from blemish.files import cannot_write, make_folder, write_whole
from blemish.output.loss_curves import line_panels
from blemish.run.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable

    from blemish.calibrate import Thresholds
    from blemish.run.train_data import Gathered

RUN_FILE, LINES_FILE, CURVES_FILE = "run.json", "metrics.jsonl", "curves.svg"


class TrainLog:
    """The log of one run; only the leading process writes.

    settings: what a resumed run must have in common. Raises OutputError when `out` holds another run or cannot
    be written, BadOption when it is to be both resumed and overwritten.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        processes: Processes,
        show: Callable[[Mapping[str, Any]], None] | None,
        *,
        resume: bool,
        overwrite: bool,
    ) -> None:
        self.out, self.settings, self.processes, self.show = out, dict(settings), processes, show
        if resume and overwrite:
            raise BadOption("--resume and --overwrite exclude each other; choose one")
        held = (out / RUN_FILE).exists()
        processes.wait()  # the others must have looked before the first file appears
        if held and not (resume or overwrite):
            raise OutputError(
                f"{out} holds an earlier run; go on with it with --resume, replace it with --overwrite, "
                f"or choose another folder with --out"
            )
        self._lines: list[dict[str, Any]] = []
        self._sums: dict[int, list[float]] = {}
        self._about: dict[str, Any] = {}
        self._started, self._first_step = time.monotonic(), 0
        self._board: Any = None
        if processes.leads:
            make_folder(out)
            if overwrite:
                for name in ("state.safetensors", LINES_FILE):
                    (out / name).unlink(missing_ok=True)

    @property
    def losses(self) -> tuple[float, ...]:
        """Mean total loss of each epoch logged by this process."""
        return tuple(sum(values) / len(values) for _, values in sorted(self._sums.items()))

    def begin(self, gathered: Gathered, tensorboard: bool) -> None:
        """Write run.json and open TensorBoard when asked to. Raises BadOption when it is not installed."""
        if not self.processes.leads:
            return
        about = {"versions": package_versions(), "auxiliary": gathered.name, "warnings": gathered.warnings}
        self._about = {**self.settings, **about}
        self._write_run({"status": "running"})
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise BadOption(
                    "--tensorboard needs the package tensorboard; pip install tensorboard"
                ) from error
            self._board = SummaryWriter(str(self.out / "tensorboard"))

    def caching(self, done: int, total: int) -> None:
        """Progress of the feature cache."""
        if self.show is not None and self.processes.leads:
            self.show({"phase": "features", "done": done, "total": total})

    def rewind(self, steps: int) -> None:
        """Drop lines of steps after `steps`, which a resumed run will make again."""
        path = self.out / LINES_FILE
        if self.processes.leads and path.exists():
            lines = [json.loads(line) for line in _whole_lines(path)]
            self._lines = [line for line in lines if line["step"] <= steps]
            for line in self._lines:
                if "loss" in line:
                    self._sums.setdefault(line["epoch"], []).append(line["loss"])
            write_whole(path, "".join(json.dumps(line) + "\n" for line in self._lines).encode())
        self._started, self._first_step = time.monotonic(), steps

    def step(
        self,
        epoch: int,
        step: int,
        steps: int,
        terms: Mapping[str, Tensor],
        method: nn.Module,
        rate: float,
        images: int,
    ) -> None:
        """One optimiser step: terms weighted by this process's share, and the method's learned scalars.

        rate: factor of the learning rate in this step. images: of a whole batch.
        """
        values = self.processes.add_values({name: float(t.detach()) for name, t in terms.items()})
        total = sum(values.values())
        self._sums.setdefault(epoch + 1, []).append(total)
        if not self.processes.leads:
            return
        per_step = max(time.monotonic() - self._started, 1e-9) / (step - self._first_step)
        line: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": step,
            "loss": total,
            "terms": values,
            "learning_rate": rate,
            "scalars": scalars(method),
            "images_per_second": round(images / per_step, 3),
        }
        self._append(line)
        if self._board is not None:
            for name, value in {"loss": total, **values, **line["scalars"]}.items():
                self._board.add_scalar(name, value, step)
        if self.show is not None:
            self.show(
                {**line, "phase": "training", "steps": steps, "seconds_left": per_step * (steps - step)}
            )

    def epoch(self, epoch: int, step: int, validation: Mapping[str, Any]) -> None:
        """The end of an epoch: figures of the held-out classes, and the picture of the curves drawn anew."""
        if not self.processes.leads:
            return
        if validation:
            self._append({"epoch": epoch + 1, "step": step, "validation": dict(validation)})
            if self.show is not None:
                self.show({"phase": "validation", "epoch": epoch + 1, "validation": dict(validation)})
        self.draw()

    def end(self, started: float, thresholds: Thresholds | None) -> float:
        """Write run.json for the last time; returns the seconds since `started` (of `time.perf_counter`)."""
        seconds = time.perf_counter() - started
        if not self.processes.leads:
            return seconds
        found = None if thresholds is None else {"image": thresholds.image, "pixel": thresholds.pixel}
        self._write_run(
            {"status": "done", "losses": self.losses, "thresholds": found, "seconds": round(seconds, 3)}
        )
        if self._board is not None:
            self._board.close()
        return seconds

    def draw(self) -> None:
        """The loss, its terms by kind, and the learned scalars against the steps, as SVG."""
        losses: dict[str, list[tuple[float, float]]] = {}
        learned: dict[str, list[tuple[float, float]]] = {}
        for line in self._lines:
            if "loss" in line:
                for name, value in {"loss": line["loss"], **by_kind(line["terms"])}.items():
                    losses.setdefault(name, []).append((line["step"], value))
                for name, value in line["scalars"].items():
                    learned.setdefault(name, []).append((line["step"], value))
        panels = {"loss and its terms, by step": losses, "learned scalars, by step": learned}
        write_whole(self.out / CURVES_FILE, line_panels(panels).encode())

    def _append(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        try:
            with (self.out / LINES_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise cannot_write(self.out / LINES_FILE, error) from error

    def _write_run(self, more: Mapping[str, Any]) -> None:
        text = json.dumps({**self._about, **more}, indent=2, ensure_ascii=False, default=str)
        write_whole(self.out / RUN_FILE, f"{text}\n".encode())


def by_kind(terms: Mapping[str, float]) -> dict[str, float]:
    """Terms "focal.6", "focal.12", ... added up as "focal"."""
    kinds: dict[str, float] = {}
    for name, value in terms.items():
        kind = name.split(".")[0]
        kinds[kind] = kinds.get(kind, 0.0) + value
    return kinds


def scalars(method: nn.Module) -> dict[str, float]:
    """Temperatures, fusion and loss weights that a method learns; empty for most."""
    found: dict[str, float] = method.learned_scalars() if hasattr(method, "learned_scalars") else {}  # type: ignore[operator]
    return found


def _whole_lines(path: Path) -> list[str]:
    """Lines that were written to their end; a kill may have cut the last one."""
    text = path.read_text(encoding="utf-8")
    return [line for line in text.split("\n")[:-1] if line]
