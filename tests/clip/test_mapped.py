"""Pages of mapped weight files go when their tensors have been copied; other memory is left alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.mapped import MappedFiles
from blemish.clip.model import CLIP
from blemish.clip.weights import load_clip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux lists mappings and counts their pages")


def file_pages() -> int:
    """Mapped pages of files that are in memory, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) // 1024


def test_a_released_tensor_costs_no_memory_and_reads_the_same(tmp_path: Path) -> None:
    values = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0))
    save_file({"a": values, "b": values[:7].clone()}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        mapped, neighbour = file.get_tensor("a"), file.get_tensor("b")
    files = MappedFiles()
    assert files.holds(mapped) and files.holds(neighbour) and not files.holds(values)
    assert torch.equal(mapped, values)
    before = file_pages()
    files.release(mapped)
    assert before - file_pages() >= 37
    assert torch.equal(mapped, values) and torch.equal(neighbour, values[:7])


def test_memory_of_no_file_is_left_alone(tmp_path: Path) -> None:
    values = torch.arange(2_000_000.0)
    files = MappedFiles()
    files.release(values)
    assert torch.equal(values, torch.arange(2_000_000.0))
    absent = MappedFiles(tmp_path / "no such list")
    assert not absent.holds(values)


def test_loading_in_another_precision_holds_one_copy(tmp_path: Path) -> None:
    config = CLIPConfig(
        embed_dim=24,
        vision=VisionConfig(width=64, layers=1, heads=1, patch_size=8, image_size=32, mlp_width=64),
        text=TextConfig(width=512, layers=1, heads=8, mlp_width=64),
    )
    clip = CLIP(replace(config, text=replace(config.text, vocab_size=49408))).reset_parameters()
    save_file({n: t.contiguous() for n, t in clip.state_dict().items()}, tmp_path / "clip.safetensors")
    before = file_pages()
    half = load_clip(tmp_path / "clip.safetensors", dtype=torch.bfloat16)
    # 100 MB of word embeddings in the file were read
    assert file_pages() - before < 20
    assert torch.equal(half.token_embedding.weight, clip.token_embedding.weight.bfloat16())
