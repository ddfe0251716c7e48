"""How cost grows with image size, batch, number of images and number of classes; tables and pictures.

    python benchmarks/growth.py -o OUT [--only size batch images classes] [--backbones tiny ViT-L-14-336] [--repeats 5]

Size and batch: seconds an image of `anomaly_clip` on the embedded `tiny` and on ViT-L-14-336 (random weights, in
`--precision`). Images: seconds and peak memory of `blemish predict` on so many drawn 320-pixel pictures with `tiny`,
one run each, and no overlays. Classes: `clip_ac` on `tiny`, whose texts name the class: seconds for one image of each
of so many classes, when their texts are new and when they are kept. Every row is a process of its own. OUT gets
growth.json, growth.md (the tables) and one SVG a question; rows that growth.json has are not measured again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from timing import (
    BLOCKS,
    TYPES,
    Results,
    alternating,
    conditions,
    did_job,
    heading,
    in_own_process,
    model_options,
    random_clip,
    run_and_watch,
    spread,
)

QUESTIONS = ("size", "batch", "images", "classes")
SIZES = (224, 336, 518, 700, 1036)
BATCHES = (1, 2, 4, 8)
IMAGES = (10, 100, 500, 2000)
CLASSES = (1, 10, 100)
DRAWN = 20
TITLES = {
    "size": "seconds an image over the side of the network input, pixels",
    "batch": "seconds an image over the batch size",
    "images": "seconds of a whole run over the number of images",
    "classes": "seconds over the number of classes, one image each",
}


def fitted(side: int, patch: int) -> int:
    """The multiple of the patch size nearest to `side`."""
    return max(1, round(side / patch)) * patch


def one_network(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds an image and peak memory at one size and batch."""
    import torch

    import blemish
    from blemish.detector import Detector, Setup
    from blemish.device import peak_memory_mib
    from blemish.methods import build

    torch.set_num_threads(job["threads"])
    if job["backbone"] == "tiny":
        patch = 16
        size = fitted(job["size"], patch)
        detector = blemish.load("anomaly_clip", device="cpu", precision="fp32", image_size=size)
    else:
        size = fitted(job["size"], 14)
        clip = random_clip(getattr(torch, TYPES[job["precision"]]), job["blocks"])
        method = build("anomaly_clip", clip).eval().requires_grad_(False)
        detector = Detector(clip, method, Setup("anomaly_clip", "random", size))
    inputs = np.random.default_rng(0).standard_normal((job["batch"], 3, size, size)).astype(np.float32)
    detector._forward(inputs[:1])
    times = alternating({"all": lambda: detector._forward(inputs)}, job["repeats"], warm=True)["all"]
    return {
        "x": size if job["question"] == "size" else job["batch"],
        "seconds": spread([s / job["batch"] for s in times]),
        "peak_mib": peak_memory_mib(detector.device),
        "conditions": conditions(job["threads"], detector.precision),
    }


def many_images(count: int, threads: int) -> dict[str, Any]:
    """A whole run of the command on `count` pictures."""
    from PIL import Image

    from blemish.synth import draw

    with tempfile.TemporaryDirectory(prefix="blemish-") as place:
        folder = Path(place) / "in"
        folder.mkdir()
        paths = []
        for i in range(count):
            path = folder / f"{i:05}.png"
            paths.append(path)
            if i < DRAWN:
                Image.fromarray(draw(np.random.default_rng(i), 320, defect=i % 2 == 1).image).save(path)
            else:
                path.write_bytes(paths[i % DRAWN].read_bytes())
        command = [sys.executable, "-m", "blemish", "predict", str(folder), "-o", str(Path(place) / "out")]
        found = run_and_watch([*command, "--quiet", "--save", "none", "--threads", str(threads)])
    return {
        "x": count,
        "seconds": found["seconds"],
        "seconds_an_image": found["seconds"] / count,
        "peak_mib": found["peak_mib"],
        "conditions": conditions(threads, "fp32"),
    }


