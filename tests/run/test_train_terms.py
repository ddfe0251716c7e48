"""Loss terms over parts of a batch, and methods that learn inside the image tower."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import blemish
from blemish.checkpoint import read_meta
from blemish.clip.weights import load_clip
from blemish.errors import BadOption
from blemish.methods import build
from blemish.run import train as training
from blemish.run.processes import Processes
from blemish.run.recipe import TrainOptions, complete
from blemish.run.train import loss_terms
from run.training_runs import INSIDE, METHOD_NAMES, same, weights


class TestTerms:
    @pytest.fixture
    def batches(self, small_backbone: Path, data: Path) -> Any:
        def make(method: str, processes: Processes, count: int = 6) -> tuple[Any, Any]:
            clip = load_clip(small_backbone).freeze()
            torch.manual_seed(0)
            own = {"dropout": 0.0} if method.startswith("vcp_clip") else {}
            built = build(method, clip, **own)
            options = TrainOptions(
                method,
                (str(data),),
                backbone=str(small_backbone),
                image_size=48,
                batch_size=count,
                cache="off",
            )
            recipe = dataclasses.replace(complete(options, clip), augmentation="none")
            samples = training.gather(recipe, True).samples
            return built, training._batches(recipe, clip, built, samples, processes)

        return make

    @pytest.mark.parametrize("method", METHOD_NAMES)
    @pytest.mark.parametrize("count", [6, 5])
    def test_parts_of_a_batch_add_up_to_the_whole(self, method: str, count: int, batches: Any) -> None:
        built, whole = batches(method, Processes(), count)
        batch = next(whole.epoch(0))
        expected = loss_terms(built, batch)
        sum(expected.values()).backward()
        gradients = {n: p.grad.clone() for n, p in built.named_parameters() if p.grad is not None}
        built.zero_grad()
        total: dict[str, float] = {}
        for rank in range(2):
            sharing = batches(method, Processes(rank, 2, rank), count)[1]
            sharing.encoder = whole.encoder  # gradients go to `built` also where they go through the encoder
            part = next(sharing.epoch(0))
            terms = loss_terms(built, part)
            sum(terms.values()).backward()
            for name, value in terms.items():
                total[name] = total.get(name, 0.0) + float(value)
        assert total == pytest.approx(
            {name: float(value) for name, value in expected.items()}, rel=1e-4, abs=1e-6
        )
        for name, parameter in built.named_parameters():
            if name in gradients:
                rounding = 1e-6 + 1e-4 * float(gradients[name].abs().max())
                torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=rounding)

    @pytest.mark.parametrize("method", METHOD_NAMES)
    @pytest.mark.parametrize("kind", [torch.bfloat16])
    def test_losses_are_fp32_under_autocast(self, method: str, kind: torch.dtype, batches: Any) -> None:
        built, whole = batches(method, Processes())
        batch = next(whole.epoch(0))
        exact, rough = loss_terms(built, batch), loss_terms(built, batch, kind)
        assert {term.dtype for term in rough.values()} == {torch.float32}
        total, close = float(sum(exact.values())), float(sum(rough.values()))
        # Cosines scaled by 100 in an image loss alone (CoOp) carry the roundings of half precision furthest.
        assert close == pytest.approx(total, rel=0.05 if method == "coop" else 0.02)
        assert close != total


@pytest.mark.parametrize("method", INSIDE)
class TestInsideTheTower:
    """Methods that learn inside the image tower: no cache, gradients through the encoder, one result everywhere."""

    def test_what_the_encoder_learns(self, method: str, run: Any, small_backbone: Path, data: Path) -> None:
        summary = run(method, "learned", cache="auto")
        assert "encoded in every epoch" in read_meta(summary.checkpoint).notes
        # An earlier stage may learn from a cache.
        staged = hasattr(blemish.methods.method_class(method), "stages")
        assert staged or not list(summary.checkpoint.parent.parent.glob("cache/*"))
        learned, plain = weights(summary), weights(run(method, "short", cache="auto", epochs=1))
        moved = {name for name in learned if not torch.equal(learned[name], plain[name])}
        assert moved & {"static_visual", "image.adapters.0.linear.weight"}

    def test_a_cache_is_refused(self, method: str, run: Any) -> None:
        with pytest.raises(BadOption, match="learns inside the image tower"):
            run(method, cache="on")

    def test_a_resumed_run_ends_with_the_same_bits(self, method: str, run: Any) -> None:
        def interrupt(line: Any) -> None:
            if line["phase"] == "training" and line["step"] == 7:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(method, "cut", show=interrupt)
        assert same(weights(run(method, "cut", resume=True)), weights(run(method, "whole")))

    def test_evaluation_and_detector_agree(
        self, method: str, run: Any, small_backbone: Path, data: Path
    ) -> None:
        from blemish.data.layouts import open_dataset
        from blemish.run.scoring import Scored, Scorer

        made = {name: run(name, name, epochs=1).checkpoint for name in (method, "vcp_clip")}
        one = blemish.load(checkpoint=made[method], backbone=small_backbone, class_name="plate")
        other = blemish.load(checkpoint=made["vcp_clip"], backbone=small_backbone)
        other.clip = one.clip  # one group of network inputs
        sample = open_dataset(data).samples[0]
        scorer = Scorer({"inside": one, "frozen": other}, {}, lambda _: "plate")
        assert sorted(scorer.shared_by.values()) == [1, 1]
        ((_, outcome),) = scorer.score([scorer.prepare(sample, with_mask=False)])
        for label, detector in (("inside", one), ("frozen", other)):
            found, result = outcome[label], detector.predict(sample.image)
            assert isinstance(found, Scored)
            assert found.score == pytest.approx(result.score, abs=1e-5)
            assert abs(found.map - result.map).max() < 1e-4
