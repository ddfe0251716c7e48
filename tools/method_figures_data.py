"""What the figures of `method_figures.py` show: boxes (column, row, kind, text with | between lines), arrows."""

from __future__ import annotations

Rows = dict[str, tuple[float, float, str, str]]

COMPARE = "cosine, softmax"


def skeleton(sentences: tuple[str, str], tower: tuple[str, str] = ("frozen", "text tower")) -> Rows:
    """What most figures have: two sentences and an image, both towers, texts, class feature."""
    return {
        "sentences": (0, 0, *sentences),
        "text_tower": (1, 0, *tower),
        "texts": (2, 0, "computed", "two texts,|normal and abnormal"),
        "image": (0, 2, "given", "image"),
        "image_tower": (1, 2, "frozen", "image tower"),
        "class": (2, 1, "computed", "class feature"),
    }


BASE = "sentences>text_tower>texts image>image_tower>class"
WITH_HEADS: Rows = {
    "heads": (2, 2, "learned", "linear heads for the|patches of 4 layers"),
    "pixel": (3, 2, "computed", f"{COMPARE}|per patch"),
    "map": (4, 2, "result", "anomaly map"),
}

FIGURES: dict[str, tuple[str, Rows, str]] = {
    "anomaly_clip": (
        "AnomalyCLIP",
        {
            **skeleton(
                ("learned", "[V1]…[V12] object.|[W1]…[W12] damaged|object."),
                ("tuned", "text tower, learned|tokens before|blocks 2 to 9"),
            ),
            "texts": (2, 0, "computed", "two texts, the same|for every image"),
            "stream": (1, 3, "frozen", "value-value attention|beside blocks 6 to 24"),
            "patches": (2, 3, "computed", "patches of the|last block"),
            "pixel": (3, 3, "computed", f"{COMPARE}|per patch"),
            "whole": (3, 1, "computed", COMPARE),
            "score": (4, 1, "result", "image score"),
            "map": (4, 3, "result", "anomaly map|(enlarged, σ 4)"),
        },
        f"{BASE} image_tower>stream>patches>pixel>map texts>whole class>whole>score texts>pixel",
    ),
    "vcp_clip": (
        "VCP-CLIP",
        {
            "image": (0, 2, "given", "image"),
            "image_tower": (1, 2, "frozen", "image tower"),
            "class": (1, 1, "computed", "class feature"),
            "net": (0, 1, "learned", "Pre-VCP: small|convolution"),
            "sentences": (0, 0, "learned", "a photo of a|good / damaged|[z1] [z2]"),
            "text_tower": (1, 0, "tuned", "text tower, a learned|token in each block"),
            "texts": (2, 0, "computed", "two texts|of this image"),
            "patches": (1, 3, "computed", "patches of 4 layers"),
            "heads": (2, 2, "learned", "linear heads"),
            "post": (2, 1, "learned", "Post-VCP: texts|attend to patches"),
            "one": (3, 2, "computed", f"{COMPARE}|branch 1"),
            "two": (3, 1, "computed", f"{COMPARE}|with patches: branch 2"),
            "map": (4, 1, "result", "anomaly map|0.2 · 1 + 0.8 · 2, σ 8"),
            "score": (4, 2, "result", "image score: top 2000|pixels of both"),
        },
        "image>image_tower>class>net>sentences>text_tower>texts image_tower>patches>heads>one "
        "patches>post texts>post>two texts>one one>map two>map one>score two>score",
    ),
    "vcp_clip_plus": (
        "VCP-CLIP+",
        {
            "image": (0, 2, "given", "image"),
            "image_tower": (1, 2, "frozen", "image tower"),
            "class": (1, 1, "computed", "class feature"),
            "net": (0, 1, "learned", "IDP: image feature|and 3 learned tokens|become one"),
            "sentences": (0, 0, "learned", "a photo of a|good / damaged [y]"),
            "text_tower": (1, 0, "tuned", "text tower, a learned|token in each block"),
            "texts": (2, 0, "computed", "two texts|of this image"),
            "patches": (1, 3, "computed", "patches of 4 layers"),
            "heads": (2, 2, "learned", "linear heads"),
            "post": (2, 1, "learned", "Post-VCP: texts|attend to patches"),
            "one": (3, 2, "computed", f"{COMPARE},|τ 0.07: branch 1"),
            "two": (3, 1, "computed", f"{COMPARE},|τ 0.07: branch 2"),
            "map": (4, 1, "learned", "UniOp: anomaly map|with learned weight|of both, σ 8"),
            "score": (4, 2, "result", "image score: top 2000|pixels of both"),
        },
        "image>image_tower>class>net>sentences>text_tower>texts image_tower>patches>heads>one "
        "patches>post texts>post>two texts>one one>map two>map one>score two>score",
    ),
    "vip2_clip": (
        "ViP²-CLIP",
        {
            "image": (0, 2, "given", "image"),
            "image_tower": (1, 2, "frozen", "image tower"),
            "class": (1, 1, "computed", "class feature"),
            "net": (0, 1, "learned", "ViP-VCA: 3 small nets|make 3 tokens"),
            "sentences": (0, 0, "learned", "[v1]…[v7] good [z1–3]|[w1]…[w7] damaged|[z1–3]"),
            "text_tower": (1, 0, "frozen", "text tower"),
            "texts": (2, 0, "computed", "two texts|of this image"),
            "patches": (2, 2, "computed", "patches of 4 layers,|projected"),
            "fgp": (2, 1, "learned", "ViP-FGP: texts|attend to patches"),
            "pixel": (3, 2, "computed", f"{COMPARE}|per patch and layer"),
            "select": (3, 1, "computed", "UTPA: mean of the 50|most abnormal patches"),
            "map": (4, 2, "result", "anomaly map: mean|of the layers, σ 8"),
            "score": (4, 1, "result", "image score"),
        },
        "image>image_tower>class>net>sentences>text_tower>texts>fgp image_tower>patches>pixel>map "
        "patches>fgp>pixel pixel>select>score",
    ),
    "gen_clip": (
        "GenCLIP",
        {
            "bare": (0, 0, "learned", "the same with object,|without the image"),
            "bare_tower": (1, 0, "tuned", "text tower, a learned|token in each block"),
            "bare_texts": (2, 0, "computed", "two texts, the same|for every image"),
            "sentences": (0, 1, "learned", "[N] / [A] photo of a|good / damaged|<class> [Q1] [Q2]"),
            "tower": (1, 1, "tuned", "text tower, a learned|token in each block"),
            "texts": (2, 1, "computed", "two texts a layer,|of this image"),
            "filter": (0, 2, "given", "class name, kept|where it fits the image"),
            "net": (1, 2, "learned", "vision prompt of each|of 4 layers"),
            "image": (0, 3, "given", "image"),
            "image_tower": (1, 3, "frozen", "image tower"),
            "heads": (2, 3, "learned", "linear heads for the|patches of 4 layers"),
            "query": (3, 0, "computed", f"{COMPARE}|query-only branch"),
            "vision": (3, 1, "computed", f"{COMPARE}|vision branch"),
            "map": (4, 1, "result", "anomaly map|0.8 · vision + 0.2 ·|query, σ 9"),
            "score": (4, 2, "result", "image score: weighted|mean of the top 500"),
        },
        "bare>bare_tower>bare_texts>query>map sentences>tower>texts>vision>map>score filter>sentences "
        "image>image_tower>net>sentences image_tower>heads heads>query heads>vision",
    ),
    "clip": (
        "CLIP and CLIP-AC",
        {
            **skeleton(("given", "a photo of a normal /|anomalous <class>.|CLIP-AC: 80 templates")),
            "patches": (2, 2, "computed", "patches of the|last block"),
            "whole": (3, 1, "computed", COMPARE),
            "pixel": (3, 2, "computed", f"{COMPARE}|per patch"),
            "score": (4, 1, "result", "image score"),
            "map": (4, 2, "result", "anomaly map"),
        },
        f"{BASE} image_tower>patches>pixel>map texts>whole class>whole>score texts>pixel",
    ),
    "coop": (
        "CoOp",
        {
            **skeleton(("learned", "[V1]…[V16] normal /|anomalous <class>")),
            "patches": (2, 2, "computed", "patches of the|last block"),
            "whole": (3, 1, "computed", f"{COMPARE}|(learned from labels)"),
            "pixel": (3, 2, "computed", f"{COMPARE}|per patch (no loss)"),
            "score": (4, 1, "result", "image score"),
            "map": (4, 2, "result", "anomaly map, σ 4"),
        },
        f"{BASE} image_tower>patches>pixel>map texts>whole class>whole>score texts>pixel",
    ),
    "cocoop": (
        "CoCoOp",
        {
            **skeleton(("learned", "[v1]…[v4] good /|damaged <class>")),
            "net": (0, 1, "learned", "Meta-Net: one vector|for all words"),
            "class": (1, 1, "computed", "class feature"),
            "texts": (2, 0, "computed", "two texts|of this image"),
            **WITH_HEADS,
            "whole": (3, 1, "computed", COMPARE),
            "score": (4, 1, "result", "image score"),
            "map": (4, 2, "result", "anomaly map, σ 8"),
        },
        "sentences>text_tower>texts image>image_tower>class>net>sentences image_tower>heads>pixel>map "
        "texts>pixel texts>whole class>whole>score",
    ),
    "win_clip": (
        "WinCLIP and WinCLIP+",
        {
            **skeleton(("given", "7 normal, 4 abnormal|states × 22 templates")),
            "texts": (2, 0, "computed", "two mean texts"),
            "class": (1, 1, "computed", "class feature"),
            "windows": (0, 3, "computed", "windows of 2×2 and|3×3 patches"),
            "window_tower": (1, 3, "frozen", "image tower,|window by window"),
            "pixel": (3, 2, "computed", "harmonic mean of the|windows' scores"),
            "scores": (2, 2, "computed", f"{COMPARE}|per window"),
            "whole": (3, 1, "computed", COMPARE),
            "score": (4, 1, "result", "image score"),
            "map": (4, 2, "result", "anomaly map"),
            "memory": (2, 3, "memory", "distance to windows of|1 to 64 normal images"),
        },
        f"{BASE} image>windows>window_tower>scores>pixel>map texts>scores texts>whole class>whole>score "
        "whole>pixel window_tower>memory>map",
    ),
    "april_gan": (
        "APRIL-GAN",
        {
            **skeleton(("given", "7 normal, 5 abnormal|states × 35 templates")),
            "texts": (2, 0, "computed", "two mean texts"),
            **WITH_HEADS,
            "whole": (3, 1, "computed", COMPARE),
            "score": (4, 1, "result", "image score"),
            "map": (4, 2, "result", "anomaly map: sum|of the layers"),
            "memory": (2, 3, "memory", "distance to patches of|a few normal images"),
        },
        f"{BASE} image_tower>heads>pixel>map texts>whole class>whole>score texts>pixel "
        "image_tower>memory>map",
    ),
    "ada_clip": (
        "AdaCLIP",
        {
            **skeleton(
                ("given", "28 normal, 20 abnormal|sentences"),
                ("tuned", "text tower, learned|tokens before|blocks 2 to 4"),
            ),
            "image_tower": (1, 2, "tuned", "image tower, learned|tokens in blocks 1 to 4"),
            "dynamic": (1, 1, "learned", "tokens of this image,|from its class feature"),
            "texts": (2, 0, "computed", "two texts|of this image"),
            "class": (3, 1, "computed", "hybrid semantic fusion|with clusters of the|most abnormal patches"),
            **WITH_HEADS,
            "score": (4, 1, "result", "image score"),
            "map": (4, 2, "result", "anomaly map, σ 4"),
        },
        "sentences>text_tower>texts image>image_tower>heads>pixel>map image>dynamic dynamic>text_tower "
        "dynamic>image_tower texts>pixel texts>class>score pixel>class",
    ),
    "aa_clip": (
        "AA-CLIP",
        {
            **skeleton(
                ("given", "6 normal, 10 abnormal|sentences on the class"),
                ("tuned", "text tower, adapters|behind blocks 1 to 3|(stage text)"),
            ),
            "image_tower": (1, 2, "tuned", "image tower, adapters|behind blocks 1 to 6|(stage image)"),
            "class": (2, 1, "learned", "linear head of the|class feature"),
            **WITH_HEADS,
            "whole": (3, 1, "computed", COMPARE),
            "score": (4, 1, "result", "image score: mean of it|and the map's maximum"),
            "map": (4, 2, "result", "anomaly map"),
        },
        f"{BASE} image_tower>heads>pixel>map texts>whole class>whole>score texts>pixel map>score",
    ),
    "fa_prompt": (
        "FAPrompt",
        {
            **skeleton(
                ("learned", "1 normal prompt,|10 abnormal ones"),
                ("tuned", "text tower, learned|tokens before|blocks 2 to 9"),
            ),
            "texts": (2, 0, "computed", "normal text, mean of|10 abnormal texts"),
            "prior": (1, 1, "learned", "prior: net over the|10 most abnormal|patches, pass 2"),
            "stream": (1, 3, "frozen", "value-value attention|beside blocks 6 to 24"),
            "patches": (2, 3, "computed", "patches of the|last block"),
            "class": (2, 2, "computed", "class feature"),
            "pixel": (3, 3, "computed", f"{COMPARE}|per patch"),
            "whole": (3, 1, "computed", f"{COMPARE}, with|the largest map values"),
            "score": (4, 1, "result", "image score"),
            "map": (4, 3, "result", "anomaly map, σ 10"),
        },
        "sentences>text_tower>texts image>image_tower>class>whole>score image_tower>stream>patches>pixel>map "
        "texts>whole texts>pixel prior>sentences patches>prior pixel>whole",
    ),
    "ano_vl": (
        "AnoVL",
        {
            **skeleton(("given", "462 normal and 462|abnormal sentences|with domain words")),
            "texts": (2, 0, "computed", "two mean texts"),
            "views": (0, 1, "computed", "22 views"),
            "view_tower": (1, 1, "frozen", "image tower,|view by view"),
            "class": (2, 1, "computed", "class features"),
            "image_tower": (1, 2, "frozen", "value-value path of|its own, no MLP"),
            "patches": (2, 2, "computed", "patches"),
            "adapter": (2, 3, "memory", "adapter, learned on|this image alone"),
            "whole": (3, 1, "computed", f"{COMPARE},|mean over views"),
            "pixel": (3, 2, "computed", f"{COMPARE}|per patch"),
            "score": (4, 1, "result", "image score"),
            "map": (4, 2, "result", "anomaly map"),
        },
        "sentences>text_tower>texts image>views>view_tower>class>whole>score image>image_tower>patches>pixel>map "
        "texts>whole texts>pixel patches>adapter>pixel",
    ),
    "af_clip": (
        "AF-CLIP",
        {
            **skeleton(("learned", "[V1]…[V12] without|defect. / with defect.")),
            "texts": (2, 0, "computed", "two texts, the same|for every image"),
            "areas": (1, 3, "computed", "patches of 4 layers,|alone, 3×3, 5×5"),
            "adaptor": (2, 2, "learned", "adaptor: one layer of|self-attention"),
            "sum": (3, 1, "computed", "sum of the cosines|of 12 sets, softmax"),
            "score": (4, 1, "result", "image score:|class token"),
            "map": (4, 2, "result", "anomaly map:|patches, σ 4"),
            "memory": (2, 3, "memory", "distance to patches of|a few normal images"),
        },
        "sentences>text_tower>texts image>image_tower>areas>adaptor>sum>map texts>sum sum>score "
        "areas>memory>map",
    ),
}
del FIGURES["af_clip"][1]["class"]
