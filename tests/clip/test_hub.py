"""Named backbones and repositories: from a hub on this machine, from the cache, and without either."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from blemish.cli import main
from blemish.clip import hub
from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.hub import BACKBONES, Backbone, locate
from blemish.clip.model import CLIP
from blemish.clip.weights import load_clip, save_clip
from blemish.errors import BadWeights, UnknownName, WeightsNotFound

CONFIG = CLIPConfig(
    embed_dim=16,
    vision=VisionConfig(width=64, layers=2, heads=1, patch_size=8, image_size=16, mlp_width=32),
    text=TextConfig(width=32, layers=1, heads=1, mlp_width=16, context_length=9, vocab_size=30),
    name="small",
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FIRST, SECOND = "timm/small.openai", "openai/small"


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: t.detach() for name, t in CLIP(CONFIG).reset_parameters().state_dict().items()}


def open_clip_files(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(), folder / "open_clip_model.safetensors")
    described = {"model_cfg": {"vision_cfg": {}, "text_cfg": {"heads": 1}}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    (folder / "config.json").write_text('{"architecture": "vit"}')
    save_file({"patch_embed.proj.weight": torch.zeros(2)}, folder / "model.safetensors")


class Hub:
    """The part of a hub's web interface that its client uses, over files in `root/<owner>/<name>/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.status: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                parts = self.path.split("?")[0].strip("/").split("/")
                if hub.status is not None:
                    return self.reply(hub.status, b"")
                if parts[:2] == ["api", "models"]:
                    known = (hub.root / "/".join(parts[2:4])).is_dir()
                    return self.reply(200 if known else 404, b"{}")
                folder = hub.root / "/".join(parts[:2])
                file = folder / parts[-1]
                if not folder.is_dir():
                    return self.reply(401, b"", {"X-Error-Code": "RepoNotFound"})
                if not file.is_file():
                    return self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                content = file.read_bytes()
                tag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                return self.reply(200, content if body else b"", tag, len(content))

            def reply(
                self, status: int, body: bytes, headers: dict[str, str] | None = None, size: int | None = None
            ) -> None:
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body) if size is None else size))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def address_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """What HF_ENDPOINT does, which the client reads only once."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def small_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, a hub that refuses connections, and a small named backbone."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    address_hub(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setitem(BACKBONES, "small", Backbone(CONFIG, (FIRST, SECOND)))


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub(tmp_path / "hub")
    served.root.mkdir()
    address_hub(monkeypatch, served.address)
    yield served
    served.close()


def fill_cache(cache: Path, repository: str, files: Path) -> None:
    """The hub cache's true layout: blobs by hash, a snapshot of links, a reference to the commit."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for made in (folder / "blobs", folder / "refs", snapshot):
        made.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for file in files.iterdir():
        blob = folder / "blobs" / hashlib.sha1(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)


def test_registry() -> None:
    assert list(BACKBONES)[:6] == [
        "tiny",
        "ViT-L-14-336",
        "ViT-L-14",
        "ViT-B-16",
        "ViT-B-32",
        "ViT-B-16-plus-240",
    ]
    large = BACKBONES["ViT-L-14-336"].config
    assert large == CLIPConfig(name="ViT-L-14-336")
    plus = BACKBONES["ViT-B-16-plus-240"].config
    assert plus is not None
    assert (plus.vision.heads, plus.text.heads, plus.vision.grid) == (14, 10, 15)
    assert (plus.activation, plus.source, plus.embed_dim) == ("gelu", "laion400m", 640)


