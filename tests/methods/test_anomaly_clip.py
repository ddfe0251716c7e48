from __future__ import annotations

import pytest
import torch
from small_clip import CONFIG, SIZE, encode, make, pick, target

from blemish.clip.model import CLIP
from blemish.methods import make_config, presets
from blemish.types import Target

NAME = "anomaly_clip"


def test_parameter_count_of_the_paper() -> None:
    with torch.device("meta"):
        large = CLIP(type(CONFIG)())
    method = make(large, (NAME, {}))
    assert sum(p.numel() for p in method.parameters()) == 43_008
    assert method.blocks == (24,) and method.needs.stream_start == 0.25
    # The authors' module also creates, saves and never uses a projection of 896 rows for each deep token.
    assert sum(p.numel() for p in method.parameters()) + 8 * (896 * 768 + 896) == 5_555_200
    assert make(large, (NAME, {"preset": "paper"})).blocks == (6, 12, 18, 24)


def test_start_of_the_authors() -> None:
    with torch.device("meta"):
        large = CLIP(type(CONFIG)())
    method = make(large, (NAME, {})).to_empty(device="cpu")
    method.reset(torch.Generator().manual_seed(0))
    assert method.words.shape == (2, 12, 768) and method.deep_tokens.shape == (8, 4, 768)
    for parameter in method.parameters():
        assert parameter.std().item() == pytest.approx(0.02, rel=0.03)
        assert abs(parameter.mean().item()) < 1e-3
    shared = make(large, (NAME, {"preset": "shared_words"}))
    assert shared.words.shape == (1, 12, 768)


def test_presets_are_the_papers_ablations() -> None:
    streams = {name: make_config(NAME, name).streams for name in presets(NAME)}
    assert streams.pop("qk") == ("qk",) and streams.pop("qq") == ("qq",) and streams.pop("kk") == ("kk",)
    assert streams.pop("qq+kk+vv") == ("qq", "kk", "vv")
    assert streams.pop("qk+qq+kk+vv") == ("qk", "qq", "kk", "vv")
    assert streams == dict.fromkeys(("paper", "object_aware", "shared_words"), ("vv",))
    assert make_config(NAME, "object_aware").object_aware and make_config(NAME, "shared_words").shared_words
    assert make_config(NAME, "paper").local_weight == 1.0


@torch.no_grad()
def test_prompts_have_the_ids_of_the_specification(clip: CLIP) -> None:
    normal, damaged = make(clip, (NAME, {})).templates()
    assert normal.ids == (49406, *[0] * 12, 14115, 269, 49407) and normal.eot == 15
    assert damaged.ids == (49406, *[0] * 12, 13568, 14115, 269, 49407) and damaged.eot == 16


@torch.no_grad()
def test_score_needs_no_map_and_map_no_score(clip: CLIP) -> None:
    """The image score is the class feature's alone; the ordinary stream does not see the parallel one."""
    method, plain = make(clip, (NAME, {})), make(clip, (NAME, {"preset": "qk"}))
    a, b = method(encode(clip, method, 3)), plain(encode(clip, plain, 3))
    torch.testing.assert_close(a.score, b.score)
    assert (a.map - b.map).abs().max() > 1e-5
    feature, text = encode(clip, method, 3).class_feature, a.details["text_features"][0]
    cosines = torch.nn.functional.cosine_similarity(feature[:, None], text[None], dim=-1)
    torch.testing.assert_close(a.score, (cosines / 0.07).softmax(dim=-1)[:, 1])


def test_deep_tokens_never_exceed_the_text_tower(clip: CLIP) -> None:
    assert make(clip, (NAME, {})).deep_tokens.shape == (2, 4, 20)
    assert make(clip, (NAME, {"depth": 1})).deep_tokens.shape[0] == 0


@torch.no_grad()
def test_layers_add_up(clip: CLIP) -> None:
    both = make(clip, (NAME, {"layers": (2, 4)}))
    features = encode(clip, both, 2)
    parts = [make(clip, (NAME, {"layers": (layer,)})) for layer in (2, 4)]
    maps = [part(encode(clip, part, 2)).map for part in parts]
    torch.testing.assert_close(both(features).map, maps[0] + maps[1])
    mean = make(clip, (NAME, {"layers": (2, 4), "layer_reduction": "mean"}))
    torch.testing.assert_close(mean(features).map, (maps[0] + maps[1]) / 2)


