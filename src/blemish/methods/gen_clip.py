"""GenCLIP: generalising CLIP prompts (arXiv 2504.14919), which has no public code.

The prompts "<N> photo of a good <class> <Q>" and "<A> photo of a damaged <class> <Q>" have learned words <N>,
<A> and query tokens <Q>. In the vision-enhanced branch every image layer adds a vector of its own to the query
tokens (multi-layer vision prompts); the query-only branch has them bare and knows no class name. At inference
a class name that fits the image worse than "object" is replaced by it (class name filtering). What the paper
leaves open follows its ancestors' code (AdaCLIP, AnomalyCLIP, VCP-CLIP); the alternatives are options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.layers import resolve_layers
from ..clip.model import CLIP, DeepPrompts
from ..errors import BadOption
from ..parts.class_names import ClassNameFilter, spaced
from ..parts.layers import reset_layer
from ..parts.losses import dice, focal, layer_names
from ..parts.maps import gaussian_blur, upsample_then_probability, upsample_then_softmax
from ..parts.prompts import TextCache, tokenizer_of
from ..parts.scores import confidence_weighted, cosine_logits, maximum, scaled_count
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction, Target
from . import check_options, option

# Pieces of a class name that a prompt may hold.
MOST_PIECES = 60


@dataclass(frozen=True)
class GenCLIPConfig:
    """Options of GenCLIP; the defaults are the paper's, or its ancestors' where it is silent."""

    layers: tuple[int | float, ...] = option(
        (0.25, 0.5, 0.75, 1.0), "image blocks that give maps: numbers from 1, or fractions of the depth"
    )
    alpha: float = option(0.8, "weight of the vision-enhanced branch; the query-only branch has the rest")
    tau: float = option(0.07, "divisor of the cosine similarities")
    use_mvp: bool = option(True, "the image is added to the query tokens (multi-layer vision prompts)")
    mvp_pool: str = option("all", "tokens whose mean is the vision prompt", ("all", "patch", "cls"))
    mvp_source: str = option(
        "each", "every layer has a vision prompt of its own, or all have the last one's", ("each", "last")
    )
    mvp_norm: str = option("none", "normalisation of the pooled tokens", ("none", "layernorm"))
    n_query: int = option(2, "query tokens after the class name", least=1)
    state_words: tuple[str, ...] = option(("good", "damaged"), "words of the two states, normal first")
    keep_leading_a: bool = option(False, "the prompts begin with 'a' before the learned word")
    trailing_object: bool = option(False, "the prompts go on with 'object' after the query tokens")
    trailing_period: bool = option(False, "the prompts end with a full stop")
    deep_mode: str = option(
        "insert",
        "deep prompts are inserted after the start-of-text token, or overwrite the learned word from text"
        " block 2 on",
        ("insert", "overwrite"),
    )
    deep_depth: int = option(12, "text blocks with a deep prompt, at most all", least=1)
    deep_proj: bool = option(False, "VCP-CLIP's shared projection and dropout of the deep prompts")
    dropout: float = option(0.1, "dropout of the projected deep prompts in training", least=0)
    use_cnf: bool = option(True, "class names that do not fit the image are replaced at inference")
    cnf_scope: str = option(
        "image",
        "class names are judged per image, or by majority: of a class's images in evaluations, else of a batch",
        ("image", "class"),
    )
    cnf_image_size: int | None = option(
        None, "input side in pixels of a second pass that judges class names; none: the map's", least=1
    )
    generic_term: str = option("object", "what stands for a class name that is missing or does not fit")
    sigma: float = option(9.0, "standard deviation of the map's smoothing, in pixels", least=0)
    image_score: str = option(
        "confidence",
        "mean of the n1 largest pixels weighted by their rise over n2; or max",
        ("confidence", "max"),
    )
    n1: int = option(500, "largest pixels in the image score", least=1)
    n2: int = option(2500, "largest pixels that these are compared with", least=1)
    scale_topn: bool = option(True, "n1 and n2 are meant for 518 x 518 pixels and scaled by area elsewhere")
    dice_both: bool = option(False, "Dice loss of the normal channel too")
    pos_interp: str = option("bicubic", "resizing of the position table", POSITION_RESIZES)

    def __post_init__(self) -> None:
        check_options(self)
        for name, value in (("alpha", self.alpha), ("dropout", self.dropout)):
            if not 0 <= value <= 1:
                raise BadOption(f"option {name} is {value}; expected a number from 0 to 1")
        if not self.tau > 0:
            raise BadOption(f"option tau is {self.tau}; expected a number above 0")
        if self.n1 > self.n2:
            raise BadOption(f"option n1 is {self.n1}; expected at most n2 = {self.n2}")
        if len(self.state_words) != 2 or not all(word.strip() for word in self.state_words):
            raise BadOption(f"option state_words is {self.state_words!r}; expected two words, normal first")
        if not self.generic_term.strip():
            raise BadOption("option generic_term is empty; expected a word such as 'object'")


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt: head, query tokens, tail. place: index in the head of the learned word."""

    head: tuple[int, ...]
    tail: tuple[int, ...]
    place: int

    def __len__(self) -> int:
        """Tokens without the query tokens."""
        return len(self.head) + len(self.tail)


