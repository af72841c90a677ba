"""The README's tables of runs on real photographs, rendered from their records under ``results/``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infocam_utils.data.store import atomic_write
from infocam_utils.reproduce.claims import around, load_books
from infocam_utils.reproduce.results import Record, RecordBook

BEGIN, END = "<!-- real:begin -->", "<!-- real:end -->"
DRAWN = ("quick", "smoke")  # runs of these names are on drawn birds and digits


def _cell(record: Record | None) -> str:
    if record is None:
        return "–"
    return f"{record.value:.1f} [{record.low:.1f}, {record.high:.1f}]"


def _row(book: RecordBook, first: list[str], names: list[str]) -> str:
    found = [_cell(book.records.get(f"{book.dataset}/{name}")) for name in names]
    return "| " + " | ".join([*first, *found]) + " |"


def _table(title: str, head: list[str], rows: list[str]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *rows]
    return f"{title}\n\n" + "\n".join(lines)


def imbalance_table(books: Mapping[str, RecordBook]) -> str:
    """Per-class accuracy by the four decisions, and the two paired differences that matter."""
    columns = {
        "softmax": "softmax/per_class_accuracy_all",
        "post-hoc": "post_hoc/per_class_accuracy_all",
        "PC-softmax": "pc/per_class_accuracy_all",
        "PC − softmax": "pc_minus_softmax/per_class_accuracy_all",
        "PC − post-hoc": "pc_minus_post_hoc/per_class_accuracy_all",
        "accuracy, PC − softmax": "pc_minus_softmax/accuracy",
    }
    rows = []
    for file, book in books.items():
        name = f"[{book.dataset}](results/{file})"
        shares = f"{book.parameters.get('few') or 10} : {book.parameters.get('many') or 30}"
        rows.append(_row(book, [name, shares, str(len(book.seeds))], list(columns.values())))
    title = "**Imbalanced classes** (notebook 03): per-class accuracy in %, mean [95 % interval over seeds]"
    return _table(title, ["data", "rare : common", "seeds", *columns], rows)


def localization_table(books: Mapping[str, RecordBook]) -> str:
    """GT-known of CAM and infoCAM for both gauges, and what knows nothing of classes."""
    rows = []
    for file, book in books.items():
        for gauge in ("decayed", "free"):
            name = f"[{book.dataset}](results/{file})"
            stride = str(book.parameters.get("stride") or 32)
            best = "full" if f"{book.dataset}/{gauge}/cam+full/gt_known" in book.records else "same"
            columns = [f"{gauge}/{kind}/gt_known" for kind in
                       ("cam", "others", "least_likely", f"cam+{best}", f"least_likely+{best}")]  # fmt: skip
            columns += [f"{gauge}/least_likely_minus_cam/gt_known", f"{gauge}/least_likely/top1_loc"]
            columns += ["feature_norm/gt_known", "centre_box/gt_known", "whole_image/gt_known"]
            seeds = str(len(book.seeds))
            rows.append(_row(book, [name, stride, f"{gauge}, {seeds}"], columns))
    head = ["data", "stride", "head, seeds", "CAM", "infoCAM, others", "infoCAM, least likely",
            "CAM + region", "least likely + region", "least likely − CAM", "Top-1 Loc, least likely",
            "feature norm", "centre box", "whole image"]  # fmt: skip
    title = (
        "**Localization** (notebook 04): GT-known in % at the threshold from held-out images, "
        "mean [95 % bootstrap interval over images and seeds]"
    )
    return _table(title, head, rows)


def tables(root: str | Path) -> str:
    """Both tables, from every run under ``<root>/results`` that is not on drawn data.

    Raises
    ------
    ValueError
        When there is no such run, or a file is not a book of records.
    """
    books = {f: b for f, b in load_books(Path(root) / "results").items() if f.split("/")[0] not in DRAWN}
    made = []
    for stem, render in (("03", imbalance_table), ("04", localization_table)):
        chosen = {f: b for f, b in books.items() if b.notebook.startswith(stem)}
        if chosen:
            made.append(render(chosen))
    if not made:
        raise ValueError(f"no run on real data under {Path(root) / 'results'}")
    return "\n\n".join(made)


def write(root: str | Path) -> Path:
    """Put the tables between the markers of README.md, if it has them."""
    readme = Path(root) / "README.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text:
        return readme
    before, after = around(text, readme, BEGIN, END)
    return atomic_write(readme, f"{before}{BEGIN}\n{tables(root)}\n{END}{after}")


def check(root: str | Path) -> list[str]:
    """What disagrees with the records, as sentences."""
    readme = Path(root) / "README.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text:
        return []
    before, after = around(text, readme, BEGIN, END)
    if text != f"{before}{BEGIN}\n{tables(root)}\n{END}{after}":
        return ["README.md: the tables of real runs differ from the records; run infocam claims --write"]
    return []
