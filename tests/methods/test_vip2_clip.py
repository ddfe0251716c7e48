from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_clip import SIZE, encode, make, pick, target

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.errors import BadOption
from blemish.methods import build, make_config
from blemish.parts.maps import softmax_then_upsample, to_grid
from blemish.types import ImageFeatures, Target

NAME = "vip2_clip"
PATCHES = 15


def large_clip() -> CLIP:
    with torch.device("meta"):
        return CLIP(CLIPConfig())


def test_parameter_count_of_the_authors() -> None:
    method = build(NAME, large_clip())
    assert sum(p.numel() for p in method.parameters()) == 4_149_120
    counts = {
        "normal_context": 5_376,
        "abnormal_context": 5_376,
        "object_tokens": 2_304,
        "meta_bias": 768,
        "meta_nets": 1_772_928,
        "fgp": 2_362_368,
    }
    for part, count in counts.items():
        named = method.named_parameters()
        assert sum(p.numel() for name, p in named if name.split(".")[0] == part) == count
    assert method.blocks == (6, 12, 18, 24) and method.fgp.heads == 8 and method.eot == (12, 12)


def test_ablations_have_no_unused_parameters() -> None:
    clip = large_clip()
    no_vca, no_fgp, neither = (
        sum(p.numel() for p in build(NAME, clip, **options).parameters())
        for options in ({"use_vca": False}, {"use_fgp": False}, {"use_vca": False, "use_fgp": False})
    )
    assert (no_vca, no_fgp, neither) == (4_149_120 - 768 - 1_772_928, 4_149_120 - 2_362_368, 13_056)


def test_start_of_the_authors() -> None:
    method = build(NAME, large_clip()).to_empty(device="cpu")
    method.reset(torch.Generator().manual_seed(0))
    words = torch.cat([p.flatten() for p in (method.normal_context, method.abnormal_context)])
    assert words.std().item() == pytest.approx(0.02, rel=0.05)
    bound = 768**-0.5
    for layer in (method.fgp.key, method.fgp.out, method.meta_nets[1][0]):
        for tensor in (layer.weight, layer.bias):
            assert 0.98 * bound < tensor.abs().max() <= bound
    assert method.meta_nets[2][2].weight.abs().max() > bound


def shuffled(features: ImageFeatures) -> ImageFeatures:
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(PATCHES)])
    tokens = {"qk": tuple(t[:, order] for t in features.tokens["qk"])}
    return ImageFeatures(features.class_feature, tokens, features.grid, features.image_size)


@torch.no_grad()
def test_order_of_patches_matters_to_the_map_only(clip: CLIP) -> None:
    method = make(clip, (NAME, {"top_k": 4}))
    features = encode(clip, method, 3)
    first, second = method(features), method(shuffled(features))
    for a, b in zip(first.details["layer_text"], second.details["layer_text"], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    torch.testing.assert_close(first.score, second.score, atol=1e-5, rtol=0)
    assert (first.map - second.map).abs().max() > 1e-5


@torch.no_grad()
def test_text_follows_the_image_with_vca_only(clip: CLIP) -> None:
    method = make(clip, (NAME, {}))
    text = method(encode(clip, method, 2)).details["text_features"]
    assert text.shape == (2, 2, 28) and (text[0] - text[1]).abs().max() > 1e-5
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(2, 2))
    without = make(clip, (NAME, {"use_vca": False}))
    features = encode(clip, without, 2)
    text = without(features).details["text_features"]
    assert text.shape == (1, 2, 28)
    assert torch.equal(without(encode(clip, without, 2, seed=7)).details["text_features"], text)
    torch.testing.assert_close(without.text_features(without.object_tokens[None]), text * _norm(without))


def _norm(method: torch.nn.Module) -> torch.Tensor:
    return method.text_features(method.object_tokens[None]).norm(dim=-1, keepdim=True)


