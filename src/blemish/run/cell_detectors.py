"""The detectors of a benchmark's cells: loaded on shared backbones, and trained first where the plan says so."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from blemish.config import typed_options
from blemish.detector import Detector
from blemish.errors import BadCheckpoint, BadDataset
from blemish.loading import Backbones, load
from blemish.run.cells import Cell, checkpoint_file
from blemish.run.plan_training import training_options
from blemish.run.recipe import TrainOptions

log = logging.getLogger(__name__)


class CellDetectors:
    """Makes detectors.

    out: folder of the benchmark; what is trained is kept in it. checkpoints: folder of the plan's checkpoints;
    folder: of the plan. roots: folders of training sets by name. device, precision: as in `blemish.load`.
    """

    def __init__(
        self,
        out: Path,
        checkpoints: Path,
        folder: Path,
        roots: Mapping[str, Path],
        device: str,
        precision: str,
    ) -> None:
        self.out, self.checkpoints, self.folder, self.roots = out, checkpoints, folder, roots
        self.device, self.precision = device, precision
        self.backbones = Backbones()

    def make(self, cell: Cell) -> Detector:
        """The detector of a cell. Raises BlemishError: no checkpoint, no data to train on, a wrong option."""
        method = cell.method
        file = checkpoint_file(method, cell.auxiliary, self.checkpoints)
        if method.train is not None:
            file = self.train(cell)
        elif method.checkpoint and file is None:
            known = ", ".join(method.checkpoint)
            raise BadCheckpoint(
                f"no checkpoint trained on {cell.auxiliary or 'an unnamed set'}; the plan has {known}"
            )
        own = method.options | ({} if cell.variation is None else cell.variation.options)
        return load(
            method.method,
            backbone=method.backbone,
            checkpoint=file,
            device=self.device,
            precision=self.precision,
            image_size=method.image_size,
            backbones=self.backbones,
            **own,
        )

    def train(self, cell: Cell) -> Path:
        """The checkpoint of a method trained with the cell's seed, made when no earlier cell has made it."""
        from blemish.run.train import CHECKPOINT_FILE, train

        method, seed = cell.method, cell.seed or 0
        settings = training_options(method.train or {}, cell.auxiliary, self.folder)
        given = settings.pop("data", ())
        data = [str(self.roots.get(name, self.folder / name)) for name in given]
        if not data and cell.auxiliary in self.roots:
            data = [str(self.roots[cell.auxiliary])]
        if not data:
            name = cell.auxiliary or "NAME"
            raise BadDataset(f"no data to train {method.label} on; pass --data {name}=ROOT")
        settings |= {"method": method.method, "data": data, "seed": seed, "device": self.device}
        for key in ("backbone", "image_size"):
            if getattr(method, key) is not None:
                settings[key] = getattr(method, key)
        about = json.dumps([settings, method.options], default=str)
        folder = self.out / "trained" / slug(f"{method.label}-{cell.auxiliary}-seed{seed}", about)
        if (folder / CHECKPOINT_FILE).exists():
            return folder / CHECKPOINT_FILE
        log.info("training %s on %s with seed %d", method.label, cell.auxiliary, seed)
        options = TrainOptions(**typed_options(TrainOptions, settings | {"out": str(folder)}, "train"))
        return train(options, method.options, resume=folder.exists()).checkpoint


def slug(name: str, about: str) -> str:
    """A folder's name: readable, and different for different settings."""
    digest = hashlib.sha256(about.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', name)[:60]}-{digest}"
