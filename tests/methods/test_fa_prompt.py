"""FAPrompt against plain loops, its counts, and where its gradients go."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_clip import SIZE, encode, make, pick, target

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP, DeepPrompts
from blemish.errors import BadCheckpoint, BadOption
from blemish.methods import build, make_config
from blemish.methods.official import read_official, recognise, to_official, write_official
from blemish.parts.maps import gaussian_blur
from blemish.types import ImageFeatures, Target

TAU = 0.07


def plain_text(clip: CLIP, method: Any, vectors: torch.Tensor, end: str) -> torch.Tensor:
    """Raw feature of "X .. X <end>" with `vectors` in the places of the X, the whole context encoded."""
    ids = clip.tokenizer(" ".join(["X"] * len(vectors)) + f" {end}", 77)  # type: ignore[misc]
    embeddings = clip.token_embedding(ids).clone()
    embeddings[0, 1 : 1 + len(vectors)] = vectors
    deep = DeepPrompts([None, *method.deep_tokens])
    return clip.encode_embeddings(embeddings, int(ids[0].argmax()), deep=deep, crop=False)[0]


def plain_pair(clip: CLIP, method: Any, prior: Any = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The normal and the abnormal unit text."""
    normal = plain_text(clip, method, method.words, "object.")
    each = [
        plain_text(clip, method, torch.cat([method.words, own + prior]), "damaged object.")
        for own in method.abnormal_words
    ]
    return F.normalize(normal, dim=0), F.normalize(torch.stack(each).mean(dim=0), dim=0)


def abnormal(feature: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor]) -> float:
    n, a = (float(F.cosine_similarity(feature, text, dim=0)) / TAU for text in pair)
    return 1 / (1 + math.exp(n - a))


def plain_prior(method: Any, rows: list[torch.Tensor]) -> torch.Tensor:
    first, _, second = method.prior_net
    hidden = first.weight @ torch.cat([F.normalize(row, dim=0) for row in rows]) + first.bias
    return second.weight @ hidden.clamp_min(0) + second.bias


def fresh(clip: CLIP, **options: Any) -> Any:
    """With words and tokens large enough to count: the real ones start near zero."""
    made = make(clip, ("fa_prompt", options))
    with torch.no_grad():
        for parameter in (made.words, made.abnormal_words, made.deep_tokens):
            parameter.mul_(10)
    return made


@pytest.mark.parametrize(
    "options", [{}, {"fap_prior": "first10", "prior_patches": 3, "abnormal_prompts": 4}], ids=str
)
@torch.no_grad()
def test_against_a_plain_loop(clip: CLIP, options: dict[str, Any]) -> None:
    method = fresh(clip, **options)
    features = encode(clip, method, 2)
    got = method(features)
    static = plain_pair(clip, method)
    torch.testing.assert_close(got.details["static_text_features"][0], torch.stack(static))
    count = options.get("prior_patches", 10)
    for i in range(2):
        patches = list(features.tokens["vv"][0][i, 1:])
        values = [abnormal(p, static) for p in patches]
        order = sorted(range(len(patches)), key=lambda n: -values[n])
        if options.get("fap_prior") == "first10":
            order = list(range(len(patches)))
        prior = plain_prior(method, [patches[n] for n in order[:count]])
        torch.testing.assert_close(got.details["prior"][i], prior)
        pair = plain_pair(clip, method, prior)
        torch.testing.assert_close(got.details["text_features"][i], torch.stack(pair))
        maps = [
            F.interpolate(torch.tensor(v).view(1, 1, *features.grid), size=SIZE, mode="bilinear")[0, 0]
            for v in (values, [abnormal(p, pair) for p in patches])
        ]
        mixed = (maps[0] + 1 - (1 - maps[0]) + maps[1] + 1 - (1 - maps[1])) / 4
        torch.testing.assert_close(got.map[i], gaussian_blur(mixed, 10.0), atol=1e-5, rtol=0)
        of_class = abnormal(features.class_feature[i], pair)
        score = (of_class + (2 * float(maps[0].max()) + float(maps[1].max())) / 3) / 2
        assert float(got.score[i]) == pytest.approx(score, abs=1e-5)


