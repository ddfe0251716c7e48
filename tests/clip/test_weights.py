"""Weights written in each published form, read back equal; what is wrong with a file is named."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP
from blemish.clip.tokenizer import EOT, SOT, Tokenizer, byte_symbols
from blemish.clip.weights import BACKBONES, fingerprint, load_clip, read_weights, save_clip
from blemish.errors import BadWeights, WeightsNotFound

Tensors = dict[str, Tensor]

CONFIG = CLIPConfig(
    embed_dim=24,
    vision=VisionConfig(width=128, layers=3, heads=2, patch_size=8, image_size=32, mlp_width=80),
    text=TextConfig(width=64, layers=2, heads=1, mlp_width=48, context_length=12, vocab_size=40),
)


def random_tensors(config: CLIPConfig = CONFIG, seed: int = 0) -> Tensors:
    """Every tensor of the configuration, all different, exact in half precision."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in CLIP(config).state_dict().items()}
    return {n: torch.randn(s, generator=generator).half().float() for n, s in shapes.items()}


@pytest.fixture
def tensors() -> Tensors:
    return random_tensors()


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name].float(), tensor.float()), name


# ---------------------------------------------------------------- OpenAI


class Node(nn.Module):
    """A module that only holds others, so that a state dictionary's names can be rebuilt."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def openai_archive(tensors: Tensors, path: Path) -> None:
    """A TorchScript archive as OpenAI published: half precision, three numbers among the weights."""
    root = Node()
    numbers = {"input_resolution": 32, "context_length": 12, "vocab_size": 40}
    for name, tensor in {**tensors, **{k: torch.tensor(v) for k, v in numbers.items()}}.items():
        *parents, leaf = name.split(".")
        node: nn.Module = root
        for parent in parents:
            if parent not in node._modules:
                node.add_module(parent, Node())
            node = node._modules[parent]  # type: ignore[assignment]
        if name in numbers:
            node.register_buffer(leaf, tensor)
        else:
            node.register_parameter(leaf, nn.Parameter(tensor.half()))
    torch.jit.save(torch.jit.script(root), str(path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openai_archive(tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "ViT.pt"
    openai_archive(tensors, path)
    config, found = read_weights(path)
    assert config == replace(CONFIG, name="ViT")
    assert found["visual.proj"].dtype == torch.float16
    assert_equal(found, tensors)
    clip = load_clip(path)
    assert {t.dtype for t in clip.state_dict().values()} == {torch.float32}
    assert_equal(clip.state_dict(), tensors)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_state_dict(tensors: Tensors, tmp_path: Path, zipped: bool, nested: bool) -> None:
    path = tmp_path / "clip.pth"
    content: dict[str, Any] = {**tensors, "logit_scale": tensors["logit_scale"].reshape(1)}
    if nested:
        content = {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in tensors.items()}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    config, found = read_weights(path)
    assert config == replace(CONFIG, name="clip")
    assert_equal(found, tensors)


def test_heads_can_be_given(tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_file(tensors, path)
    config, _ = read_weights(path, heads=(4, 2))
    assert (config.vision.heads, config.text.heads) == (4, 2)
    with pytest.raises(BadWeights, match="5 heads do not divide the image tower's width 128"):
        read_weights(path, heads=(5, 1))


@pytest.mark.parametrize(
    ("width", "heads", "activation", "source"),
    [
        (32, 1, "quick_gelu", "openai"),
        (768, 12, "quick_gelu", "openai"),
        (896, 14, "gelu", "laion400m"),
        (1280, 16, "quick_gelu", "openai"),
    ],
)
def test_what_shapes_tell(tmp_path: Path, width: int, heads: int, activation: str, source: str) -> None:
    config = CLIPConfig(8, VisionConfig(width, 1, heads, 2, 6, 8), TextConfig(32, 1, 1, 16, 9, 11))
    path = tmp_path / "w.safetensors"
    save_file(random_tensors(config), path)
    found, _ = read_weights(path)
    assert found == replace(config, activation=activation, source=source, name="w")


def test_a_named_backbone_is_recognised_by_its_shapes(tmp_path: Path) -> None:
    expected = BACKBONES["ViT-B-32"].config
    assert expected is not None
    tensors = {n: t.half() for n, t in random_shapes_only(expected).items()}
    save_file(tensors, tmp_path / "download.safetensors")
    config, _ = read_weights(tmp_path / "download.safetensors")
    assert config == expected


def random_shapes_only(config: CLIPConfig) -> Tensors:
    with torch.device("meta"):
        return {name: torch.empty(t.shape, device="cpu") for name, t in CLIP(config).state_dict().items()}


# ---------------------------------------------------------------- open_clip


def open_clip_folder(tensors: Tensors, folder: Path, *, quick_gelu: bool, **vision: Any) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    model: dict[str, Any] = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8, **vision},
        "text_cfg": {"context_length": 12, "vocab_size": 40, "width": 64, "heads": 2, "layers": 2},
    }
    if quick_gelu:
        model["quick_gelu"] = True
    described = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.25]}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_file(tensors, folder / "open_clip_model.safetensors")
    # timm's own files lie in the same repositories and must not be taken
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_large_patch14_clip_336"}))
    save_file({"patch_embed.proj.weight": torch.zeros(4)}, folder / "model.safetensors")


@pytest.mark.parametrize("whole_folder", [True, False])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_open_clip(tensors: Tensors, tmp_path: Path, quick_gelu: bool, whole_folder: bool) -> None:
    open_clip_folder(tensors, tmp_path / "oc", quick_gelu=quick_gelu, head_width=32)
    path = tmp_path / "oc" if whole_folder else tmp_path / "oc" / "open_clip_model.safetensors"
    config, found = read_weights(path)
    assert (config.vision.heads, config.text.heads) == (4, 2)
    assert (config.activation, config.source) == (
        ("quick_gelu", "openai") if quick_gelu else ("gelu", "open_clip")
    )
    assert (config.mean, config.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.25))
    assert_equal(found, tensors)


def test_open_clip_with_a_text_module_of_its_own(tensors: Tensors, tmp_path: Path) -> None:
    names = {n: n if n.startswith(("visual.", "logit_scale")) else f"text.{n}" for n in tensors}
    moved = {names[n]: t for n, t in tensors.items()} | {"text.attn_mask": torch.zeros(12, 12)}
    torch.save(moved, tmp_path / "open_clip_pytorch_model.bin")
    config, found = read_weights(tmp_path)
    assert config == replace(CONFIG, name="open_clip_pytorch_model")
    assert_equal(found, tensors)


def test_open_clip_that_pools_otherwise_is_refused(tensors: Tensors, tmp_path: Path) -> None:
    open_clip_folder(tensors, tmp_path / "oc", quick_gelu=True, pool_type="avg")
    with pytest.raises(BadWeights, match=r"vision_cfg\.pool_type is 'avg', expected 'tok'"):
        read_weights(tmp_path / "oc")


# ---------------------------------------------------------------- our own folder


def own_tokenizer() -> Tokenizer:
    vocab = {word: i for i, word in enumerate([*byte_symbols(), *(s + "</w>" for s in byte_symbols())])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[], end_of_word_suffix="</w>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([SOT, EOT])
    return Tokenizer(backend)


def own_clip() -> CLIP:
    torch.manual_seed(5)
    tokenizer = own_tokenizer()
    text = TextConfig(32, 2, 2, 40, 16, tokenizer.vocab_size, tokenizer="own")
    vision = VisionConfig(32, 2, 4, 16, 64, 64, stem="lite")
    clip = CLIP(CLIPConfig(16, vision, text, "gelu", "generated", "small", (0.5, 0.5, 0.5), (0.5, 0.5, 0.4)))
    clip.tokenizer = tokenizer
    return clip.reset_parameters().freeze()


def test_own_folder_round_trip(tmp_path: Path) -> None:
    clip = own_clip()
    save_clip(clip, tmp_path / "a")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    again = load_clip(tmp_path / "a")
    assert again.config == clip.config
    assert_equal(again.state_dict(), clip.state_dict())
    assert again.tokenizer is not None and clip.tokenizer is not None
    ids = again.tokenizer("a worn disc", 16)
    assert torch.equal(ids, clip.tokenizer("a worn disc", 16))
    assert torch.equal(again.encode_text(ids), clip.encode_text(ids))
    assert load_clip(tmp_path / "a" / "model.safetensors").config == clip.config
    # over itself, while its tensors are still mapped from the file
    save_clip(again, tmp_path / "a")
    assert_equal(load_clip(tmp_path / "a").state_dict(), clip.state_dict())


def test_own_folder_without_its_parts(tmp_path: Path) -> None:
    clip = own_clip()
    save_clip(clip, tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsNotFound, match=r"tokenizer\.json is missing"):
        load_clip(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**described, "colour": 1}))
    with pytest.raises(BadWeights, match=r"config\.json: unknown CLIPConfig keys: colour"):
        read_weights(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadWeights, match="convolutional stem needs its own config"):
        read_weights(tmp_path)
    clip.tokenizer = None
    with pytest.raises(ValueError, match=r"clip\.tokenizer is None"):
        save_clip(clip, tmp_path / "b")


# ---------------------------------------------------------------- load_clip and fingerprint


def test_load_clip_is_frozen_and_complete(tensors: Tensors, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "clip.safetensors")
    clip = load_clip(tmp_path / "clip.safetensors")
    assert not clip.training and not any(p.requires_grad for p in clip.parameters())
    assert not any(t.is_meta for t in [*clip.parameters(), *clip.buffers()])
    assert clip.tokenizer is None  # 40 words are not CLIP's vocabulary
    assert clip.fingerprint == fingerprint(CONFIG, tensors)
    assert clip.encode_image(torch.zeros(1, 3, 32, 32)).class_feature.isfinite().all()
    half = load_clip(tmp_path / "clip.safetensors", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.fingerprint == clip.fingerprint


def test_clips_vocabulary_brings_clips_tokenizer(tmp_path: Path) -> None:
    config = replace(CONFIG, text=replace(CONFIG.text, vocab_size=49408, context_length=77))
    save_file(random_tensors(config), tmp_path / "clip.safetensors")
    clip = load_clip(str(tmp_path / "clip.safetensors"))
    assert clip.tokenizer is Tokenizer.clip()
    assert clip.encode_text(clip.tokenizer(["a crack", "no crack"])).shape == (2, 24)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fingerprint_is_the_same_for_every_form(tensors: Tensors, tmp_path: Path) -> None:
    openai_archive(tensors, tmp_path / "clip.pt")
    torch.save(tensors, tmp_path / "clip.bin")
    save_file({n: t.half() for n, t in tensors.items()}, tmp_path / "clip.safetensors")
    save_clip(load_clip(tmp_path / "clip.pt"), tmp_path / "own")
    paths = [tmp_path / name for name in ("clip.pt", "clip.bin", "clip.safetensors", "own")]
    marks = {load_clip(path).fingerprint for path in paths}
    assert marks == {fingerprint(CONFIG, tensors)}
    assert all(len(mark) == 16 and int(mark, 16) >= 0 for mark in marks)


def test_fingerprint_tells_weights_apart(tensors: Tensors) -> None:
    mark = fingerprint(CONFIG, tensors)
    assert mark != fingerprint(CONFIG, random_tensors(seed=1))
    assert mark != fingerprint(replace(CONFIG, activation="gelu"), tensors)
    assert mark != fingerprint(replace(CONFIG, vision=replace(CONFIG.vision, heads=4)), tensors)
    assert mark != fingerprint(CONFIG, {**tensors, "logit_scale": tensors["logit_scale"] + 1})
    assert mark == fingerprint(replace(CONFIG, name="other", source="other"), tensors)
    shuffled = dict(sorted(tensors.items(), reverse=True))
    assert mark == fingerprint(CONFIG, shuffled)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's memory accounting")
def test_float32_safetensors_are_mapped_not_copied(tmp_path: Path) -> None:
    config = replace(CONFIG, text=replace(CONFIG.text, width=512, heads=8, vocab_size=49408))
    save_file(random_shapes_only(config), tmp_path / "clip.safetensors")  # 100 MB of word embeddings
    load_clip(tmp_path / "clip.safetensors")

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

    before = anonymous()
    clip = load_clip(tmp_path / "clip.safetensors")
    assert clip.token_embedding.weight.numel() * 4 > 100e6
    assert anonymous() - before < 20


# ---------------------------------------------------------------- what does not fit


def drop(tensors: Tensors) -> None:
    del tensors["visual.transformer.resblocks.1.mlp.c_fc.bias"]


def add(tensors: Tensors) -> None:
    tensors["visual.transformer.resblocks.0.ls_1.gamma"] = torch.zeros(3)


def reshape(tensors: Tensors) -> None:
    tensors["transformer.resblocks.1.ln_1.weight"] = torch.zeros(65)


def shorten(tensors: Tensors) -> None:
    tensors["visual.positional_embedding"] = torch.zeros(16, 128)


def count(tensors: Tensors) -> None:
    tensors["ln_final.bias"] = torch.zeros(64, dtype=torch.int32)


def lose_text(tensors: Tensors) -> None:
    for name in [n for n in tensors if not n.startswith("visual.")]:
        del tensors[name]


def flatten(tensors: Tensors) -> None:
    tensors["visual.conv1.weight"] = torch.zeros(128, 192)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, r"tensor visual\.transformer\.resblocks\.1\.mlp\.c_fc\.bias is missing$"),
        (add, r"tensor visual\.transformer\.resblocks\.0\.ls_1\.gamma belongs to no ViT CLIP"),
        (reshape, r"transformer\.resblocks\.1\.ln_1\.weight has shape \(65,\), expected \(64,\)"),
        (shorten, r"visual\.positional_embedding has 16 rows"),
        (count, r"tensor ln_final\.bias is torch\.int32, expected floating point"),
        (lose_text, r"tensor token_embedding\.weight is missing"),
        (flatten, r"visual\.conv1\.weight has shape \(128, 192\), expected 4-d"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tensors: Tensors, tmp_path: Path, damage: Callable[[Tensors], None], message: str
) -> None:
    damage(tensors)
    path = tmp_path / "clip.safetensors"
    save_file(tensors, path)
    with pytest.raises(BadWeights, match=message) as raised:
        load_clip(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_several_missing_tensors_are_counted(tensors: Tensors, tmp_path: Path) -> None:
    for name in [n for n in tensors if ".resblocks.1.ln_2" in n]:
        del tensors[name]
    torch.save(tensors, tmp_path / "clip.pt")
    with pytest.raises(BadWeights, match=r"ln_2\.weight is missing \(and 3 more\)"):
        read_weights(tmp_path / "clip.pt")


def test_folders(tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match="no weights in the folder"):
        load_clip(tmp_path)
    save_file(tensors, tmp_path / "any-name.safetensors")
    assert load_clip(tmp_path).config.name == "any-name"
    torch.save(tensors, tmp_path / "another.pt")
    with pytest.raises(BadWeights, match=r"several weight files \(another\.pt, any-name\.safetensors\)"):
        load_clip(tmp_path)


def test_guessed_configuration_is_logged(
    tensors: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(tensors, tmp_path / "clip.safetensors")
    with caplog.at_level(logging.INFO, logger="blemish"):
        read_weights(tmp_path / "clip.safetensors")
    assert "no configuration beside it, taken as openai weights" in caplog.text