class GenCLIP(nn.Module):
    """Learned parts of GenCLIP on a frozen CLIP of any size.

    state_tokens: (2, W), normal and abnormal; query_tokens: (n_query, W); deep_prompts: (blocks, 1, W), W
    being the text tower's width; text_heads: one linear map per vision prompt, image width -> W; image_heads:
    one per layer, image width -> joint width.
    """

    config_class: ClassVar[type] = GenCLIPConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "final_token": {"mvp_pool": "cls", "mvp_source": "last", "alpha": 1.0},
        "mvp_only": {"alpha": 1.0},
        "no_cnf": {"use_cnf": False},
    }
    # Rate and epochs are the paper's; batch, seed and the absent augmentation its ancestors'.
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 15,
        "batch_size": 8,
        "seed": 111,
        "augmentation": "none",
        "learning_rate": 4e-5,
    }
    learns_without_masks: ClassVar[bool] = False
    clip: CLIP

    def __init__(self, clip: CLIP, config: GenCLIPConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GenCLIPConfig()
        # The frozen CLIP is no part of what is learned, moved or saved here.
        object.__setattr__(self, "clip", clip)
        shape, text = clip.config, clip.config.text
        self.blocks = resolve_layers(config.layers, shape.vision.layers)
        second, patch = config.cnf_image_size, shape.vision.patch_size
        if second is not None and second % patch:
            raise ValueError(f"cnf_image_size {second} is no multiple of the patch size {patch}")
        self.needs = FeatureSpec(
            layers=config.layers,
            projected=False,
            position_resize=config.pos_interp,
            class_size=second if config.use_cnf and config.alpha > 0 else None,
        )
        top = float(len(self.blocks))
        self.map_range = (0.0, top)
        # The weight is at most n2 / n1, and rounding of the scaled numbers less than doubles that.
        most = min(math.exp(top), 2 * config.n2 / config.n1) if config.image_score == "confidence" else 1.0
        self.score_range = (0.0, top * most)
        self.state_tokens = nn.Parameter(torch.empty(2, text.width))
        self.query_tokens = nn.Parameter(torch.empty(config.n_query, text.width))
        # Overwriting begins before block 2.
        count = min(config.deep_depth, text.layers) - (config.deep_mode == "overwrite")
        self.deep_prompts = nn.Parameter(torch.empty(count, 1, text.width), requires_grad=count > 0)
        self.deep_projection = nn.Linear(text.width, text.width) if config.deep_proj and count else None
        prompts = (1 if config.mvp_source == "last" else len(self.blocks)) if config.use_mvp else 0
        self.text_heads = nn.ModuleList(nn.Linear(shape.vision.width, text.width) for _ in range(prompts))
        self.image_heads = nn.ModuleList(nn.Linear(shape.vision.width, shape.embed_dim) for _ in self.blocks)
        self._cache = TextCache()
        self.names = ClassNameFilter(clip, config.generic_term)
        self.prompts(config.generic_term)
        self.reset()
        self.to(clip.device)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the learned parts: tokens N(0, 0.02^2), linear maps uniformly by their width."""
        for tokens in (self.state_tokens, self.query_tokens, self.deep_prompts):
            nn.init.normal_(tokens, std=0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                reset_layer(module, generator)

    def train(self, mode: bool = True) -> GenCLIP:
        """Training or evaluation mode; kept text features are forgotten."""
        self._cache.clear()
        return super().train(mode)

    def parameter_groups(self, learning_rate: float = 4e-5) -> list[dict[str, Any]]:
        """One group for `torch.optim.Adam`, with the paper's rate and its ancestors' betas."""
        learned = [p for p in self.parameters() if p.requires_grad]
        return [{"params": learned, "lr": learning_rate, "betas": (0.5, 0.999)}]

    def prompts(self, term: str) -> list[Prompt]:
        """Both prompts with a class term, normal first; it is cut at 60 pieces, or where the context ends.

        Raises ValueError when the prompt does not fit without any class term.
        """
        config, tokenizer = self.config, tokenizer_of(self.clip)
        first = [tokenizer.sot, *(tokenizer.encode("a") if config.keep_leading_a else [])]
        end = f"{'object' if config.trailing_object else ''}{'.' if config.trailing_period else ''}"
        tail = (*tokenizer.encode(end), tokenizer.eot)
        found = []
        for state in config.state_words:
            head = [*first, 0, *tokenizer.encode(f"photo of a {state}")]
            room = self.clip.config.text.context_length - len(head) - len(tail) - config.n_query
            if room < 1:
                raise ValueError(f"n_query = {config.n_query} leaves no room for a class name in the prompts")
            pieces = tokenizer.encode(term)[: min(MOST_PIECES, room)]
            found.append(Prompt((*head, *pieces), tail, len(first)))
        return found

    def vision_prompts(self, features: ImageFeatures) -> Tensor | None:
        """What the image adds to the query tokens, (layers, B, W); None without `use_mvp`."""
        if not self.config.use_mvp:
            return None
        layers = features.tokens["qk"]
        chosen = layers if self.config.mvp_source == "each" else layers[-1:]
        prompts = []
        for head, tokens in zip(self.text_heads, chosen, strict=True):
            part = {"all": tokens, "patch": tokens[:, 1:], "cls": tokens[:, :1]}[self.config.mvp_pool]
            pooled = part.to(self.query_tokens.dtype).mean(dim=1)
            if self.config.mvp_norm == "layernorm":
                pooled = F.layer_norm(pooled, pooled.shape[-1:])
            prompts.append(head(pooled))
        return torch.stack(prompts).expand(len(layers), -1, -1)

    def text_features(self, terms: Sequence[str], vision: Tensor | None = None) -> Tensor:
        """Unit text features, normal first: (R, B, 2, D) for B class terms and vision prompts (R, B, W).

        Without vision prompts the query tokens are bare and R is 1.
        """
        repeats, count = (1, len(terms)) if vision is None else tuple(vision.shape[:2])
        queries = self.query_tokens.expand(repeats, count, -1, -1)
        if vision is not None:
            queries = queries + vision[:, :, None]
        known = {term: self.prompts(term) for term in dict.fromkeys(terms)}
        length = max(len(p) for both in known.values() for p in both) + self.config.n_query
        # Images with one term are filled in at once.
        groups = {0: queries.flatten(0, 1)} if len(known) == 1 else dict(enumerate(queries.unbind(1)))
        rows, eot = [], []
        for i, own in groups.items():
            for state, prompt in enumerate(known[terms[i]]):
                rows.append(self._fill(prompt, self.state_tokens[state], own, length))
                eot.append(len(prompt) + self.config.n_query - 1)
        embeddings = torch.stack(rows, dim=1).flatten(0, 1)
        index = torch.tensor(eot, device=queries.device).repeat(rows[0].shape[0])
        flat = self.clip.encode_embeddings(embeddings, index, deep=self._deep(index.shape[0]))
        return F.normalize(flat.float(), dim=-1).unflatten(0, (repeats, count, 2))

    def _fill(self, prompt: Prompt, word: Tensor, queries: Tensor, length: int) -> Tensor:
        """Word embeddings (R, length, W) of a prompt with its learned word (W,) and queries (R, n_query, W)."""
        padding = [0] * (length - len(prompt) - queries.shape[1])
        ids = torch.tensor([*prompt.head, *prompt.tail, *padding], device=queries.device)
        words, end = self.clip.embed(ids).to(queries.dtype), len(prompt.head)
        head = torch.cat([words[: prompt.place], word[None], words[prompt.place + 1 : end]])
        spread = (queries.shape[0], -1, -1)
        return torch.cat([head.expand(spread), queries, words[end:].expand(spread)], dim=1)

    def _deep(self, count: int) -> DeepPrompts | None:
        """The deep prompts for `count` sequences."""
        deep: Tensor = self.deep_prompts
        if not len(deep):
            return None
        if self.deep_projection is not None:
            deep = self.deep_projection(deep)[:, None].expand(-1, count, -1, -1)
            # Drawn separately for every image, layer, state and block.
            deep = F.dropout(deep, self.config.dropout, self.training)
        insert = self.config.deep_mode == "insert"
        return DeepPrompts(list(deep) if insert else [None, *deep], insert=insert)

    def bare_features(self, term: str) -> Tensor:
        """Unit text features (2, D) of a class term with bare query tokens; kept in evaluation."""
        return self._cache.get(self, term, lambda: self.text_features([term])[0, 0])

    def query_features(self) -> Tensor:
        """Unit text features (2, D) of the query-only branch, the same for every image, layer and data set."""
        return self.bare_features(self.config.generic_term)

    def vision_features(self, features: ImageFeatures, terms: Sequence[str]) -> Tensor:
        """Unit text features (layers, B, 2, D) of the vision-enhanced branch for B class terms."""
        vision = self.vision_prompts(features)
        if vision is not None:
            return self.text_features(terms, vision)
        known = {term: self.bare_features(term) for term in dict.fromkeys(terms)}
        return torch.stack([known[term] for term in terms]).expand(len(self.blocks), -1, -1, -1)

    def class_terms(self, class_feature: Tensor, names: Sequence[str] | None, filtered: bool) -> list[str]:
        """What stands for the class names of B images. class_feature: (B, D), CLIP's own; filtered: with CNF."""
        if torch.compiler.is_exporting():  # a graph for any number of images has one name for all
            if names and filtered:
                raise BadOption("class names are filtered by image; export gen_clip with use_cnf=false")
            return [spaced(names[0]) if names else self.config.generic_term]
        if names is None:
            return [self.config.generic_term] * len(class_feature)
        if len(names) != len(class_feature):
            raise ValueError(f"{len(names)} class names for {len(class_feature)} images; give one for each")
        if not filtered:
            return [spaced(name) or self.config.generic_term for name in names]
        choose = self.names.per_image if self.config.cnf_scope == "image" else self.names.per_class
        return choose(class_feature, names)

    @property
    def surveys(self) -> bool:
        """Whether a class's test images decide together on its name: see `blemish.types.Surveys`."""
        return self.config.use_cnf and self.config.cnf_scope == "class" and self.config.alpha > 0

    def survey(self, features: ImageFeatures, class_names: Sequence[str]) -> None:
        """Let B images vote on their class names, one for each."""
        self.names.vote(_plain(features), class_names)

    def forget_survey(self) -> None:
        """Forget all votes; without any, the images of a batch decide alone."""
        self.names.clear()

    def projected(self, features: ImageFeatures) -> list[Tensor]:
        """Patches in the joint space, (B, N, D) per layer, not normalised."""
        dtype = self.query_tokens.dtype
        return [
            head(tokens[:, 1:].to(dtype))
            for head, tokens in zip(self.image_heads, features.tokens["qk"], strict=True)
        ]

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) in `map_range` and scores (B,) in `score_range`.

        class_names: one per image, filtered as the options say; None is the generic term. details:
        "class_terms", a list of B words; "text_features" (B, layers, 2, D) of the vision-enhanced branch, or
        (1, 2, D) of the other where there is none, and "query_features" (2, D), unit rows; "vision_map" and
        "query_map", the sums over the layers; "map", their mixture before smoothing. A branch of weight 0 is
        left out.
        """
        alpha, patches = self.config.alpha, self.projected(features)
        details: dict[str, Any] = {}
        parts = []
        if alpha > 0:
            terms = self.class_terms(_plain(features), class_names, self.config.use_cnf)
            text = self.vision_features(features, terms)
            vision = self._sum(patches, text, features)
            details |= {"class_terms": terms, "text_features": text.transpose(0, 1), "vision_map": vision}
            parts.append(alpha * vision)
        if alpha < 1:
            text = self.query_features()
            query = self._sum(patches, text.expand(len(patches), -1, -1), features)
            details |= {"query_features": text, "query_map": query}
            details.setdefault("text_features", text[None])
            parts.append((1 - alpha) * query)
        details["map"] = reduce(torch.add, parts)
        smoothed = gaussian_blur(details["map"], self.config.sigma)
        if self.config.image_score == "max":
            return Prediction(smoothed, maximum(smoothed), details)
        return Prediction(smoothed, confidence_weighted(smoothed, *self._top_n(smoothed)), details)

    def _sum(self, patches: list[Tensor], text: Tensor, features: ImageFeatures) -> Tensor:
        """A branch's map (B, H, W): its layers added up. text: (layers, [B,] 2, D)."""
        grid, size = features.grid, features.image_size
        logits = (cosine_logits(p, t) / self.config.tau for p, t in zip(patches, text, strict=True))
        return reduce(torch.add, (upsample_then_probability(layer, grid, size) for layer in logits))

    def _top_n(self, maps: Tensor) -> tuple[int, int]:
        n1, n2 = self.config.n1, self.config.n2
        return (scaled_count(n1, maps), scaled_count(n2, maps)) if self.config.scale_topn else (n1, n2)

    def training_maps(
        self, features: ImageFeatures, class_names: Sequence[str] | None = None
    ) -> list[Tensor]:
        """Class probabilities (B, 2, H, W) per layer of the vision-enhanced branch, class names unfiltered."""
        text = self.vision_features(features, self.class_terms(features.class_feature, class_names, False))
        logits = [
            cosine_logits(p, t) / self.config.tau for p, t in zip(self.projected(features), text, strict=True)
        ]
        return [upsample_then_softmax(x.float(), features.grid, features.image_size) for x in logits]

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Terms of the training loss, "focal.N" and "dice.N" per layer N (`layer_names`); their sum is the total.

        Only the vision-enhanced branch is trained. Raises ValueError without masks.
        """
        if target.mask is None:
            raise ValueError("gen_clip learns from masks only; give Target.mask, or train anomaly_clip")
        mask = target.mask.float()
        terms = {}
        layers = self.training_maps(features, class_names)
        for layer, maps in zip(layer_names(self.blocks), layers, strict=True):
            terms[f"focal.{layer}"] = focal(maps, mask)
            normal = dice(maps[:, 0], 1 - mask) if self.config.dice_both else 0
            terms[f"dice.{layer}"] = dice(maps[:, 1], mask) + normal
        return terms


def _plain(features: ImageFeatures) -> Tensor:
    """CLIP's own class feature (B, D) that class names are judged by."""
    return features.class_feature if features.plain_class_feature is None else features.plain_class_feature