@torch.no_grad()
def test_no_prior_no_second_opinion(clip: CLIP) -> None:
    method = fresh(clip)
    features = encode(clip, method, 3)
    found = method(features).details
    assert (found["first_map"] - found["second_map"]).abs().max() > 1e-5
    method.prior_net[2].weight.zero_()
    method.prior_net[2].bias.zero_()
    found = method(features).details
    assert torch.equal(found["prior"], torch.zeros(3, 20))
    torch.testing.assert_close(found["second_map"], found["first_map"], atol=1e-6, rtol=0)
    torch.testing.assert_close(found["text_features"], found["static_text_features"].expand(3, -1, -1))


@torch.no_grad()
def test_the_most_abnormal_patches_make_the_prior(clip: CLIP) -> None:
    """Patches may be swapped with everything they stand for, but not under the published code's prior."""
    for prior, same in (("top", True), ("first10", False)):
        method = fresh(clip, fap_prior=prior, prior_patches=3)
        features = encode(clip, method, 1)
        tokens = features.tokens["vv"][0]
        turned = torch.cat([tokens[:, :1], tokens[:, 1:].flip(1)], dim=1)
        other = ImageFeatures(features.class_feature, {"vv": (turned,)}, features.grid, features.image_size)
        a, b = method(features).details["prior"], method(other).details["prior"]
        assert torch.allclose(a, b, atol=1e-6) == same


@torch.no_grad()
def test_fewer_patches_than_the_prior_wants(clip: CLIP) -> None:
    method = fresh(clip, prior_patches=40)
    features = encode(clip, method, 2)  # 15 patches
    prediction = method(features)
    assert torch.isfinite(prediction.map).all()
    first = method.prior_net[0]
    kept = torch.zeros_like(first.weight)
    kept[:, : 15 * 28] = first.weight[:, : 15 * 28]
    first.weight.copy_(kept)
    torch.testing.assert_close(method(features).map, prediction.map)


def test_loss_by_hand(clip: CLIP) -> None:
    method = fresh(clip).train()
    features, truth = encode(clip, method, 4), target(4)
    terms = {name: float(value.detach()) for name, value in method.loss(features, truth).items()}
    with torch.no_grad():
        got = method.eval()(features)
        text, prior = got.details["text_features"], got.details["prior"]
        each = [
            plain_text(clip, method, torch.cat([method.words, own]), "damaged object.")
            for own in method.abnormal_words
        ]
    scores = [float(s) for s in got.score]
    of_class = [abnormal(features.class_feature[i], tuple(text[i])) for i in range(4)]
    labels = truth.label.tolist()
    right = [p if y else 1 - p for p, y in zip(of_class, labels, strict=True)]
    assert terms["image"] == pytest.approx(-sum(map(math.log, right)) / 4, rel=1e-4)
    right = [p if y else 1 - p for p, y in zip(scores, labels, strict=True)]
    expected = -sum((1 - p) ** 2 * math.log(p) for p in right) / 4
    assert terms["image_focal"] == pytest.approx(expected, rel=1e-4)
    pairs = list(itertools.combinations(each, 2))
    assert len(pairs) == 45
    overlap = sum(abs(float(F.cosine_similarity(a, b, dim=0))) for a, b in pairs)
    assert terms["image_orthogonal"] == pytest.approx(0.1 * overlap, rel=1e-4)
    squares = sum(float(prior[i].square().mean()) for i in range(4) if not labels[i])
    assert terms["image_prior"] == pytest.approx(8 * squares / 4, rel=1e-4)
    maps, mask = got.details["second_map"], truth.mask
    assert mask is not None
    overlaps = [(2 * (m * g).sum() + 1) / (m.sum() + g.sum() + 1) for m, g in zip(maps, mask, strict=True)]
    assert terms["dice_abnormal.second"] == pytest.approx(0.5 * float(1 - sum(overlaps) / 4), rel=1e-4)
    assert list(terms)[4:] == [
        f"{kind}.{name}" for name in ("first", "second") for kind in ("focal", "dice_abnormal", "dice_normal")
    ]