@torch.no_grad()
def test_streams_are_averaged_before_the_softmax(clip: CLIP) -> None:
    names = ("qq", "kk", "vv")
    together = make(clip, (NAME, {"streams": names}))
    text = together.text_features()
    expected = torch.stack(
        [
            single.token_logits(encode(clip, single, 2), text)[0]
            for single in (make(clip, (NAME, {"streams": (name,)})) for name in names)
        ]
    ).mean(0)
    torch.testing.assert_close(together.token_logits(encode(clip, together, 2), text)[0], expected)


@torch.no_grad()
def test_object_aware_prompts_hold_the_class_name(clip: CLIP) -> None:
    method = make(clip, (NAME, {"object_aware": True}))
    features = encode(clip, method, 3)
    names = ["metal_nut", "cable", "metal nut"]
    mixed = method(features, names)
    text = mixed.details["text_features"]
    assert text.shape[:2] == (3, 2)
    assert torch.equal(text[0], text[2]) and not torch.allclose(text[0], text[1])
    for i, name in enumerate(names):
        alone = method(pick(features, [i]), [name])
        torch.testing.assert_close(alone.map[0], mixed.map[i], atol=1e-6, rtol=0)
    agnostic = make(clip, (NAME, {}))
    assert torch.equal(agnostic(features, names).map, agnostic(features).map)
    torch.testing.assert_close(method(features).map, agnostic(features).map)


def test_shared_words_differ_only_in_the_fixed_ones(clip: CLIP) -> None:
    method = make(clip, (NAME, {"shared_words": True}))
    prompts, _ = method.prompts()
    assert torch.equal(prompts[0, :13], prompts[1, :13]) and not torch.equal(prompts[0, 13], prompts[1, 13])


def test_rounding_moves_the_text_but_not_the_exact_gradient(clip: CLIP) -> None:
    found = {}
    for rounding in ("straight", "official", "off"):
        method = make(clip, (NAME, {"rounding": rounding}))
        text = method.text_features()
        text.pow(2).sum().backward()
        found[rounding] = (text.detach(), method.deep_tokens.grad)
    assert torch.equal(found["straight"][0], found["official"][0])
    assert not torch.equal(found["straight"][0], found["off"][0])
    assert not torch.equal(found["straight"][1], found["official"][1])
    torch.testing.assert_close(found["straight"][1], found["off"][1], rtol=0.05, atol=1e-3)


def test_loss_without_masks_is_the_image_term(clip: CLIP) -> None:
    method = make(clip, (NAME, {}))
    features = encode(clip, method, 4)
    assert list(method.loss(features, Target(target(4).label))) == ["image"]
    terms = method.loss(features, target(4))
    assert list(terms) == ["image", "focal.4", "dice_abnormal.4", "dice_normal.4"]
    doubled = make(clip, (NAME, {"local_weight": 8.0})).loss(features, target(4))
    assert torch.isclose(doubled["focal.4"], 2 * terms["focal.4"])
    assert torch.equal(doubled["image"], terms["image"])


def test_loss_of_one_image_is_an_image_loss(clip: CLIP) -> None:
    """The authors' code fails or takes rows for images here."""
    method = make(clip, (NAME, {}))
    features, truth = encode(clip, method, 2), target(2)
    apart = [
        method.loss(pick(features, [i]), Target(truth.label[i : i + 1], truth.mask[i : i + 1]))
        for i in (0, 1)
    ]
    for name, value in method.loss(features, truth).items():
        torch.testing.assert_close(value, (apart[0][name] + apart[1][name]) / 2)


def test_text_is_encoded_once_in_evaluation(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode_embeddings = CLIP.encode_embeddings
    monkeypatch.setattr(
        CLIP, "encode_embeddings", lambda *a, **k: calls.append(1) or encode_embeddings(*a, **k)
    )
    method = make(clip, (NAME, {}))
    features = encode(clip, method, 1)
    with torch.no_grad():
        method(features), method(features)
        assert len(calls) == 1
        method.train(), method.eval()
        method(features)
        assert len(calls) == 2
    method(features)
    assert len(calls) == 3, "with gradients nothing may be kept"
    assert method(features).map.requires_grad and method(features).map.shape == (1, *SIZE)
