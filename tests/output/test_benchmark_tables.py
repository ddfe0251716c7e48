"""results.csv, tables.md and tables.tex of a benchmark."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from boards import board

from blemish.output.benchmark_tables import tables, tex, write_csv, write_markdown, write_tex
from blemish.output.scoreboard import average, difference, mean_over_datasets, percent, ranks


def test_ranks_go_by_the_printed_decimal_and_ties_share() -> None:
    assert ranks({"a": 0.91, "b": 0.9104, "c": 0.5}) == {"a": 1, "b": 1}
    assert ranks({"a": 0.91, "b": 0.9, "c": 0.9, "d": None}) == {"a": 1, "b": 2, "c": 2}
    assert ranks({"a": 0.91, "b": None}) == {}


def test_numbers_as_people_write_them() -> None:
    assert (percent(0.91549), percent(None), percent(1.0)) == ("91.5", "–", "100.0")
    # the difference is that of the printed figures, so that a reader's own subtraction agrees
    assert difference(0.9234, 0.921) == "+0.2" and difference(0.9, 0.921) == "−2.1"
    assert difference(0.92149, 0.921) == "±0.0"
    over = average([0.9, None, 0.8])
    assert (
        over.value == pytest.approx(0.85)
        and over.count == 2
        and over.spread == pytest.approx(0.0707, abs=1e-4)
    )
    assert average([None], "no masks").reason == "no masks" and average([0.5]).spread is None


def test_the_mean_over_datasets_misses_none() -> None:
    made = board()
    assert mean_over_datasets(made, "vcp_clip", "image_auroc") == pytest.approx((0.9234 + 0.8) / 2)
    assert mean_over_datasets(made, "gen_clip", "image_auroc") is None


def test_markdown_has_every_figure_and_every_failure(tmp_path: Path) -> None:
    write_markdown(tmp_path / "t.md", board())
    text = (tmp_path / "t.md").read_text(encoding="utf-8")
    assert "| vcp\\_clip | 92.3 (92.1, +0.2) | <u>82.3</u> (90.0, −7.7\\*) |" in text
    assert "**95.1**" in text and "<u>93.4 ± 0.4</u>" in text
    assert "checkpoint b\\_1.pth: no such file" in text and "lost failed: no folder" in text
    assert (
        "at 224 instead of 518 px" in text and "no zero-shot result" in text and "not for diagnosis" in text
    )
    assert "No Pixel AP: no masks." in text and "ours &lt;&amp;>" in text
    assert re.search(r"gen\\_clip, mvtec \| Image AUROC \| 95.0 \| 93.0 \| 91.0 \| 95.0 \| 2.00 \| 3", text)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_tex_is_balanced_and_escaped(tmp_path: Path) -> None:
    write_tex(tmp_path / "t.tex", board())
    text = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert text.count("\\begin{table}") == text.count("\\end{table}") == len(tables(board()))
    assert "\\textbf{95.1}" in text and "\\underline{93.4 $\\pm$ 0.4}" in text
    assert "{\\scriptsize(92.1, +0.2)}" in text and "vcp\\_clip" in text
    assert tex("50 % of a_b & {c}^2~") == r"50 \% of a\_b \& \{c\}\textasciicircum{}2\textasciitilde{}"
    for block in re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", text, re.S):
        lines = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert lines and all(len(re.findall(r"(?<!\\)&", line)) == len(block[0]) - 1 for line in lines)
    assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")
    assert not re.search("[^\x00-\x7f]", text), "plain ASCII compiles with every engine"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_tex_compiles(tmp_path: Path) -> None:
    write_tex(tmp_path / "t.tex", board())
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\\input{t}\\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)


def test_csv_leaves_undefined_figures_empty(tmp_path: Path) -> None:
    rows = [{"method": "a,b", "auroc": 1 / 3}, {"method": "c", "auroc": None, "error": 'it "broke"'}]
    write_csv(tmp_path / "r.csv", rows, ["method", "auroc", "error"])
    with (tmp_path / "r.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert found[0] == {"method": "a,b", "auroc": "0.333333333", "error": ""}
    assert found[1] == {"method": "c", "auroc": "", "error": 'it "broke"'}
