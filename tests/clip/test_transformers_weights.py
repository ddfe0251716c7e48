"""Weights that `transformers` itself saved, read back equal to its modules' tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from blemish.clip.config import TextConfig, VisionConfig
from blemish.clip.weights import fingerprint, read_weights
from blemish.errors import BadWeights, WeightsNotFound

Tensors = dict[str, Tensor]


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name].float(), tensor.float()), name


def transformers_model(act: str = "quick_gelu", seed: int = 3) -> Any:
    import transformers

    vision = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    text |= {"vocab_size": 50, "max_position_embeddings": 10, "hidden_act": act, "eos_token_id": 49}
    text |= {"bos_token_id": 48}
    vision |= {"image_size": 24, "patch_size": 8, "hidden_act": act}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    model = transformers.CLIPModel(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def expected_from(model: Any) -> Tensors:
    """OpenAI's names for a `transformers` model, taken from its modules."""
    out = {"logit_scale": model.logit_scale, "text_projection": model.text_projection.weight.T}
    out |= {"visual.proj": model.visual_projection.weight.T}
    vision, text = model.vision_model, model.text_model
    out["visual.class_embedding"] = vision.embeddings.class_embedding
    out["visual.positional_embedding"] = vision.embeddings.position_embedding.weight
    out["visual.conv1.weight"] = vision.embeddings.patch_embedding.weight
    out["token_embedding.weight"] = text.embeddings.token_embedding.weight
    out["positional_embedding"] = text.embeddings.position_embedding.weight
    pairs = [("visual.ln_pre", vision.pre_layrnorm), ("visual.ln_post", vision.post_layernorm)]
    pairs.append(("ln_final", text.final_layer_norm))
    for prefix, tower in (("visual.", vision), ("", text)):
        for i, layer in enumerate(tower.encoder.layers):
            block = f"{prefix}transformer.resblocks.{i}"
            attention = layer.self_attn
            qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
            out[f"{block}.attn.in_proj_weight"] = torch.cat([p.weight for p in qkv])
            out[f"{block}.attn.in_proj_bias"] = torch.cat([p.bias for p in qkv])
            pairs += [(f"{block}.attn.out_proj", attention.out_proj), (f"{block}.ln_1", layer.layer_norm1)]
            pairs += [(f"{block}.ln_2", layer.layer_norm2), (f"{block}.mlp.c_fc", layer.mlp.fc1)]
            pairs.append((f"{block}.mlp.c_proj", layer.mlp.fc2))
    for name, module in pairs:
        out |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return {name: tensor.detach() for name, tensor in out.items()}


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("form", ["whole", "sharded", "bin", "sharded bin"])
def test_transformers_folder(tmp_path: Path, form: str, act: str) -> None:
    model = transformers_model(act)
    model.save_pretrained(tmp_path, max_shard_size="60KB" if "sharded" in form else "1GB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert (len(shards) > 2) == ("sharded" in form)
    if "bin" in form:
        rewrite_as_bin(tmp_path, shards)
    seen = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(seen))
    config, found = read_weights(tmp_path)
    assert_equal(found, expected_from(model))
    assert config.vision == VisionConfig(48, 3, 4, 8, 24, 80)
    assert config.text == TextConfig(32, 2, 2, 40, 10, 50)
    assert (config.activation, config.source) == (act, "openai" if act == "quick_gelu" else "transformers")
    assert (config.mean, config.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


def rewrite_as_bin(folder: Path, shards: list[Path]) -> None:
    """The older form of the same folder, with the position buffers that older versions also saved."""
    for shard in shards:
        content = load_file(shard)
        if "text_model.embeddings.position_embedding.weight" in content:
            content["text_model.embeddings.position_ids"] = torch.arange(10)[None]
        renamed = shard.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        torch.save(content, folder / renamed)
        shard.unlink()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        text = index.read_text().replace("model-0", "pytorch_model-0").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


def test_transformers_defaults_are_filled_in(tmp_path: Path) -> None:
    model = transformers_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": None}))
    config, _ = read_weights(tmp_path)
    assert (config.vision.heads, config.text.heads, config.activation) == (12, 8, "quick_gelu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "siglip"}, "model_type is 'siglip', expected 'clip'"),
        ({"vision_config": {"hidden_act": "gelu_new"}}, "hidden_act is gelu_new, quick_gelu"),
        ({"text_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps is not the 1e-5"),
    ],
)
def test_other_transformers_models_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    transformers_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", **change}))
    with pytest.raises(BadWeights, match=message):
        read_weights(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    transformers_model().save_pretrained(tmp_path, max_shard_size="60KB")
    (tmp_path / "model-00002-of-00005.safetensors").unlink(missing_ok=True)
    gone = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    gone.unlink()
    with pytest.raises(WeightsNotFound, match=r"lists the shard model-0000\d-of-0000\d\.safetensors"):
        read_weights(tmp_path)


def test_shards_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    index = {"weight_map": {"logit_scale": "../other.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadWeights, match="is not a plain file name"):
        read_weights(tmp_path)


def test_fingerprint_is_the_same_from_transformers(tmp_path: Path) -> None:
    model = transformers_model()
    model.save_pretrained(tmp_path)
    config, found = read_weights(tmp_path)
    assert fingerprint(config, found) == fingerprint(config, expected_from(model))


def test_transformers_attention_without_keys(tmp_path: Path) -> None:
    transformers_model().save_pretrained(tmp_path)
    content = load_file(tmp_path / "model.safetensors")
    gone = "vision_model.encoder.layers.1.self_attn.q_proj.bias"
    del content[gone]
    save_file(content, tmp_path / "model.safetensors")
    with pytest.raises(BadWeights, match=f"tensor {gone} is missing"):
        read_weights(tmp_path)