def many_classes(job: dict[str, Any]) -> dict[str, Any]:
    """One image of each of so many classes: texts new, and kept."""
    import torch

    import blemish

    torch.set_num_threads(job["threads"])
    # Embedded, it calls every class "object", by one text for all.
    detector = blemish.load("clip_ac", device="cpu", precision="fp32", noun="")
    side = detector.setup.image_size
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32))
    names = [f"part number {i}" for i in range(job["classes"])]
    turns = []
    with torch.inference_mode():
        for _ in range(2):
            started = time.perf_counter()
            for name in names:
                detector.method(detector.clip.encode_image(images, detector.method.needs), [name])
            turns.append(time.perf_counter() - started)
    return {
        "x": job["classes"],
        "seconds": turns[0],
        "seconds_texts_kept": turns[1],
        "seconds_a_class": turns[0] / job["classes"],
        "conditions": conditions(job["threads"], "fp32"),
    }


def measure(results: Results, given: argparse.Namespace) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Question -> name of a line -> its rows."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    common = {"threads": given.threads, "repeats": given.repeats, "precision": given.precision}
    common["blocks"] = given.blocks
    for question in given.only:
        lines = found.setdefault(question, {})
        if question in ("size", "batch"):
            values = given.sizes if question == "size" else given.batches
            for backbone in given.backbones:
                precision = "fp32" if backbone == "tiny" else given.precision
                cut = "" if backbone == "tiny" or given.blocks == BLOCKS else f" of {given.blocks} blocks"
                line = f"{backbone}{cut} {precision}"
                rows = lines.setdefault(line, [])
                fixed = 320 if backbone == "tiny" else 518
                for value in values:
                    size, batch = (value, 1) if question == "size" else (min(fixed, max(given.sizes)), value)
                    job = {"question": question, "backbone": backbone, "size": size, "batch": batch}
                    key = f"{question} {value}, {line}, {given.threads} threads"
                    rows.append(results.get(key, lambda job=job: in_own_process(__file__, common | job)))
        elif question == "images":
            rows = lines.setdefault("tiny", [])
            for count in given.images:
                key = f"images {count}, {given.threads} threads"
                rows.append(results.get(key, lambda count=count: many_images(count, given.threads)))
        else:
            rows = lines.setdefault("tiny, texts new", [])
            for count in given.classes:
                job = common | {"question": question, "classes": count}
                key = f"classes {count}, own names, {given.threads} threads"
                rows.append(results.get(key, lambda job=job: in_own_process(__file__, job)))
    return found


def middle(value: Any) -> float:
    """A single figure, or the median of several."""
    return float(value["median"] if isinstance(value, dict) else value)


def table(question: str, lines: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a row for each value, of every line."""
    names = [name for name in next(iter(lines.values()))[0] if name not in ("x", "conditions")]
    head = [question, "", *(name.replace("_", " ").replace("mib", "MiB") for name in names)]
    rows = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for line, values in lines.items():
        for row in values:
            figures = [f"{middle(row[name]):.4g}" for name in names]
            rows.append(f"| {row['x']} | {line} | {' | '.join(figures)} |")
    return "\n".join(rows) + "\n"


def write(out: Path, found: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """growth.md, and growth-QUESTION.svg for each question."""
    from blemish.output.loss_curves import line_panels

    parts = []
    for question, lines in found.items():
        parts.append(f"## {TITLES[question].capitalize()}\n\n{table(question, lines)}")
        # A panel for each line: the backbones' costs differ by orders of magnitude.
        panels = {
            f"{TITLES[question]}: {line}": {line: [(float(row["x"]), middle(row["seconds"])) for row in rows]}
            for line, rows in lines.items()
        }
        picture = line_panels(panels).replace("training curves", TITLES[question])
        (out / f"growth-{question}.svg").write_text(picture, encoding="utf-8")
    (out / "growth.md").write_text("\n".join(parts), encoding="utf-8")


def main() -> None:
    """Measure, then write tables and pictures."""
    parser = model_options(__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--backbones", nargs="+", default=["tiny", "ViT-L-14-336"])
    parser.add_argument("--precision", choices=list(TYPES), default="bf16", help="of ViT-L-14-336")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--images", nargs="+", type=int, default=list(IMAGES))
    parser.add_argument("--classes", nargs="+", type=int, default=list(CLASSES))
    given = parser.parse_args()
    if did_job(given, lambda job: many_classes(job) if job["question"] == "classes" else one_network(job)):
        return
    heading(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    found = measure(Results(given.json or given.out / "growth.json"), given)
    write(given.out, found)
    print(f"{given.out / 'growth.md'} and a growth-*.svg for each question")


if __name__ == "__main__":
    main()