def test_both_states_share_the_dynamic_tokens(clip: CLIP) -> None:
    method = make(clip, (NAME, {"n_static": 2, "n_dynamic": 4}))
    dynamic = method.dynamic_tokens(torch.randn(3, 28))
    prompts = method.prompts(dynamic, 12)
    assert dynamic.shape == (3, 4, 20) and prompts.shape == (3, 2, 12, 20)
    words = clip.embed(torch.tensor([49406, 886, 13568, 49407, 0]))
    for i, (context, word) in enumerate(((method.normal_context, 1), (method.abnormal_context, 2))):
        for row, vectors in zip(prompts[:, i], dynamic, strict=True):
            expected = torch.cat(
                [words[:1], context, words[[word]], vectors, words[3:4], words[4:].expand(3, -1)]
            )
            torch.testing.assert_close(row, expected)
    assert method.prompts(dynamic).shape[2] == 9


@torch.no_grad()
def test_dynamic_tokens_are_a_residual_network_of_the_unit_feature(clip: CLIP) -> None:
    method = make(clip, (NAME, {}))
    feature = torch.randn(2, 28)
    shifted = feature / feature.norm(dim=-1, keepdim=True) + method.meta_bias
    got = method.dynamic_tokens(5 * feature)
    for i, net in enumerate(method.meta_nets):
        hidden = (shifted @ net[0].weight.T + net[0].bias).clamp_min(0)
        assert hidden.shape == (2, 14)
        torch.testing.assert_close(
            got[:, i], method.object_tokens[i] + hidden @ net[2].weight.T + net[2].bias
        )


@torch.no_grad()
def test_legacy_prompts_both_say_the_abnormal_word(clip: CLIP) -> None:
    legacy = make(clip, (NAME, {"legacy_state_word": True}))
    default = make(clip, (NAME, {}))
    assert [t.ids[1] for t in default.templates] == [886, 13568]
    assert [t.ids[1] for t in legacy.templates] == [13568, 13568]
    features = encode(clip, default, 1)
    a, b = (m(features).details["text_features"][0] for m in (default, legacy))
    assert torch.equal(a[1], b[1]) and (a[0] - b[0]).abs().max() > 1e-5


@torch.no_grad()
def test_state_words_of_different_length(clip: CLIP) -> None:
    method = make(clip, (NAME, {"state_words": ["flawless", "badly broken and bent"]}))
    assert method.eot == (11 + len(method.templates[0].ids[1:-4]), 15)
    whole = method.prompts(method.dynamic_tokens(torch.ones(1, 28)), 77)
    alone = torch.stack(
        [clip.encode_embeddings(whole[:, i], eot, crop=False)[0] for i, eot in enumerate(method.eot)]
    )
    got = method.text_features(method.dynamic_tokens(torch.ones(1, 28)))[0]
    torch.testing.assert_close(got, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_cropping_the_text_changes_nothing(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(clip, (NAME, {}))
    dynamic = method.dynamic_tokens(torch.randn(3, 28))
    short = method.text_features(dynamic)
    encode_embeddings = CLIP.encode_embeddings

    def whole(self: CLIP, embeddings: torch.Tensor, eot: torch.Tensor) -> torch.Tensor:
        padded = F.pad(embeddings, (0, 0, 0, 77 - embeddings.shape[1]))
        return encode_embeddings(self, padded, eot, crop=False)

    monkeypatch.setattr(CLIP, "encode_embeddings", whole)
    torch.testing.assert_close(method.text_features(dynamic), short, atol=1e-5, rtol=0)


@torch.no_grad()
def test_maps_of_both_classes_add_up_to_one(clip: CLIP) -> None:
    method = make(clip, (NAME, {"sigma": 0.0}))
    features = encode(clip, method, 2)
    prediction = method(features)
    total = torch.zeros(2, *SIZE)
    for cosines in prediction.details["cosines"]:
        maps = softmax_then_upsample(cosines / 0.07, features.grid, features.image_size)
        torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, *SIZE))
        total += (1 - maps[:, 0] + maps[:, 1]) / 2
    torch.testing.assert_close(prediction.map, total / 4)


