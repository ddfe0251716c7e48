from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP
from blemish.errors import BadOption, UnknownName
from blemish.methods import METHODS, build, config_class, make_config, options_of, presets


@pytest.fixture(scope="module")
def clip() -> CLIP:
    vision = VisionConfig(width=16, layers=2, heads=2, patch_size=8, image_size=16, mlp_width=16)
    text = TextConfig(width=16, layers=2, heads=2, mlp_width=16)
    return CLIP(CLIPConfig(embed_dim=16, vision=vision, text=text)).freeze()


def test_listing_imports_nothing_heavy() -> None:
    code = "import sys, blemish.methods as m; assert m.METHODS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_documented_and_legal(name: str) -> None:
    assert make_config(name) == config_class(name)()
    for key, known in options_of(name).items():
        assert known.name == key and len(known.help) > 10 and known.help[-1] != "."
        assert make_config(name, **{key: known.default}) == config_class(name)()
        for choice in known.choices:
            value = (choice,) if isinstance(known.default, tuple) else choice
            assert getattr(make_config(name, **{key: value}), key) == value
    for preset, options in presets(name).items():
        made = make_config(name, preset)
        assert options and all(getattr(made, key) == value for key, value in options.items())
    with pytest.raises(FrozenInstanceError):
        make_config(name).sigma = 1.0


def test_options_win_over_the_preset() -> None:
    assert make_config("vcp_clip", "paper").image_score == "max"
    assert make_config("vcp_clip", "paper", image_score="top_k").image_score == "top_k"
    assert make_config("anomaly_clip", "paper").layers == (0.25, 0.5, 0.75, 1.0)


def test_former_names_of_options_are_read() -> None:
    assert make_config("fa_prompt", prior="first10", double_sigmoid=True) == make_config(
        "fa_prompt", "published"
    )
    made = make_config("fa_prompt", fap_prior="top", prior="first10")
    assert made.fap_prior == "top", "its own name goes before the former one"
    with pytest.raises(BadOption, match="double_sigmoid is 2"):
        make_config("fa_prompt", double_sigmoid=2)


def test_lists_and_whole_numbers_are_taken() -> None:
    made = make_config("anomaly_clip", layers=[6, 0.5], sigma=2, stream_start=6, streams=["qq", "kk"])
    assert made.layers == (6, 0.5) and made.stream_start == 6 and made.streams == ("qq", "kk")
    assert isinstance(made.sigma, float)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("anomaly_clip", {"temprature": 0.1}, "did you mean 'temperature'"),
        ("anomaly_clip", {"sigma": "4"}, "sigma is '4'"),
        ("anomaly_clip", {"sigma": -1.0}, "sigma is -1.0; expected 0 or more"),
        ("anomaly_clip", {"sigma": float("nan")}, "sigma is nan"),
        ("anomaly_clip", {"temperature": 0.0}, "temperature is 0.0"),
        ("anomaly_clip", {"n_ctx": 0}, "n_ctx is 0"),
        ("anomaly_clip", {"n_ctx": True}, "n_ctx is True"),
        ("anomaly_clip", {"n_ctx": 2}, "t_n_ctx is 4; expected at most n_ctx = 2"),
        ("anomaly_clip", {"shared_words": 1}, "shared_words is 1"),
        ("anomaly_clip", {"streams": ["vq"]}, "choose from 'qk', 'vv'"),
        ("anomaly_clip", {"layers": []}, "layers is ()"),
        ("anomaly_clip", {"layers": 24}, "layers is 24"),
        ("anomaly_clip", {"layers": [24]}, "layer 24 does not exist in a tower of 2 blocks"),
        ("anomaly_clip", {"n_ctx": 80}, "longer than the context of 77"),
        ("vcp_clip", {"alpha": 1.5}, "alpha is 1.5"),
        ("vcp_clip", {"top_k": 0}, "top_k is 0"),
        ("vcp_clip", {"image_score": "mean"}, "choose from 'top_k', 'max'"),
        ("vcp_clip", {"layers": [0.0]}, "fraction 0.0"),
    ],
)
def test_impossible_options_are_named(clip: CLIP, name: str, options: dict, text: str) -> None:
    with pytest.raises(BadOption) as caught:
        build(name, clip, **options)
    assert text in str(caught.value)


def test_unknown_names_list_the_choices(clip: CLIP) -> None:
    with pytest.raises(UnknownName, match="did you mean 'vcp_clip'"):
        build("vcpclip", clip)
    with pytest.raises(UnknownName, match=r"did you mean .paper.. choose from kk"):
        build("anomaly_clip", clip, "papre")


def test_parts_are_made_where_the_backbone_is(clip: CLIP) -> None:
    assert all(
        p.device == clip.device and p.dtype == torch.float32 for p in build("vcp_clip", clip).parameters()
    )
