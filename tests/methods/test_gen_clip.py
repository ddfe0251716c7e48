"""GenCLIP: the acceptance checks of its specification, small cases by hand, and every option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_clip import SIZE, encode, make, pick, target

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP, DeepPrompts
from blemish.errors import BadOption
from blemish.methods import build, make_config, presets
from blemish.parts.losses import dice, focal
from blemish.types import Target

NAME = "gen_clip"


def randomised(clip: CLIP, **options: Any) -> Any:
    """A method whose learned words are as large as CLIP's, so that they make a difference."""
    method = make(clip, (NAME, options))
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for tokens in (method.state_tokens, method.query_tokens, method.deep_prompts):
            tokens.copy_(torch.randn(tokens.shape, generator=generator))
    return method


def test_parameter_count() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    method = build(NAME, large)
    assert sum(p.numel() for p in method.parameters()) == 6_309_888
    assert all(p.requires_grad for p in method.parameters())
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in method.named_children()}
    assert counts == {"text_heads": 3_148_800, "image_heads": 3_148_800}
    assert method.state_tokens.numel() == method.query_tokens.numel() == 1_536
    assert method.deep_prompts.numel() == 9_216 and method.blocks == (6, 12, 18, 24)
    assert method.needs.position_resize == "bicubic" and not method.needs.projected


def test_layout_of_the_prompts(clip: CLIP) -> None:
    """Start, learned word, photo of a, state, class, (queries), end."""
    normal, abnormal = make(clip, (NAME, {})).prompts("object")
    sot, eot = 49406, 49407
    photo, of, a = 1125, 539, 320
    assert normal.head == (sot, 0, photo, of, a, 886, 14115) and normal.place == 1
    assert abnormal.head == (sot, 0, photo, of, a, 13568, 14115) and abnormal.tail == (eot,)
    both = make(clip, (NAME, {"keep_leading_a": True, "trailing_object": True, "trailing_period": True}))
    prompt = both.prompts("pcb1")[0]
    assert prompt.head[:4] == (sot, a, 0, photo) and prompt.place == 2
    assert prompt.tail == (14115, 269, eot)
    assert make(clip, (NAME, {"state_words": ["perfect", "flawed"]})).prompts("x")[0].head[5] == 1878


def test_long_class_names_are_cut(clip: CLIP) -> None:
    method = make(clip, (NAME, {}))
    name = "screw " * 100
    prompt = method.prompts(name)[0]
    assert len(prompt.head) == 6 + 60 and prompt.tail == (49407,)
    crowded = make(clip, (NAME, {"n_query": 30}))
    assert len(crowded.prompts(name)[0]) + 30 == 77
    text = crowded.text_features([name, "a"])
    assert text.shape == (1, 2, 2, 28) and torch.isfinite(text).all()
    with pytest.raises(BadOption, match="n_query = 75"):
        build(NAME, clip, n_query=75)


@torch.no_grad()
@pytest.mark.parametrize("deep_mode", ["insert", "overwrite"])
def test_text_by_hand(clip: CLIP, deep_mode: str) -> None:
    """One prompt written out: words, learned vectors, deep prompts, no cropping."""
    method = randomised(clip, deep_mode=deep_mode)
    vision = torch.randn(4, 2, 20)
    got = method.text_features(["pcb1", "pipe fryum"], vision)
    assert got.shape == (4, 2, 2, 28)
    tokenizer = clip.tokenizer
    assert tokenizer is not None
    ids = torch.zeros(76, dtype=torch.long)
    words = tokenizer.encode("photo of a damaged pcb1")
    ids[: 2 + len(words)] = torch.tensor([tokenizer.sot, 0, *words])
    first = 2 + len(words)
    ids[first + 2] = tokenizer.eot
    row = clip.embed(ids)
    row[1] = method.state_tokens[1]
    row[first : first + 2] = method.query_tokens + vision[2, 0]
    deep = list(method.deep_prompts)
    deep_prompts = DeepPrompts(deep, insert=True) if deep_mode == "insert" else DeepPrompts([None, *deep])
    expected = clip.encode_embeddings(row[None], first + 2, deep=deep_prompts, crop=False)
    torch.testing.assert_close(got[2, 0, 1], F.normalize(expected[0], dim=-1), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["all", "patch", "cls"])