def test_named_backbone_is_fetched_once_then_cached(
    fake_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_clip_files(fake_hub.root / FIRST)
    clip = load_clip("small")
    assert clip.config == CONFIG
    assert torch.equal(clip.visual.proj, weights()["visual.proj"])
    assert any("GET" in line and "open_clip_model.safetensors" in line for line in fake_hub.asked)
    assert not any("/model.safetensors" in line for line in fake_hub.asked)
    fake_hub.asked.clear()
    assert load_clip("small").fingerprint == clip.fingerprint
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_clip("small").fingerprint == clip.fingerprint
    assert fake_hub.asked == []


def test_second_repository_is_the_fallback(fake_hub: Hub) -> None:
    (fake_hub.root / FIRST).mkdir(parents=True)
    (fake_hub.root / SECOND).mkdir(parents=True)
    (fake_hub.root / SECOND / "config.json").write_text('{"model_type": "clip"}')
    torch.save(weights(), fake_hub.root / SECOND / "pytorch_model.bin")
    located = locate("small")
    assert (located.repository, located.path.name, located.config) == (SECOND, "pytorch_model.bin", CONFIG)
    assert load_clip("small").config.name == "small"


def test_repository_id_with_shards(fake_hub: Hub) -> None:
    folder = fake_hub.root / "someone/clip"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    names = sorted(weights())
    halves = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in halves.items():
        save_file({name: weights()[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    clip = load_clip("someone/clip")
    assert clip.config.name == "someone/clip"
    assert torch.equal(clip.text_projection, weights()["text_projection"])


@pytest.mark.parametrize(
    ("repository", "activation", "source"),
    [("timm/x.openai", "quick_gelu", "openai"), ("timm/x.laion2b", "gelu", "open_clip")],
)
def test_repository_name_tells_whose_weights(
    fake_hub: Hub, repository: str, activation: str, source: str
) -> None:
    open_clip_files(fake_hub.root / repository)
    config = load_clip(repository).config
    assert (config.activation, config.source, config.name) == (activation, source, repository)


def test_own_form_on_a_hub(fake_hub: Hub) -> None:
    clip = CLIP(CONFIG).reset_parameters()
    save_clip(clip, fake_hub.root / "someone/own")
    assert load_clip("someone/own").config == CONFIG


def test_cache_layout_made_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    open_clip_files(tmp_path / "files")
    fill_cache(tmp_path / "cache", FIRST, tmp_path / "files")
    assert load_clip("small").config == CONFIG
    assert load_clip(FIRST).config == CONFIG
    # weights alone do for a named backbone, and at need for others
    (tmp_path / "files" / "open_clip_config.json").unlink()
    fill_cache(tmp_path / "cache", "someone/bare", tmp_path / "files")
    assert load_clip("someone/bare").config.name == "someone/bare"


def test_timms_image_tower_in_the_cache_is_not_taken(tmp_path: Path) -> None:
    files = tmp_path / "files"
    open_clip_files(files)
    for name in ("open_clip_model.safetensors", "open_clip_config.json"):
        (files / name).unlink()
    fill_cache(tmp_path / "cache", FIRST, files)
    with pytest.raises(WeightsNotFound, match="not in the hub's cache"):
        locate("small")


def test_wrong_shapes_under_a_name_are_refused(fake_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip_files(fake_hub.root / FIRST)
    large = BACKBONES["ViT-B-32"].config
    monkeypatch.setitem(BACKBONES, "small", Backbone(large, (FIRST,)))
    with pytest.raises(BadWeights, match="is missing"):
        load_clip("small")


def test_nothing_reachable_fails_fast_in_one_line() -> None:
    started = time.perf_counter()
    with pytest.raises(WeightsNotFound) as raised:
        locate("ViT-L-14-336")
    assert time.perf_counter() - started < 5
    text = str(raised.value)
    assert "\n" not in text
    for part in (
        "'ViT-L-14-336'",
        "the hub is not reachable (Connection refused)",
        "open_clip_model.safetensors of hub repository timm/vit_large_patch14_clip_336.openai",
        "--backbone PATH",
    ):
        assert part in text


def test_offline_is_honoured(fake_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip_files(fake_hub.root / FIRST)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsNotFound, match="HF_HUB_OFFLINE forbids asking the hub"):
        locate("small")
    assert fake_hub.asked == []


@pytest.mark.parametrize(
    ("status", "made", "message"),
    [
        (503, True, "the hub answers with status 503"),
        (None, False, "someone/clip: no such repository, or it needs a login"),
        (None, True, "someone/clip holds no CLIP weights in a known form"),
    ],
)
def test_a_hub_that_does_not_help(fake_hub: Hub, status: int | None, made: bool, message: str) -> None:
    if made:
        (fake_hub.root / "someone/clip").mkdir(parents=True)
    fake_hub.status = status
    started = time.perf_counter()
    with pytest.raises(WeightsNotFound, match=message):
        locate("someone/clip")
    assert time.perf_counter() - started < 5


def test_paths_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert locate("owner/name").path == Path("owner/name")
    for missing in ("./weights", "weights.pt", "a/b/c", "~/no-such-folder-here", tmp_path / "gone"):
        with pytest.raises(WeightsNotFound, match="no weight file or folder at") as raised:
            locate(missing)
        assert "\n" not in str(raised.value)
    with pytest.raises(UnknownName, match="did you mean 'ViT-L-14-336'"):
        locate("ViT-L-14-337")


def test_embedded_backbone_comes_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TINY", tmp_path / "tiny")
    with pytest.raises(WeightsNotFound, match="the embedded backbone is missing"):
        load_clip("tiny")
    save_clip(CLIP(CONFIG).reset_parameters(), tmp_path / "tiny")
    assert load_clip("tiny").config == CONFIG


def test_names_are_listed_without_torch() -> None:
    code = "import sys, blemish.clip.hub; sys.exit(bool({'torch', 'huggingface_hub'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fetch_gets_and_verifies(
    fake_hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_clip_files(fake_hub.root / FIRST)
    assert main(["fetch", "small", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["repository"] == FIRST and Path(found["path"]).exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_clip("small").fingerprint == found["fingerprint"]


def test_fetch_refuses_a_damaged_file(fake_hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    open_clip_files(fake_hub.root / FIRST)
    file = fake_hub.root / FIRST / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["fetch", "small"]) == 2
    assert "open_clip_model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mvtec", "blemish info FOLDER --dataset mvtec"),
        ("vcp_clip", "docs/methods/vcp_clip.md"),
        ("nothing", "ViT-L-14-336"),
        ("small", "not reachable"),
    ],
)
def test_fetch_says_where_to_ask(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", name]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said and len(said.splitlines()) <= 2
