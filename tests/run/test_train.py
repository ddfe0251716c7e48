"""Training: what every method learns, its log, cache, data, options and recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import blemish
from blemish.checkpoint import read_meta
from blemish.clip.weights import load_clip
from blemish.config import merge_options
from blemish.errors import BadDataset, BadOption, BlemishError, UnknownName
from blemish.methods import METHODS
from blemish.run import train as training
from blemish.run.batches import Batches
from blemish.run.recipe import TrainOptions, complete
from run.drawn_data import draw_dataset, save
from run.training_runs import INSIDE, METHOD_NAMES, lines, same, weights

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted([*FOLDER.glob("train_*.toml"), *FOLDER.glob("embedded_*.toml")])
MASKED = [m for m in METHOD_NAMES if not blemish.methods.method_class(m).learns_without_masks]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_learns_and_predict_uses_what_it_learned(
    method: str, run: Any, data: Path, small_backbone: Path
) -> None:
    summary = run(method, epochs=6, learning_rate=3e-3, cache="auto")
    assert summary.losses[-1] < summary.losses[0]
    assert summary.steps == 6 * 5  # 18 pictures in batches of 4, the incomplete one kept
    detector = blemish.load(checkpoint=summary.checkpoint, backbone=small_backbone)
    assert detector.setup.method == method
    assert detector.setup.image_size == 48
    assert detector.setup.threshold == summary.thresholds.image
    result = detector.predict(next((data / "plate/test/spot").iterdir()))
    assert result.map.shape == (48, 48)
    assert result.is_anomalous is not None


def test_the_checkpoint_says_how_it_was_made(run: Any) -> None:
    summary = run(augmentation="vcp", cache=2)
    meta = read_meta(summary.checkpoint)
    assert "2 drawings of each image" in meta.notes
    assert "augmentation vcp" in meta.notes
    assert "8 normal, 10 anomalous" in meta.auxiliary
    assert meta.image_threshold is not None
    assert meta.pixel_threshold is not None
    assert "encoded in every epoch" in read_meta(run(out="exact").checkpoint).notes


def test_the_log_holds_terms_and_scalars(run: Any) -> None:
    summary = run("vcp_clip_plus")
    out = summary.checkpoint.parent
    found = lines(out)
    assert [line["step"] for line in found] == list(range(1, 11))
    for line in found:
        assert line["loss"] == pytest.approx(sum(line["terms"].values()))
        assert line["scalars"]
        assert line["images_per_second"] > 0
    state = json.loads((out / "run.json").read_text())
    assert state["status"] == "done"
    assert state["losses"] == pytest.approx(summary.losses)
    assert (out / "curves.svg").read_text().startswith("<svg")


def test_same_seed_same_weights_another_seed_others(run: Any) -> None:
    first = weights(run("vcp_clip", "a", augmentation="vcp"))
    assert same(first, weights(run("vcp_clip", "b", augmentation="vcp")))
    assert not same(first, weights(run("vcp_clip", "c", augmentation="vcp", seed=9)))


def test_another_number_of_threads_changes_only_roundings(run: Any) -> None:
    before = torch.get_num_threads()
    try:
        one, two = (weights(run(out=f"t{n}", threads=n, learning_rate=1e-3)) for n in (1, 2))
    finally:
        torch.set_num_threads(before)
    # stated in docs/training.md: 10 steps of Adam at 1e-3 move a weight by at most 1e-2
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4


@pytest.mark.parametrize("method", [name for name in METHOD_NAMES if name not in INSIDE])
def test_cached_and_uncached_losses_agree_to_fp16(method: str, run: Any) -> None:
    off, on = (lines(run(method, cache, cache=cache).checkpoint.parent) for cache in ("off", "on"))
    # FAPrompt looks at the ten most abnormal patches: of near ties the rounding may choose others.
    allowed = 2e-2 if method == "fa_prompt" else 2e-3
    for a, b in zip(off, on, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=allowed, abs=2e-4)
    assert any(a["loss"] != b["loss"] for a, b in zip(off, on, strict=True))


def test_the_cache_is_shared_by_runs_and_methods(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run("vcp_clip", "a", cache="on")
    encoded: list[int] = []
    plain = training.FeatureCache.build
    monkeypatch.setattr(training.FeatureCache, "build", lambda *a, **k: (encoded.append(1), plain(*a, **k)))
    run("vcp_clip", "b", cache="on", seed=5)
    run("vcp_clip_plus", "c", cache="on")
    assert not encoded
    run("anomaly_clip", "d", cache="on")
    assert encoded


def test_copies_repeat_and_differ(small_backbone: Path, data: Path, run: Any, monkeypatch: Any) -> None:
    seen: list[tuple[int, int]] = []
    plain = Batches._key
    monkeypatch.setattr(Batches, "_key", lambda self, i, c: (seen.append((i, c)), plain(self, i, c))[1])
    run(augmentation="vcp", cache=2, epochs=4)
    assert {copy for _, copy in seen} == {0, 1}
    with_one = run(out="one", augmentation="vcp", cache=1)
    assert len(with_one.losses) == 2


def test_masks_and_maps_may_meet_at_half_the_size(run: Any) -> None:
    summary = run("vcp_clip", map_size=24)
    assert read_meta(summary.checkpoint).image_size == 48
    assert summary.thresholds.pixel is not None


class TestData:
    def test_images_without_masks_train_the_image_loss_only(
        self, run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        root = draw_dataset(tmp_path / "some")
        for path in sorted((root / "plate/ground_truth/spot").iterdir())[:3]:
            path.unlink()
        summary = run("anomaly_clip", data=(str(root),))
        assert any("3 without a mask train the image-level loss only" in text for text in summary.warnings)
        with pytest.raises(BadDataset, match="--strict"):
            run("anomaly_clip", "strict", data=(str(root),), strict=True)
        summary = run("vcp_clip", "vcp", data=(str(root),))
        assert any("3 skipped: anomalous without a mask" in text for text in summary.warnings)
        assert "5 normal, 2 anomalous" in read_meta(summary.checkpoint).auxiliary

    @pytest.mark.parametrize("method", MASKED)
    def test_no_masks_at_all_are_refused_where_they_are_needed(
        self, method: str, run: Any, tmp_path: Path
    ) -> None:
        root = draw_dataset(tmp_path / "none")
        for path in (root / "plate/ground_truth/spot").iterdir():
            path.unlink()
        with pytest.raises(BadDataset, match="learns from masks only"):
            run(method, data=(str(root),))
        summary = run("anomaly_clip", "image", data=(str(root),))
        assert set(lines(summary.checkpoint.parent)[0]["terms"]) == {"image"}
        assert summary.thresholds.pixel is None

    def test_one_sided_sets(self, run: Any, tmp_path: Path) -> None:
        with pytest.raises(BadDataset, match="all 5 images are normal"):
            run(data=(str(draw_dataset(tmp_path / "good", anomalous=0)),))
        root = draw_dataset(tmp_path / "bad", normal=0)
        summary = run("vcp_clip", data=(str(root),))
        assert summary.thresholds.image is None
        assert any("all 5 images are anomalous" in text for text in summary.warnings)
        with pytest.raises(BadDataset, match="--strict"):
            run("vcp_clip", "again", data=(str(root),), strict=True)

    def test_files_that_cannot_be_used_are_named_counted_and_skipped(self, run: Any, tmp_path: Path) -> None:
        root = draw_dataset(tmp_path / "odd", normal=6, anomalous=6)
        test, truth = root / "plate/test", root / "plate/ground_truth/spot"
        (test / "good/000.png").write_bytes(b"no picture")
        import numpy as np

        save(np.zeros((48, 48)), truth / "000_mask.png")
        save(np.full((48, 30), 255), truth / "001_mask.png")
        summary = run(data=(str(root),))
        text = " ".join(summary.warnings)
        assert "1 skipped: unreadable" in text
        assert "000.png" in text
        assert "1 skipped: empty mask" in text
        assert "1 skipped: mask size" in text
        assert "5 normal, 4 anomalous" in read_meta(summary.checkpoint).auxiliary

    def test_two_datasets_at_once(self, run: Any, tmp_path: Path, data: Path) -> None:
        other = draw_dataset(tmp_path / "other", ("bolt",))
        summary = run(data=(str(data), str(other)))
        assert "13 normal, 15 anomalous" in read_meta(summary.checkpoint).auxiliary
        with pytest.raises(BadOption, match="one for each"):
            run(out="x", data=(str(data), str(other)), dataset=("mvtec_layout",))

    def test_held_out_classes_are_reported_and_not_learned_from(self, run: Any) -> None:
        shown: list[Any] = []
        summary = run(validate_classes=("ring",), show=shown.append)
        assert "4 normal, 5 anomalous" in read_meta(summary.checkpoint).auxiliary
        reports = [line for line in shown if line["phase"] == "validation"]
        assert len(reports) == 2
        assert set(reports[0]["validation"]) == {"ring"}
        assert 0 <= reports[0]["validation"]["ring"]["pixel_auroc"] <= 1
        with pytest.raises(UnknownName, match="ring"):
            run(out="a", validate_classes=("rnig",))
        with pytest.raises(BadOption, match="every class"):
            run(out="b", validate_classes=("ring", "plate"))

    def test_nothing_to_learn_from(self, run: Any, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(BlemishError, match="empty"):
            run(data=(str(tmp_path / "empty"),))
        with pytest.raises(BadOption, match="--data"):
            run(data=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"schedule": "step"}, "schedule"),
        ({"augmentation": "vpc"}, "vcp"),
        ({"cache": "maybe"}, "cache is 'maybe'"),
        ({"cache": -1}, "cache is -1"),
        ({"betas": (0.5,)}, "betas"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"precision": "int4"}, "precision"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises((BadOption, UnknownName), match=message):
        TrainOptions("anomaly_clip", **options)


def test_no_augmentation_can_be_asked_for(small_backbone: Path) -> None:
    clip = load_clip(small_backbone)
    options, _ = merge_options(TrainOptions, "blemish train", None, {"method": "vcp_clip"}, [])
    assert complete(options, clip).augmentation == "vcp"
    options, _ = merge_options(
        TrainOptions, "blemish train", None, {"method": "vcp_clip", "augmentation": "none"}, []
    )
    assert complete(options, clip).augmentation == "none"
    assert complete(options, clip).copies == 1


def give_anomaly_clip_sgd(monkeypatch: pytest.MonkeyPatch) -> list[torch.optim.Optimizer]:
    """AnomalyCLIP with an optimiser and a schedule of its own; the optimisers it has made."""
    from blemish.methods.anomaly_clip import AnomalyCLIP

    made: list[torch.optim.Optimizer] = []

    def optimiser(self: AnomalyCLIP, learning_rate: float) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(self.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4))
        return made[-1]

    monkeypatch.setattr(AnomalyCLIP, "optimiser", optimiser, raising=False)
    factor = lambda self, progress, epoch, step: 0.25 if epoch == 0 else 1 - progress  # noqa: E731
    monkeypatch.setattr(AnomalyCLIP, "rate_factor", factor, raising=False)
    return made


@pytest.mark.parametrize(("schedule", "second"), [("auto", 0.25), ("linear", 0.9), ("constant", 1.0)])
def test_a_method_may_have_its_own_optimiser_and_schedule(
    schedule: str, second: float, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = give_anomaly_clip_sgd(monkeypatch)
    rates: list[float] = []
    plain = torch.optim.SGD.step

    def step(self: Any, *given: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return plain(self, *given)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    run(learning_rate=0.01, schedule=schedule)
    assert len(made) == 1 and made[0].param_groups[0]["weight_decay"] == 5e-4
    assert rates[1] == pytest.approx(0.01 * second)
    assert rates[-1] == pytest.approx(0.01 * {"auto": 0.1, "linear": 0.1, "constant": 1.0}[schedule])


def test_an_own_optimiser_is_resumed_and_takes_what_it_knows(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = give_anomaly_clip_sgd(monkeypatch)
    whole = run(out="whole", weight_decay=0.01)
    assert made[0].param_groups[0]["weight_decay"] == 0.01

    def interrupt(line: Any) -> None:
        if line["phase"] == "training" and line["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(out="cut", weight_decay=0.01, show=interrupt)
    assert same(weights(run(out="cut", weight_decay=0.01, resume=True)), weights(whole))
    with pytest.raises(BadOption, match="SGD, which has no betas"):
        run(out="other", betas=(0.5, 0.9))


def test_an_infinite_loss_stops_the_run(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from blemish.methods.anomaly_clip import AnomalyCLIP

    plain = AnomalyCLIP.loss
    spoiled = lambda self, *a: plain(self, *a) | {"image": torch.tensor(float("nan"), requires_grad=True)}  # noqa: E731
    monkeypatch.setattr(AnomalyCLIP, "loss", spoiled)
    with pytest.raises(BlemishError, match=r"not finite \(image\)"):
        run()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_complete_and_name_what_exists(path: Path) -> None:
    from blemish.clip.hub import BACKBONES

    options, own = merge_options(TrainOptions, "blemish train", path, {}, [])
    assert options.method in METHODS
    assert options.backbone in BACKBONES
    assert set(options.dataset) <= {*blemish.datasets(), "folder"}
    assert None not in (options.epochs, options.batch_size, options.seed)
    assert options.augmentation != "auto"
    blemish.methods.make_config(options.method, **own)


def test_there_is_a_recipe_for_every_published_training() -> None:
    stems = {path.stem for path in RECIPES}
    for method in ("anomaly_clip", "vcp_clip", "vcp_clip_plus", "vip2_clip", "gen_clip"):
        assert {f"train_{method}_visa", f"train_{method}_mvtec"} <= stems
    assert {"train_anomaly_clip_medical", "train_vip2_clip_medical"} <= stems
