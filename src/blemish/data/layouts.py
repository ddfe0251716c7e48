"""A folder as it lies on the user's disk -> a `Dataset`: its layout is recognised, its samples are listed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blemish.data import metafile, readers_generic, readers_industrial, readers_medical
from blemish.data.catalog import CATALOG, CatalogEntry, find_entry
from blemish.data.reading import Problem, Reading, WrongLayout, remembered_listings, subfolders
from blemish.errors import BadDataset, BadOption, UnknownName
from blemish.files import printable_name
from blemish.types import Sample

SPLITS = ("test", "train", "all")


@dataclass(frozen=True)
class Dataset:
    """A labelled (or bare) collection of pictures.

    name: the catalogue's name where the dataset is recognised, else the folder's. root: what was opened.
    layout: how it was read, a name of `LAYOUTS`. samples: in the layout's order, classes one after the other.
    entry: the catalogue's row, or None. notes: remarks of the reader, one line each. problems: what the reader
    stumbled over, such as masks without a picture. split: "test", "train" or "all".
    """

    name: str
    root: Path
    layout: str
    samples: tuple[Sample, ...]
    entry: CatalogEntry | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    split: str = "test"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in order of appearance."""
        return tuple(dict.fromkeys(s.class_name for s in self.samples))

    def of_class(self, name: str) -> tuple[Sample, ...]:
        """The samples of one class. Raises UnknownName."""
        found = tuple(s for s in self.samples if s.class_name == name)
        if not found:
            raise UnknownName("class", name, self.classes)
        return found

    def of_defects(self, names: Sequence[str]) -> Dataset:
        """The dataset with all its normal pictures, and of the anomalous ones those whose `defect` is in `names`.

        Raises UnknownName for a kind that it does not have.
        """
        known = tuple(dict.fromkeys(s.defect for s in self.samples if s.label == 1))
        for name in names:
            if name not in known:
                raise UnknownName("kind of defect", name, known)
        kept = tuple(s for s in self.samples if s.label != 1 or s.defect in names)
        return replace(self, samples=kept, notes=(*self.notes, f"only {', '.join(names)}"))

    def counts(self) -> dict[str, tuple[int, int]]:
        """Class -> (normal, anomalous) numbers of samples; those without a label count as neither."""
        counts = {name: [0, 0] for name in self.classes}
        for sample in self.samples:
            if sample.label is not None:
                counts[sample.class_name][sample.label] += 1
        return {name: (normal, anomalous) for name, (normal, anomalous) in counts.items()}

    def prompt_name(self, class_name: str) -> str:
        """Words for a class in a prompt: the catalogue's, else the name with spaces for underscores."""
        return class_name.replace("_", " ") if self.entry is None else self.entry.prompt_name(class_name)


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset lies on a disk.

    about: what it looks like. recognise: whether a folder looks like it, by names alone. read: takes the samples.
    dataset: the catalogue's dataset that it belongs to; "" for a generic one. sure: asked besides when nobody has
    named the dataset, where others' data may look the same.
    """

    about: str
    recognise: Callable[[Path], bool]
    read: Callable[[Reading], None]
    dataset: str = ""
    sure: Callable[[Path], bool] = lambda root: True


def _is_list(find: Callable[[Path], Path | None]) -> Callable[[Path], bool]:
    return lambda root: find(root) is not None


def _folder(test: Callable[[Path], object]) -> Callable[[Path], bool]:
    return lambda root: root.is_dir() and bool(test(root))


_I, _M, _G = readers_industrial, readers_medical, readers_generic

# In the order in which they are tried: lists made for a purpose first, then what is particular, then the general.
LAYOUTS: dict[str, Layout] = {
    "meta_json": Layout(
        "meta.json with test and train", _is_list(metafile.meta_file), metafile.read_meta_json
    ),
    "json_lines": Layout(
        "a .jsonl with image_path, label", _is_list(metafile.json_lines_file), metafile.read_json_lines
    ),
    "visa_csv": Layout("split_csv/1cls.csv", _folder(_I.is_visa_raw), _I.read_visa, "visa"),
    "visa_1cls": Layout("1cls/<class>/test/{good,bad}", _folder(_I.is_visa_1cls), _I.read_visa_1cls, "visa"),
    "ksdd_parts": Layout("kos01/Part0.jpg, Part0_label.bmp", _folder(_I.is_ksdd), _I.read_ksdd, "ksdd"),
    "ksdd2_flat": Layout("test/20000.png, 20000_GT.png", _folder(_I.is_ksdd2), _I.read_ksdd2, "ksdd2"),
    "dagm_labels": Layout(
        "Class1/Test/0001.PNG, Label/0001_label.PNG", _folder(_I.is_dagm), _I.read_dagm, "dagm"
    ),
    "bsd_labelme": Layout(
        "data/*.jpg, label/*.json", _folder(_I.is_bsd), _I.read_bsd, "bsd", _I.is_surely_bsd
    ),
    "gc_boxes": Layout("1 to 10/*.jpg, lable/*.xml", _folder(_I.is_gc), _I.read_gc, "gc", _I.is_surely_gc),
    "msd_voc": Layout(
        "JPEGImages, SegmentationClass", _folder(_I.is_msd), _I.read_msd, "msd", _I.is_surely_msd
    ),
    "road_mat": Layout("image/001.jpg, groundTruth/001.mat", _folder(_I.is_road), _I.read_road, "road"),
    "rsdd_types": Layout("Type-I and Type-II folders", _folder(_I.is_rsdd), _I.read_rsdd, "rsdd"),
    "head_ct_csv": Layout("head_ct/000.png, labels.csv", _folder(_M.is_head_ct), _M.read_head_ct, "head_ct"),
    "br35h_yes_no": Layout("yes, no, pred", _folder(_M.is_br35h), _M.read_yes_no, "br35h"),
    "brain_mri_yes_no": Layout("yes/Y1.jpg, no", _folder(_M.is_brain_mri), _M.read_yes_no, "brain_mri"),
    "covid19_findings": Layout("COVID, NORMAL", _folder(_M.is_covid19), _M.read_covid19, "covid19"),
    "isic_task1": Layout("…_Test_Data, …_Test_GroundTruth", _folder(_M.is_isic), _M.read_isic, "isic"),
    "clinic_db_original": Layout(
        "Original, Ground Truth",
        _folder(_M.is_clinic_db),
        _M.read_clinic_db,
        "clinic_db",
        _M.is_surely_clinic_db,
    ),
    "colon_db_frames": Layout(
        "1.bmp, p1.bmp", _folder(_M.is_colon_db_frames), _M.read_colon_db_frames, "colon_db"
    ),
    "kvasir_seg": Layout(
        "images, masks, kavsir_bboxes.json", _folder(_M.is_kvasir), _G.read_images_masks, "kvasir"
    ),
    "tn3k_test": Layout("test-image, test-mask", _folder(_M.is_tn3k), _M.read_tn3k, "tn3k"),
    "mvtec_layout": Layout(
        "<class>/test/{good,<defect>}, ground_truth/<defect>", _folder(_G.class_folders), _G.read_mvtec
    ),
    "table": Layout(
        "a csv with image_path, label_index, mask_path", _is_list(metafile.table_file), metafile.read_table
    ),
    "yes_no": Layout("yes, no", _folder(_M.is_yes_no), _M.read_yes_no),
    "images_masks": Layout("images beside masks", _folder(_G.image_mask_folders), _G.read_images_masks),
    "folder": Layout(
        "normal, abnormal and mask folders, or just pictures",
        _folder(_G.has_labelled_folders),
        _G.read_folders,
    ),
}


def open_dataset(root: Path, dataset: str | None = None, split: str = "test") -> Dataset:
    """List the samples of a dataset. No picture is opened (of KolektorSDD and KSDD2 the label files are).

    root: a folder; or a list file (meta.json, .jsonl, .csv). dataset: a name of the catalogue or of a generic
    layout, in place of what would be recognised; some take a variant after a colon: "ksdd:thirds",
    "visa:2cls_fewshot", "bsd:defects", "gc:boxes", "covid19:FOLDER,FOLDER",
    "folder:normal=A,abnormal=B+C,mask=D". split: "test", "train" or "all".

    A list such as meta.json goes before a tree beside it: it says which pictures count, and in which order.
    A folder in which nothing is recognised is searched one level deeper when it holds one folder only. Pictures
    in no known arrangement are taken without labels. Raises BadDataset when nothing is found or a list is damaged,
    UnknownName for a wrong name.
    """
    root = Path(root)
    if split not in SPLITS:
        raise BadOption(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    if not root.exists():
        raise BadDataset(f"{printable_name(root)}: no such folder")
    name, _, variant = (dataset or "").partition(":")
    if name and name not in CATALOG and name not in LAYOUTS:
        raise UnknownName("dataset", name, (*CATALOG, *(n for n, row in LAYOUTS.items() if not row.dataset)))
    try:
        with remembered_listings():
            return _open(root, name, variant, split)
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise BadDataset(f"{printable_name(error.filename or root)}: {cause}") from error


def _open(root: Path, name: str, variant: str, split: str) -> Dataset:
    refused: list[WrongLayout] = []
    for place in _places(root):
        for layout in _candidates(place, name, variant):
            entry = CATALOG.get(name or LAYOUTS[layout].dataset) or find_by_folder(root, place)
            reading = Reading(place, split, entry.classes[0] if entry else "", variant)
            try:
                LAYOUTS[layout].read(reading)
            except WrongLayout as error:
                refused.append(error)
                continue
            reading.notes += [str(error) for error in refused]
            return _dataset(root, name, layout, reading)
    if refused:
        raise BadDataset(str(refused[0]))
    if not name and root.is_dir():
        reading = Reading(root, split)
        readers_generic.read_bare(reading)
        return Dataset(
            root.resolve().name, root, "folder", tuple(reading.samples), None, tuple(reading.notes), (), split
        )
    raise BadDataset(_nothing(root, name))


def _nothing(root: Path, name: str) -> str:
    if name in LAYOUTS:
        looks = [LAYOUTS[name].about]
    else:
        looks = [row.about for row in LAYOUTS.values() if row.dataset == name and name]
        looks += [LAYOUTS[generic].about for generic in ("mvtec_layout", "meta_json")]
    return f"{printable_name(root)} does not look like {name or 'a dataset'}: expected {'; or '.join(looks)}"


def _places(root: Path) -> Iterator[Path]:
    """The root, and the folder in it when there is only one: archives often wrap their contents."""
    yield root
    inner = subfolders(root) if root.is_dir() else []
    if len(inner) == 1:
        yield inner[0]


def _candidates(place: Path, name: str, variant: str) -> Iterator[str]:
    """Layouts to try, in order. A generic layout that was named is tried without being recognised."""
    if name in LAYOUTS:
        if name == "folder" or LAYOUTS[name].recognise(place):
            yield name
        return
    for layout, row in LAYOUTS.items():
        # A variant says how the distributed files are to be read, so that no generic reader will do
        fits = (row.dataset == name or not row.dataset) if name else True
        fits = fits and not (variant and not row.dataset)
        if fits and row.recognise(place) and (name or row.sure(place)):
            yield layout


def find_by_folder(*folders: Path) -> CatalogEntry | None:
    """The one-class dataset whose data lie in folders of one of these names; None when there is none."""
    for folder in folders:
        for entry in CATALOG.values():
            if len(entry.classes) == 1 and entry.knows_folder(folder.resolve().name):
                return entry
    return None


def _dataset(root: Path, name: str, layout: str, reading: Reading) -> Dataset:
    if not reading.samples:
        what = "pictures" if reading.split == "all" else f"pictures of the split {reading.split}"
        raise BadDataset(f"{printable_name(root)} ({layout}) holds no {what}; pass another folder or split")
    base = root if root.is_dir() else root.parent
    classes = dict.fromkeys(s.class_name for s in reading.samples)
    entry = CATALOG.get(name or LAYOUTS[layout].dataset) or find_entry(
        _folder_names(root, base, reading), classes
    )
    if entry is not None and entry.name == "ksdd" and layout != "ksdd_parts":
        cut = readers_industrial.tiling([s.image.name for s in reading.samples])
        reading.notes.append(f"by its names KolektorSDD cut into {cut}" if cut else "cut in an unknown way")
    samples = tuple(
        dataclasses.replace(s, mask_rule=_rule(s.mask, entry)) if s.mask else s
        for s in _by_class(reading.samples)
    )
    return Dataset(
        entry.name if entry else base.resolve().name,
        root,
        layout,
        samples,
        entry,
        tuple(reading.notes),
        tuple(reading.problems),
        reading.split,
    )


def _folder_names(root: Path, base: Path, reading: Reading) -> list[str]:
    """Names that may tell which dataset it is: of the root, of what wraps it, and of the folders in it."""
    place = base.resolve()
    names = [place.name, place.parent.name]
    if root.is_file():
        names.append(root.stem.removeprefix("meta_"))
    first = reading.samples[0].image
    if first.is_relative_to(base):
        names += first.relative_to(base).parts[:-1]
    # nobody but beanTech calls a folder so
    return [*names, "btad"] if any(s.defect == "ko" for s in reading.samples) else names


def _by_class(samples: list[Sample]) -> list[Sample]:
    """Classes one after the other, in the order of their test pictures, which is that of result tables."""
    tested = (s.class_name for s in samples if s.split == "test")
    order = {name: i for i, name in enumerate(dict.fromkeys([*tested, *(s.class_name for s in samples)]))}
    return sorted(samples, key=lambda s: order[s.class_name])


def _rule(mask: Path, entry: CatalogEntry | None) -> str:
    """Which values of a mask count. Label maps of CrackForest are known by their ending, prepared copies are not."""
    if mask.suffix.lower() == ".mat":
        return "==2"
    return entry.mask_rule if entry is not None and entry.mask_rule.startswith(">") else ">0"
