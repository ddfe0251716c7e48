"""Which backbones have names, and where weights come from: a path, the hub's cache, or the hub."""

from __future__ import annotations

import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadWeights, UnknownName, WeightsNotFound
from .config import CLIPConfig, TextConfig, VisionConfig

FORMAT = "blemish-clip"
TINY = Path(__file__).parent / "tiny"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".index.json")
PROBE_SECONDS = 5.0

Get = Callable[[str], Path | None]


@dataclass(frozen=True)
class Backbone:
    """A named backbone.

    config: None for the embedded one, which carries its own. repositories: hub ids, tried in order.
    """

    config: CLIPConfig | None
    repositories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Located:
    """Weights on this machine.

    config: what a named backbone must be, else None. repository: hub id, "" for a plain path.
    """

    path: Path
    config: CLIPConfig | None = None
    repository: str = ""


def _vit(name: str, embed_dim: int, width: int, layers: int, patch: int, size: int) -> CLIPConfig:
    """OpenAI's proportions: 64 channels per head, MLP four times the width, text as wide as the output."""
    return CLIPConfig(
        embed_dim=embed_dim,
        vision=VisionConfig(width, layers, width // 64, patch, size, 4 * width),
        text=TextConfig(width=embed_dim, heads=embed_dim // 64, mlp_width=4 * embed_dim),
        name=name,
    )


def _laion(config: CLIPConfig) -> CLIPConfig:
    return CLIPConfig(
        config.embed_dim, config.vision, config.text, activation="gelu", source="laion400m", name=config.name
    )


BACKBONES: dict[str, Backbone] = {
    "tiny": Backbone(None),
    "ViT-L-14-336": Backbone(
        _vit("ViT-L-14-336", 768, 1024, 24, 14, 336),
        ("timm/vit_large_patch14_clip_336.openai", "openai/clip-vit-large-patch14-336"),
    ),
    "ViT-L-14": Backbone(
        _vit("ViT-L-14", 768, 1024, 24, 14, 224),
        ("timm/vit_large_patch14_clip_224.openai", "openai/clip-vit-large-patch14"),
    ),
    "ViT-B-16": Backbone(
        _vit("ViT-B-16", 512, 768, 12, 16, 224),
        ("timm/vit_base_patch16_clip_224.openai", "openai/clip-vit-base-patch16"),
    ),
    "ViT-B-32": Backbone(
        _vit("ViT-B-32", 512, 768, 12, 32, 224),
        ("timm/vit_base_patch32_clip_224.openai", "openai/clip-vit-base-patch32"),
    ),
    "ViT-B-16-plus-240": Backbone(
        _laion(_vit("ViT-B-16-plus-240", 640, 896, 12, 16, 240)),
        ("timm/vit_base_patch16_plus_clip_240.laion400m_e31",),
    ),
}


def locate(source: str | Path) -> Located:
    """Find the weights that `source` names: a backbone's name, a file, a folder, or a hub repository id.

    Named backbones and repositories come from the hub's cache when they are there, else from the hub.
    Raises WeightsNotFound (one line) when they are in neither or the path does not exist, UnknownName when
    `source` is nothing of all this.
    """
    text = str(source)
    if isinstance(source, str) and source in BACKBONES:
        known = BACKBONES[source]
        if known.config is None:
            if not TINY.is_dir():
                raise WeightsNotFound(f"the embedded backbone is missing from {TINY}; install blemish again")
            return Located(TINY)
        path, repository = fetch(source, known.repositories, config_known=True)
        return Located(path, known.config, repository)
    path = Path(source).expanduser()
    looks_like_path = (
        text.startswith((".", "/", "~")) or text.endswith(WEIGHT_SUFFIXES) or text.count("/") > 1
    )
    if isinstance(source, Path) or looks_like_path or _is_there(path):
        return Located(_existing(path, text))
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text):
        raise UnknownName("backbone", text, (*BACKBONES, "a path", "a hub repository id"))
    path, repository = fetch(text, (text,), config_known=False)
    return Located(path, None, repository)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text too long for a name
        return False


def fetch(name: str, repositories: Sequence[str], *, config_known: bool) -> tuple[Path, str]:
    """The weight file of the first repository that has one, and that repository's id.

    The cache is asked first, without network. config_known: cached weights will do without their
    configuration file. Honours HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME. Raises WeightsNotFound.
    """
    for repository in repositories:
        if path := _choose(_cached(repository), need_config=not config_known):
            return path, repository
    reason = _unreachable(repositories[0])
    for repository in repositories if reason is None else ():
        try:
            if path := _choose(_downloaded(repository), need_config=False):
                return path, repository
            reason = f"{repository} holds no CLIP weights in a known form"
        except _HubError as error:
            reason = f"{repository}: {error}"
            if isinstance(error, _Unreachable):
                break
    for repository in repositories:
        if path := _choose(_cached(repository), need_config=False):
            return path, repository
    wanted = OPEN_CLIP_FILES[0] if config_known else f"{MODEL_FILES[0]} and config.json"
    raise WeightsNotFound(
        f"no weights for backbone {name!r}: not in the hub's cache, and {reason}; take {wanted} of hub "
        f"repository {repositories[0]} to any folder here and name it with --backbone PATH"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises BadWeights when it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadWeights(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadWeights(f"{path}: expected a JSON object, found a {type(found).__name__}")
    return found


def shard_names(index: Path) -> list[str]:
    """Names of the shards that an `*.index.json` lists, each once. Raises BadWeights when there are none."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadWeights(f"{index}: has no weight_map, so it names no shard")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise BadWeights(f"{index}: shard {name!r} is not a plain file name in the same folder")
    return names


class _HubError(Exception):
    """The hub could not be asked or refused; the text is the cause."""


class _Unreachable(_HubError):
    """No connection, so that other repositories need not be tried."""


def _existing(path: Path, text: str) -> Path:
    if path.exists():
        return path
    raise WeightsNotFound(
        f"no weight file or folder at {path} (backbone {text!r}); check the path, or name one of "
        f"{', '.join(BACKBONES)} or a hub repository id with --backbone"
    )


def _choose(get: Get, *, need_config: bool) -> Path | None:
    """The weight file of a repository, fetched with what belongs beside it; None when it has none."""
    for filename in OPEN_CLIP_FILES:
        path = get(filename)
        if path and (get(OPEN_CLIP_CONFIG) or not need_config):
            return path
    config = get("config.json")
    if config is None:
        return None
    described = read_json(config)
    if described.get("format") == FORMAT:
        get("tokenizer.json")
    elif described.get("model_type") == "clip":
        get("preprocessor_config.json")
    else:
        return None
    for filename in MODEL_FILES:
        path = get(filename)
        if path and (path.suffix != ".json" or all(get(shard) for shard in shard_names(path))):
            return path
    return None


def _cached(repository: str) -> Get:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def get(filename: str) -> Path | None:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, filename, local_files_only=True))
        except EntryNotFoundError:
            return None

    return get


def _downloaded(repository: str) -> Get:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    def get(filename: str) -> Path | None:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, filename, etag_timeout=PROBE_SECONDS))
        except LocalEntryNotFoundError as error:
            raise _Unreachable(_first_line(error.__cause__ or error)) from error
        except EntryNotFoundError:
            return None
        except RepositoryNotFoundError as error:
            raise _HubError("no such repository, or it needs a login") from error
        except Exception as error:  # the transport library, and so its errors, differ between hub versions
            raise _HubError(_first_line(error)) from error

    return get


def _unreachable(repository: str) -> str | None:
    """Why the hub cannot be asked, or None. One short request, as the hub's own client retries for long."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking the hub"
    request = urllib.request.Request(f"{constants.ENDPOINT}/api/models/{repository}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        # 4xx may still work with the user's login, which the hub's client knows
        return None if error.code < 500 else f"the hub answers with status {error.code}"
    except OSError as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLError):
            return None  # the hub's client brings its own certificates, so let it try
        return f"the hub is not reachable ({getattr(cause, 'strerror', None) or _first_line(cause)})"


def _first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
