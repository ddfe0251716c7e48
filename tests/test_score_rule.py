"""Image scores from maps, and what a checkpoint remembers of how pictures are cut and scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import blemish
from blemish.checkpoint import read_meta, rewrite_checkpoint
from blemish.cli import main
from blemish.data.transforms import cut_boxes
from blemish.errors import BadOption
from blemish.predictor import tile_side
from blemish.score_rule import image_score

Make = Callable[..., Any]


def test_rules_on_a_map_that_can_be_checked_by_hand() -> None:
    anomaly_map = np.array([[0.1, 0.9], [0.5, 0.3]], dtype=np.float32)
    found = {rule: image_score(rule, anomaly_map, 0.2) for rule in ("native", "max", "topk:2", "topk:9")}
    assert found == pytest.approx({"native": 0.2, "max": 0.9, "topk:2": 0.7, "topk:9": 0.45})
    for rule in ("mean", "topk:0", "topk:", "topk:-1", "topk:x", ""):
        with pytest.raises(BadOption, match="expected native, max, or topk:K"):
            image_score(rule, anomaly_map, 0.2)


def test_the_rule_reads_the_network_map_of_each_picture(small_checkpoint: Make, draw: Make) -> None:
    checkpoint, pictures = small_checkpoint(), [draw("a.png", (32, 32)), draw("b.png", (50, 20))]
    native = blemish.load(checkpoint=checkpoint)
    detector = blemish.load(checkpoint=checkpoint, score_rule="topk:7")
    for picture in pictures:
        found = detector.infer([detector.prepare(picture)])[0]
        largest = np.sort(found.map.ravel())[-7:]
        assert found.score == pytest.approx(float(largest.mean()), abs=1e-6)
        assert found.score != pytest.approx(native.predict(picture).score, abs=1e-4)
    together = list(detector.predict_many(pictures, batch_size=2))
    assert [p.score for p in together] == pytest.approx(
        [detector.predict(p).score for p in pictures], abs=1e-6
    )


def test_tiles_are_scored_one_by_one(small_checkpoint: Make, draw: Make) -> None:
    checkpoint = small_checkpoint()
    picture = np.asarray(blemish.data.images.read_image(draw("a.png", (64, 32))))
    one = blemish.load(checkpoint=checkpoint, score_rule="max")
    expected = max(one.predict(picture[:, :32]).score, one.predict(picture[:, 32:]).score)
    cut = blemish.load(checkpoint=checkpoint, score_rule="max", tile="square")
    assert cut.predict(picture).score == pytest.approx(expected, abs=1e-5)


def test_a_checkpoint_remembers_how_pictures_are_cut_and_scored(
    tmp_path: Path, small_checkpoint: Make, draw: Make
) -> None:
    source, target = small_checkpoint(), tmp_path / "own.safetensors"
    rewrite_checkpoint(source, target, tile="square", score_rule="topk:5", overlap=0.5)
    setup = blemish.load(checkpoint=target).setup
    assert (setup.tile, setup.score_rule, setup.overlap, setup.threshold) == ("square", "topk:5", 0.5, 0.5)
    # what is asked for goes first, and a threshold of other scores is dropped
    other = blemish.load(checkpoint=target, tile="none", score_rule="max").setup
    assert (other.tile, other.score_rule, other.threshold) == (None, "max", None)
    assert blemish.load(checkpoint=target, score_rule="max", threshold=0.25).setup.threshold == 0.25
    saved = tmp_path / "saved.safetensors"
    blemish.load(checkpoint=target, tile=64).save(saved)
    meta = read_meta(saved)
    assert (meta.tile, meta.score_rule, meta.overlap, meta.image_threshold) == (64, "topk:5", 0.5, 0.5)


def test_calibrate_writes_the_rule_with_the_threshold(
    tmp_path: Path, small_checkpoint: Make, draw: Make
) -> None:
    normal = tmp_path / "normal"
    normal.mkdir()
    for i in range(4):
        draw(f"normal/{i}.png", (40, 24))
    target = tmp_path / "own.safetensors"
    arguments = [
        "calibrate",
        "--checkpoint",
        str(small_checkpoint()),
        "--data",
        str(normal),
        "-o",
        str(target),
    ]
    assert main([*arguments, "--score-rule", "topk:9", "--tile", "square", "--false-alarm-rate", "0.1"]) == 0
    meta = read_meta(target)
    assert (meta.score_rule, meta.tile) == ("topk:9", "square")
    detector = blemish.load(checkpoint=target)
    scores = [p.score for p in detector.predict_many(sorted(normal.glob("*.png")))]
    assert detector.setup.threshold is not None and detector.setup.threshold > max(scores)


def test_evaluation_scores_as_prediction_does(small_checkpoint: Make, draw: Make, tmp_path: Path) -> None:
    from blemish.run.scoring import Scorer
    from blemish.types import Sample

    path = draw("a.png", (50, 20))
    for tile in ("none", "square"):
        detector = blemish.load(checkpoint=small_checkpoint(), score_rule="topk:7", tile=tile)
        scorer = Scorer({"one": detector}, {}, lambda sample: "object")
        sample = Sample(Path(path), label=0)
        with torch.inference_mode():
            ((_, outcome),) = scorer.score([scorer.prepare(sample, with_mask=False)])
        assert outcome["one"].score == pytest.approx(detector.predict(path).score, abs=1e-6)  # type: ignore[union-attr]


def test_words_for_tiles() -> None:
    assert [tile_side(t) for t in (64, "64", "square", "none")] == [64, 64, "square", None]
    with pytest.raises(BadOption, match="expected a number of pixels, square, or none"):
        tile_side("squares")
    assert len(cut_boxes((20, 50), "square")) == 3


def test_thresholds_are_written_with_what_they_hold_for(tmp_path: Path, small_checkpoint: Make) -> None:
    """However they were found: from pictures, or from the history of the service."""
    from blemish.calibrate import ThresholdFinder
    from blemish.run.calibrate import Calibration, write_thresholds

    finder = ThresholdFinder()
    for score, label in ((0.2, 0), (0.8, 1)):
        finder.update_score(score, label)
    source, target = small_checkpoint(), tmp_path / "own.safetensors"
    detector = blemish.load(checkpoint=source, score_rule="max", tile="square", overlap=0.5)
    write_thresholds(detector, str(source), target, Calibration(finder.best_f1(), "drawn", 2), {})
    meta = read_meta(target)
    assert (meta.score_rule, meta.tile, meta.overlap) == ("max", "square", 0.5)
    assert meta.image_threshold == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("method", ["clip_ac", "anomaly_clip"])
def test_thresholds_without_learned_parts_are_of_the_backbone_at_hand(
    tmp_path: Path, small_checkpoint: Make, method: str
) -> None:
    from blemish.calibrate import ThresholdFinder
    from blemish.run.calibrate import Calibration, write_thresholds

    finder = ThresholdFinder()
    for score, label in ((0.2, 0), (0.8, 1)):
        finder.update_score(score, label)
    source, target = small_checkpoint(method, backbone_fingerprint="another"), tmp_path / "own.safetensors"
    detector = blemish.load(checkpoint=source)
    write_thresholds(detector, str(source), target, Calibration(finder.best_f1(), "drawn", 2), {})
    here = detector.setup.backbone_fingerprint
    assert here not in ("", "another")
    assert read_meta(target).backbone_fingerprint == (here if method == "clip_ac" else "another")