def test_published_focal_takes_the_score_for_a_logit(clip: CLIP) -> None:
    plain, published = fresh(clip), fresh(clip, fap_double_sigmoid=True)
    published.load_state_dict(plain.state_dict())
    features, truth = encode(clip, plain, 2), Target(torch.tensor([1, 1]))
    with torch.no_grad():
        scores = plain(features).score.sigmoid()
        found = published.loss(features, truth)["image_focal"]
    torch.testing.assert_close(found, -((1 - scores) ** 2 * scores.log()).mean())


@torch.no_grad()
def test_the_prior_is_pulled_to_zero_on_normal_images_alone(clip: CLIP) -> None:
    method = fresh(clip)
    features = encode(clip, method, 2)
    assert float(method.loss(features, Target(torch.ones(2)))["image_prior"]) == 0
    assert float(method.loss(features, Target(torch.zeros(2)))["image_prior"]) > 0
    halves = [method.loss(pick(features, [i]), Target(torch.zeros(1)))["image_prior"] for i in (0, 1)]
    whole = method.loss(features, Target(torch.zeros(2)))["image_prior"]
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2)


def test_sizes_on_the_papers_backbone() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    method = build("fa_prompt", large)
    assert sum(p.numel() for p in method.parameters()) == 4_100_064
    assert sum(p.numel() for p in method.prior_net.parameters()) == 4_056_288
    assert method.prior_net[0].weight.shape == (480, 7680)
    assert method.deep_tokens.shape == (8, 4, 768)
    assert method.needs.cacheable and not method.needs.class_ln_post


def test_published_preset() -> None:
    made = make_config("fa_prompt", "published")
    assert made.fap_prior == "first10" and made.fap_double_sigmoid


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_ctx": 3}, "t_n_ctx is 4"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"fap_prior": "last"}, "prior is 'last'"),
        ({"abnormal_prompts": 0}, "abnormal_prompts"),
        ({"sigma": -1.0}, "sigma"),
    ],
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadOption, match=text):
        make_config("fa_prompt", **options)


@torch.no_grad()
def test_authors_files_round_trip(clip: CLIP, tmp_path: Path) -> None:
    method = fresh(clip, abnormal_prompts=4, n_ctx=6)
    path = tmp_path / "epoch_7.pth"
    write_official(method, path)
    content = to_official(method)["prompt_learner"]
    assert content["ctx_pos"].shape == (1, 1, 6, 20) and content["ctx_neg"].shape == (1, 4, 2, 20)
    assert content["patch_meta_net.linear1.weight"].shape == (17, 280)
    info = recognise(path)
    assert info is not None and info.method == "fa_prompt" and info.text_width == 20
    assert info.options == {
        "n_ctx": 6,
        "abnormal_prompts": 4,
        "abnormal_words": 2,
        "depth": 3,
        "t_n_ctx": 4,
    }
    # The authors save projections and buffers that nothing uses.
    torch.save({"prompt_learner": {**content, "compound_prompt_projections.0.bias": torch.ones(896)}}, path)
    other = read_official(path, clip)
    features = encode(clip, method, 2)
    assert torch.equal(other(features).map, method.eval()(features).map)
    torch.save({"prompt_learner": {k: v for k, v in content.items() if "linear2" not in k}}, path)
    with pytest.raises(BadCheckpoint, match=r"patch_meta_net\.linear2\.weight"):
        read_official(path, clip)