@pytest.mark.parametrize("norm", ["none", "layernorm"])
def test_vision_prompts_by_hand(clip: CLIP, pool: str, norm: str) -> None:
    method = make(clip, (NAME, {"mvp_pool": pool, "mvp_norm": norm}))
    features = encode(clip, method, 2)
    tokens = features.tokens["qk"][1]
    pooled = {"all": tokens.mean(1), "patch": tokens[:, 1:].mean(1), "cls": tokens[:, 0]}[pool]
    if norm == "layernorm":
        centred = pooled - pooled.mean(-1, keepdim=True)
        pooled = centred / (pooled.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    head = method.text_heads[1]
    expected = pooled @ head.weight.T + head.bias
    torch.testing.assert_close(method.vision_prompts(features)[1], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_vision_prompt_for_all_layers(clip: CLIP) -> None:
    method = make(clip, (NAME, {"preset": "final_token"}))
    assert len(method.text_heads) == 1 and len(method.image_heads) == 4
    features = encode(clip, method, 2)
    found = method.vision_prompts(features)
    assert found.shape == (4, 2, 20) and torch.equal(found[0], found[3])
    torch.testing.assert_close(found[0], method.text_heads[0](features.tokens["qk"][-1][:, 0]))


@torch.no_grad()
def test_query_branch_is_the_same_for_all(clip: CLIP) -> None:
    method = randomised(clip)
    first = method(encode(clip, method, 2), ["pcb1", "pcb2"]).details["query_features"]
    other = method(encode(clip, method, 3, seed=8)).details["query_features"]
    assert first.shape == (2, 28) and torch.equal(first, other)
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(2))


@torch.no_grad()
def test_without_vision_prompts_the_branches_agree(clip: CLIP) -> None:
    method = randomised(clip, use_mvp=False)
    assert len(method.text_heads) == 0
    features = encode(clip, method, 2)
    details = method(features, ["object", "Object"]).details
    for text in details["text_features"].flatten(0, 1):
        assert torch.equal(text, details["query_features"])
    assert torch.equal(details["vision_map"], details["query_map"])
    unfiltered = randomised(clip, use_mvp=False, use_cnf=False)
    named = unfiltered(features, ["object", "screw"]).details["text_features"]
    assert torch.equal(named[0, 0], details["query_features"])
    assert (named[1, 0] - named[0, 0]).abs().max() > 1e-4


@torch.no_grad()
def test_weights_of_the_branches(clip: CLIP) -> None:
    method = randomised(clip, use_cnf=False, sigma=0.0)
    features, names = encode(clip, method, 2), ["screw", "pcb1"]
    mixed = method(features, names)
    vision, query = mixed.details["vision_map"], mixed.details["query_map"]
    torch.testing.assert_close(mixed.map, 0.8 * vision + 0.2 * query)

    def of(alpha: float, names: list[str]) -> Any:
        return randomised(clip, use_cnf=False, sigma=0.0, alpha=alpha)(features, names)

    assert torch.equal(of(0.0, names).map, of(0.0, ["wood", "x"]).map)
    assert torch.equal(of(0.0, names).map, query) and torch.equal(of(1.0, names).map, vision)
    assert (of(1.0, names).map - of(1.0, ["wood", "x"]).map).abs().max() > 1e-5
    assert "query_map" not in of(1.0, names).details and "vision_map" not in of(0.0, names).details


@torch.no_grad()
def test_maps_are_sums_over_layers(clip: CLIP) -> None:
    method = randomised(clip)
    features = encode(clip, method, 2)
    maps = method.training_maps(features)
    assert len(maps) == 4 and method.map_range == (0.0, 4.0)
    for layer in maps:
        torch.testing.assert_close(layer.sum(dim=1), torch.ones(2, *SIZE))
    torch.testing.assert_close(sum(m[:, 1] for m in maps), method(features).details["vision_map"])
    logits = method.projected(features)[2]
    text = method.vision_features(features, ["object"] * 2)[2]
    cosines = F.normalize(logits, dim=-1) @ text.transpose(1, 2) / 0.07
    grid = cosines.transpose(1, 2).unflatten(2, features.grid)
    expected = F.interpolate(grid, size=SIZE, mode="bilinear", align_corners=True).softmax(dim=1)
    torch.testing.assert_close(maps[2], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_names_are_filtered_at_inference_only(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    method = randomised(clip)
    monkeypatch.setattr(method.names, "fits", lambda _, terms: [t != "pipe fryum" for t in terms])
    features, names = encode(clip, method, 4), ["pipe_fryum", "macaroni2", "01", "pcb4"]
    assert method(features, names).details["class_terms"] == ["object", "macaroni", "object", "pcb"]
    assert method.class_terms(features.class_feature, names, filtered=False) == [
        "pipe fryum",
        "macaroni2",
        "01",
        "pcb4",
    ]
    assert method(features).details["class_terms"] == ["object"] * 4
    plain = make(clip, (NAME, {"preset": "no_cnf", "generic_term": "item"}))
    assert plain(features, ["a_b", "", "pcb1", "1"]).details["class_terms"] == ["a b", "item", "pcb1", "1"]
    with pytest.raises(ValueError, match="2 class names for 4 images"):
        method(features, names[:2])


@torch.no_grad()
def test_filter_uses_the_image_feature(clip: CLIP) -> None:
    method = make(clip, (NAME, {}))
    features = encode(clip, method, 8)
    for scope in ("image", "class"):
        terms = make(clip, (NAME, {"cnf_scope": scope}))(features, ["screw"] * 8).details["class_terms"]
        assert terms == getattr(method.names, f"per_{scope}")(features.class_feature, ["screw"] * 8)
    assert len(set(terms)) == 1


VISA = ["chewinggum", "fryum", "pipe_fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3", "pcb4", "01"]
KEPT = ["object"] * 3 + ["macaroni"] * 2 + ["pcb"] * 4 + ["object"]


@torch.no_grad()
@pytest.mark.parametrize("scope", ["image", "class"])
def test_table_of_the_paper(clip: CLIP, scope: str) -> None:
    """The paper's outcomes on VisA, from class features that CLIP finds as it does there."""
    method = make(clip, (NAME, {"cnf_scope": scope}))
    features = encode(clip, method, len(VISA))

    def seen(words: str) -> torch.Tensor:
        assert clip.tokenizer is not None
        ids = [clip.tokenizer.sot, *clip.tokenizer.encode(words), clip.tokenizer.eot]
        return 5 * clip.encode_text(torch.tensor([ids]))[0]

    unseen = seen("A photo of an object")
    features.class_feature = torch.stack(
        [unseen if term == "object" else seen(f"A photo of a {term}") for term in KEPT]
    )
    assert method(features, VISA).details["class_terms"] == KEPT
    # The learned words take no part in the judgement.
    method.reset(torch.Generator().manual_seed(3))
    assert method(features, VISA).details["class_terms"] == KEPT
    features.class_feature = torch.stack([unseen, unseen, seen("A photo of a pcb")] * 2)
    names, rows = ["pcb1"] * 3 + ["pcb2"] * 3, list(range(6))
    each = ["object", "object", "pcb"] * 2
    found = method(pick(features, rows), names).details["class_terms"]
    assert found == (each if scope == "image" else ["object"] * 6)


@torch.no_grad()
def test_names_are_judged_at_another_size(clip: CLIP) -> None:
    method = make(clip, (NAME, {"cnf_image_size": 24}))
    assert method.needs.class_size == 24 and make(clip, (NAME, {})).needs.class_size is None
    features = encode(clip, method, 2)
    plain = features.plain_class_feature
    assert plain is not None and plain.shape == features.class_feature.shape
    assert not torch.allclose(plain, features.class_feature)
    own, other = (method.names._text(f"A photo of {words}") for words in ("a screw", "an object"))
    features.class_feature, features.plain_class_feature = (
        torch.stack([own, other]),
        torch.stack([other, own]),
    )
    assert method(features, ["screw"] * 2).details["class_terms"] == ["object", "screw"]
    features.plain_class_feature = None
    assert method(features, ["screw"] * 2).details["class_terms"] == ["screw", "object"]
    # Without filtering, and without the branch that knows names, there is no second pass.
    for off in ({"use_cnf": False}, {"alpha": 0.0}):
        assert make(clip, (NAME, {"cnf_image_size": 24} | off)).needs.class_size is None
    assert make_config(NAME, cnf_image_size="none").cnf_image_size is None
    with pytest.raises(BadOption, match="cnf_image_size 25 is no multiple of the patch size 8"):
        build(NAME, clip, cnf_image_size=25)


@torch.no_grad()
def test_names_of_neighbours_do_not_matter(clip: CLIP) -> None:
    method = randomised(clip, use_cnf=False)
    features = encode(clip, method, 2)
    long = method(features, ["pcb1", "a rather long class name of many words"])
    short = method(features, ["pcb1", "x"])
    torch.testing.assert_close(long.map[0], short.map[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_image_score(clip: CLIP) -> None:
    method = make(clip, (NAME, {}))
    prediction = method(encode(clip, method, 2))
    # 500 and 2500 of 518 x 518 pixels are 2 and 9 of 24 x 40.
    top = prediction.map.flatten(1).sort(descending=True).values
    weight = top[:, :2].exp().mean(1) / top[:, :9].exp().mean(1)
    torch.testing.assert_close(prediction.score, weight * top[:, :2].mean(1))
    whole = make(clip, (NAME, {"scale_topn": False}))(encode(clip, method, 2)).score
    weight = top[:, :500].exp().mean(1) / top.exp().mean(1)
    torch.testing.assert_close(whole, weight * top[:, :500].mean(1))
    largest = make(clip, (NAME, {"image_score": "max"}))
    assert torch.equal(largest(encode(clip, method, 2)).score, prediction.map.amax(dim=(1, 2)))
    assert largest.score_range == (0.0, 4.0) and method.score_range == (0.0, 40.0)


def test_everything_learned_receives_gradient(clip: CLIP) -> None:
    method = make(clip, (NAME, {})).train()
    features = encode(clip, method, 4)
    torch.stack(
        list(method.loss(features, target(4), ["pcb1", "screw", "pcb1", "01"]).values())
    ).sum().backward()
    for name, parameter in method.named_parameters():
        rows = parameter.grad.flatten(1) if parameter.grad.ndim > 1 else parameter.grad[None]
        assert (rows.abs().sum(dim=1) > 0).all(), name


def test_loss_by_its_parts(clip: CLIP) -> None:
    method = randomised(clip)
    features, truth, names = encode(clip, method, 4), target(4), ["pcb1", "screw", "01", "pipe_fryum"]
    terms = method.loss(features, truth, names)
    assert sorted(terms) == sorted(f"{kind}.{block}" for kind in ("focal", "dice") for block in (1, 2, 3, 4))
    maps = method.training_maps(features, names)
    torch.testing.assert_close(terms["focal.3"], focal(maps[2], truth.mask))
    torch.testing.assert_close(terms["dice.3"], dice(maps[2][:, 1], truth.mask))
    both = randomised(clip, dice_both=True).loss(features, truth, names)
    expected = dice(maps[2][:, 1], truth.mask) + dice(maps[2][:, 0], 1 - truth.mask)
    torch.testing.assert_close(both["dice.3"], expected)
    assert (maps[0] - method.training_maps(features)[0]).abs().max() > 1e-5, "training knows class names"
    with pytest.raises(ValueError, match="masks"):
        method.loss(features, Target(truth.label))


def test_start_and_rate(clip: CLIP) -> None:
    method = make(clip, (NAME, {}))
    (group,) = method.parameter_groups()
    assert group["lr"] == 4e-5 and group["betas"] == (0.5, 0.999)
    method.reset(torch.Generator().manual_seed(0))
    for tokens in (method.state_tokens, method.query_tokens, method.deep_prompts):
        assert tokens.std().item() == pytest.approx(0.02, rel=0.4)
    assert method.image_heads[0].weight.abs().max().item() == pytest.approx(1 / 6, rel=0.05)


def test_deep_prompts_of_every_form(clip: CLIP) -> None:
    assert make(clip, (NAME, {})).deep_prompts.shape == (3, 1, 20)
    assert make(clip, (NAME, {"deep_depth": 2})).deep_prompts.shape == (2, 1, 20)
    assert make(clip, (NAME, {"deep_mode": "overwrite"})).deep_prompts.shape == (2, 1, 20)
    none = make(clip, (NAME, {"deep_mode": "overwrite", "deep_depth": 1}))
    assert not none.deep_prompts.requires_grad and none.query_features().shape == (2, 28)
    projected = make(clip, (NAME, {"deep_proj": True, "dropout": 0.5}))
    assert "deep_projection.weight" in projected.state_dict()
    still, again = projected.query_features(), projected.query_features()
    assert torch.equal(still, again)
    assert not torch.allclose(projected.train().query_features(), still)


def test_presets_are_the_ablation() -> None:
    assert presets(NAME).keys() == {"final_token", "mvp_only", "no_cnf"}
    assert make_config(NAME, "mvp_only").alpha == 1.0 and not make_config(NAME, "no_cnf").use_cnf


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"n1": 3000}, "n1 is 3000; expected at most n2 = 2500"),
        ({"n_query": 0}, "n_query is 0"),
        ({"state_words": ["good"]}, "expected two words"),
        ({"generic_term": " "}, "generic_term is empty"),
        ({"cnf_image_size": 0}, "cnf_image_size is 0; expected 1 or more"),
        ({"cnf_image_size": "large"}, "cnf_image_size is 'large'"),
        ({"mvp_pool": "mean"}, "choose from 'all', 'patch', 'cls'"),
        ({"pos_interp": "nearest"}, "choose from 'bilinear'"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadOption) as caught:
        make_config(NAME, **options)
    assert text in str(caught.value)