@torch.no_grad()
def test_pooling_takes_the_most_abnormal_patches(clip: CLIP) -> None:
    method = make(clip, (NAME, {"top_k": 4}))
    features = encode(clip, method, 3)
    details = method(features).details
    pooled = torch.zeros(3, 2)
    for cosines, selected in zip(details["cosines"], details["selected"], strict=True):
        abnormal = (cosines / 0.07).softmax(dim=-1)[..., 1]
        for i in range(3):
            best = abnormal[i].argsort(descending=True)[:4]
            assert set(best.tolist()) == set(selected[i].tolist())
            pooled[i] += cosines[i, best].sum(dim=0) / 16
    torch.testing.assert_close(details["image_cosines"][:, 0], pooled)
    torch.testing.assert_close(method(features).score, (pooled / 0.07).softmax(dim=-1)[:, 1])


@pytest.mark.parametrize("mode", ["mean_logits", "per_layer"])
@torch.no_grad()
def test_all_patches_and_more(clip: CLIP, mode: str) -> None:
    every = make(clip, (NAME, {"top_k": PATCHES, "utpa_mode": mode}))
    features = encode(clip, every, 3)
    prediction = every(features)
    more = make(clip, (NAME, {"top_k": 1369, "utpa_mode": mode}))(features)
    torch.testing.assert_close(more.score, prediction.score)
    if mode == "mean_logits":
        cosines = torch.stack(prediction.details["cosines"]).mean(dim=(0, 2))
        torch.testing.assert_close(prediction.score, (cosines / 0.07).softmax(dim=-1)[:, 1])


@torch.no_grad()
def test_score_per_layer_is_the_papers(clip: CLIP) -> None:
    method = make(clip, (NAME, {"preset": "paper", "top_k": 3}))
    assert method.fgp.heads == 1 and method.fgp.scale == pytest.approx(28**-0.5)
    features = encode(clip, method, 2)
    prediction = method(features)
    details = prediction.details
    probability, cross_entropy = torch.zeros(2), torch.zeros(())
    label = torch.tensor([0, 1])
    for patches, text, cosines in zip(
        details["patches"], details["layer_text"], details["cosines"], strict=True
    ):
        for i in range(2):
            best = (cosines[i, :, 1] - cosines[i, :, 0]).argsort(descending=True)[:3]
            mean = patches[i, best].mean(dim=0)
            logits = (mean / mean.norm()) @ text[i].T / 0.07
            probability[i] += logits.softmax(dim=-1)[1] / 4
            cross_entropy -= logits.log_softmax(dim=-1)[label[i]] / 2
    torch.testing.assert_close(prediction.score, probability)
    terms = method.loss(features, Target(label))
    assert list(terms) == ["image"]
    torch.testing.assert_close(terms["image"], cross_entropy)


@torch.no_grad()
def test_without_utpa_the_class_feature_decides(clip: CLIP) -> None:
    method = make(clip, (NAME, {"use_utpa": False}))
    features = encode(clip, method, 3)
    prediction = method(features)
    unit = F.normalize(features.class_feature, dim=-1)
    logits = torch.einsum("bd,bkd->bk", unit, prediction.details["text_features"]) / 0.07
    torch.testing.assert_close(prediction.score, logits.softmax(dim=-1)[:, 1])
    assert prediction.details["selected"] == ()
    torch.testing.assert_close(prediction.map, make(clip, (NAME, {}))(features).map)


@torch.no_grad()
def test_without_fgp_the_texts_stay(clip: CLIP) -> None:
    method = make(clip, (NAME, {"use_fgp": False}))
    details = method(encode(clip, method, 2)).details
    assert all(torch.equal(text, details["text_features"]) for text in details["layer_text"])
    assert not any(name.startswith("fgp") for name in method.state_dict())


@torch.no_grad()
def test_smoothed_patches_are_means_of_neighbours(clip: CLIP) -> None:
    method = make(clip, (NAME, {"patch_smoothing": "avg3"}))
    features = encode(clip, method, 2)
    got = to_grid(method(features).details["patches"][1], features.grid)
    plain = F.normalize(features.tokens["qk"][1][:, 1:], dim=-1)
    grid = to_grid(plain, features.grid)
    rows = features.grid[0]
    for r, c in ((0, 0), (1, 1), (rows - 1, 2)):
        near = grid[:, :, max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].mean(dim=(2, 3))
        torch.testing.assert_close(got[:, :, r, c], F.normalize(near, dim=-1))


def test_loss_names_its_terms_and_weighs_them(clip: CLIP) -> None:
    method = make(clip, (NAME, {"layers": (2, 1.0)}))
    features = encode(clip, method, 2)
    terms = method.loss(features, target(2))
    assert sorted(terms) == sorted(
        ["image", *(f"{k}.{b}" for k in ("focal", "dice_abnormal", "dice_normal") for b in (2, 4))]
    )
    doubled = make(clip, (NAME, {"layers": (2, 1.0), "lambda_local": 2.0})).loss(features, target(2))
    for name, term in terms.items():
        torch.testing.assert_close(doubled[name], term if name == "image" else 2 * term)


def test_image_labels_alone_teach_what_they_reach(clip: CLIP) -> None:
    features, unmasked = encode(clip, make(clip, (NAME, {})), 2), Target(target(2).label)
    assert list(make(clip, (NAME, {})).loss(features, unmasked)) == ["image"]
    with pytest.raises(ValueError, match="learns ViP-FGP from masks only"):
        make(clip, (NAME, {"use_utpa": False})).loss(features, unmasked)
    neither = make(clip, (NAME, {"use_utpa": False, "use_fgp": False}))
    assert list(neither.loss(features, unmasked)) == ["image"]


def test_selection_passes_gradients_of_the_gathered_values_only(clip: CLIP) -> None:
    method = make(clip, (NAME, {"top_k": 2, "use_fgp": False}))
    features = pick(encode(clip, method, 1), [0])
    leaves = [t.detach().requires_grad_() for t in features.tokens["qk"]]
    features = ImageFeatures(
        features.class_feature, {"qk": tuple(leaves)}, features.grid, features.image_size
    )
    method.loss(features, Target(torch.ones(1)))["image"].backward()
    chosen = method(features).details["selected"]
    for leaf, index in zip(leaves, chosen, strict=True):
        touched = leaf.grad[0].abs().sum(dim=-1).nonzero().flatten() - 1
        assert sorted(touched.tolist()) == sorted(index[0].tolist())


def test_rates_of_the_authors(clip: CLIP) -> None:
    groups = make(clip, (NAME, {})).parameter_groups()
    assert [g["lr"] for g in groups] == pytest.approx([1e-3, 1e-5])
    assert [len(g["params"]) for g in groups] == [16, 8]
    assert [g["lr"] for g in make(clip, (NAME, {"preset": "paper"})).parameter_groups()] == [1e-3, 1e-3]
    assert len(make(clip, (NAME, {"use_fgp": False})).parameter_groups()) == 1
    assert len(make(clip, (NAME, {"use_fgp": False, "use_vca": False})).parameter_groups()[0]["params"]) == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"state_words": ["good"]}, "expected two words"),
        ({"state_words": ["good", " "]}, "expected two words"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"utpa_mode": "max"}, "choose from 'mean_logits', 'per_layer'"),
        ({"fgp_scale": "sqrt"}, "choose from 'none', 'sqrt_dim'"),
    ],
)
def test_impossible_options_are_named(options: dict, text: str) -> None:
    with pytest.raises(BadOption) as caught:
        make_config(NAME, **options)
    assert text in str(caught.value)


def test_prompts_longer_than_the_context_are_refused(clip: CLIP) -> None:
    assert build(NAME, clip, n_static=71).eot == (76, 76)
    with pytest.raises(BadOption, match="78 tokens and vectors is longer than the context of 77"):
        build(NAME, clip, n_static=72)
    with pytest.raises(BadOption, match="longer than the context"):
        build(NAME, clip, n_dynamic=80)
