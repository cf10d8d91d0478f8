"""The report of real digits: files, a self-contained page and escaped text."""

import base64
import csv
import gzip
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.evaluation.conftest import CORNERS, cut, exact, settings

from arcloop.evaluation import EvaluationSetup, check_gate, evaluate_embeddings, write_report
from arcloop.evaluation.report.page import read_glossary

MNIST = Path(__file__).parents[3] / "data" / "mnist"
EVIL = "<script>alert(1)</script>"
CURVES = [{"step": 0.0, "train_loss": 9.0}, {"step": 9.0, "val_top1": 0.75}]


def digits(count):
    with gzip.open(MNIST / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16)
    with gzip.open(MNIST / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + count), np.uint8, offset=8)
    return images.reshape(count, 28, 28, 1), labels.astype(np.int64)


class Page(HTMLParser):
    """Collects tags with attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    images, labels = digits(700)
    rows = images.reshape(700, -1).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    classes = [*(f"digit & {label}" for label in range(9)), EVIL]
    queries, gallery = (rows[:200], labels[:200]), (rows[200:], labels[200:])
    setup = EvaluationSetup(
        gallery=lambda: cut(*gallery, [99]), gallery_labels=gallery[1], search=exact(gallery[0]),
        classes=classes, settings=settings(num_mistakes=7, num_projected=120), threshold=0.8,
        num_queries=200,
    )  # fmt: skip
    result = evaluate_embeddings(cut(*queries, [64]), setup)
    splits = {"query": images[:200], "gallery": images[200:]}
    decision = check_gate(result.metrics, settings().gate)
    write_report(
        folder,
        result,
        title=f"run {EVIL}",
        classes=classes,
        image=lambda split, row: splits[split][row],
        curves=CURVES,
        facts=[("train", f"3 s {EVIL}")],
        config_yaml=f"name: '{EVIL}'\n",
        lineage=[("model", "ab" * 32)],
        gate=decision,
    )
    text = (folder / "report.html").read_text(encoding="utf-8")
    return folder, result, classes, splits, text


def test_files(report):
    folder, *_ = report
    assert sorted(path.name for path in folder.iterdir()) == [
        "class_accuracy.png", "classes.csv", "confusion_matrix.csv", "confusion_matrix.png",
        "projection.png", "report.html", "roc.csv", "roc.png", "similarity_histogram.png",
        "training_curves.png",
    ]  # fmt: skip


def test_confusion_table_has_the_class_names(report):
    folder, result, classes, *_ = report
    with open(folder / "confusion_matrix.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["true class", *classes]
    assert [row[0] for row in rows] == classes
    assert [[int(count) for count in row[1:]] for row in rows] == (result.confusion.counts.tolist())


def test_text_of_users_is_escaped(report):
    *_, text = report
    page = Page(text)
    assert not any(tag == "script" for tag, _ in page.tags)
    assert EVIL not in text
    assert page.text.count(EVIL) >= 5  # twice the title, fact, config, and class names
    assert "digit & 4" in page.text


def test_the_page_is_self_contained(report):
    *_, text = report
    sources = [attributes["src"] for _, attributes in Page(text).tags if "src" in attributes]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?:|url\(|@import|<link", text)


def test_mistakes_show_their_images(report):
    _, result, _, splits, text = report
    shown = [
        attributes
        for tag, attributes in Page(text).tags
        if tag == "img" and attributes["src"].startswith("data:image/webp")
    ]
    expected = [
        (split, row)
        for mistake in result.mistakes
        for split, row in [
            ("query", mistake.query_row),
            *(("gallery", row) for row in mistake.neighbour_rows[:6]),
        ]
    ]
    assert len(result.mistakes) == 7
    assert 'class="mistakes pixels"' in text  # enlarged without smoothing
    assert [image["alt"] for image in shown] == [f"{split} {row}" for split, row in expected]
    for image, (split, row) in zip(shown, expected, strict=True):
        content = base64.b64decode(image["src"].partition(",")[2])
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
        assert np.array_equal(pixels, splits[split][row][..., 0])


def test_headline_and_decision(report):
    _, result, _, _, text = report
    page = Page(text)
    assert f"{result.metrics['top1']:.2%}" in page.text
    assert "Passed the gate" in page.text
    assert "No bound is set." in page.text
    assert "ab" * 32 in page.text


def test_metrics_that_are_not_measurable_have_a_reason(report):
    _, result, _, _, text = report
    page = Page(text)
    assert "It is not measurable with 200 unknown queries; 300 are needed" in page.text
    assert "30,000,000 are needed to expect 30 errors." in page.text
    assert "It is not measurable without queries of unknown classes." in page.text
    glossary = read_glossary()
    assert result.metrics.keys() | result.not_measurable.keys() <= glossary.keys()
    assert all(glossary[name]["title"] in page.text for name in result.not_measurable)
    number = re.search(r'<section class="numbers">.*?</section>', text, re.DOTALL).group()
    assert "not measurable" not in number
    assert "<b>-</b>" not in number


def test_large_colour_images_are_shown_small(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    labels = np.arange(16) % 2
    facts = {"file": "a.png", "metadata": {"price": "<3>", "shop": "B"}}
    text = write_small(
        tmp_path, labels, 1 - labels, image=lambda split, row: image,
        describe=lambda split, row: facts if split == "query" else {},
    )  # fmt: skip
    assert 'title="a.png\nprice: &lt;3&gt;\nshop: B"' in text
    assert "<br>a.png</span>" in text
    assert 'title="gallery row 0"' in text
    source = next(a["src"] for t, a in Page(text).tags if t == "img" and "webp" in a["src"])
    shown = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert shown.size == (85, 128)
    assert 'class="mistakes pixels"' not in text


def test_similarities_near_1_are_not_shown_as_1(tmp_path):
    near = CORNERS + 0.02 * np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    labels, pixels = np.arange(16) % 2, np.zeros((8, 8, 1), np.uint8)
    text = write_small(tmp_path, labels, 1 - labels, image=lambda *_: pixels, gallery=near)
    shown = re.findall(r">(?:at )?(\d\.\d+)</span>", text)
    assert "0.9999" in {similarity[:6] for similarity in shown}
    assert not any(similarity.startswith("1") for similarity in shown)


def test_a_page_without_mistakes_curves_pairs_and_points(tmp_path):
    labels = np.zeros(16, np.int64)
    text = write_small(tmp_path, labels, labels, num_projected=0)
    assert "There are no wrong answers to show." in text
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "class_accuracy.png", "confusion_matrix.png", "similarity_histogram.png"
    ]  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_names_that_no_font_can_draw_are_numbered_in_figures(tmp_path):
    """No glyph is missing, and the page lists the names."""
    labels = np.arange(16) % 3
    names = ["\U0001fae8", "café", "\udce9"]  # an emoji of 2022, and a byte that is not UTF-8
    pixels = np.zeros((8, 8, 1), np.uint8)
    text = write_small(tmp_path, labels, labels, lambda *_: pixels, classes=names)
    assert "<b>#0</b> \U0001fae8, <b>#2</b> \\udce9" in text
    assert "<b>#1</b>" not in text
    assert (
        (tmp_path / "confusion_matrix.csv").read_text("utf-8").startswith("true class,\U0001fae8")
    )


def write_small(
    folder, query_labels, gallery_labels, image=None, classes=("a", "b"), gallery=CORNERS,
    describe=lambda *_: {}, **changed,
):  # fmt: skip
    classes = list(classes)
    setup = EvaluationSetup(
        gallery=lambda: [(gallery, gallery_labels)], gallery_labels=gallery_labels,
        search=exact(gallery), classes=classes, settings=settings(**changed), threshold=-1.0,
        num_queries=16,
    )  # fmt: skip
    result = evaluate_embeddings([(CORNERS, query_labels)], setup)
    write_report(
        folder, result, title="small", classes=classes, image=image, curves=[], facts=[],
        config_yaml="", lineage=[], gate={"passed": False, "reasons": ["top1 is low."]},
        describe=describe,
    )  # fmt: skip
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Did not pass the gate" in text
    return text


def test_intervals_are_shown(report):
    _, result, _, _, text = report
    low, high = result.intervals["top1"]
    shown = re.sub(r"\s+", " ", Page(text).text)
    assert f"{result.metrics['top1']:.2%}Top-1 ({100 * low:.2f}-{100 * high:.2f})" in shown
    assert "95% confidence interval" in shown
    assert "eer" not in result.intervals
    assert f"{result.metrics['eer']:.2%}Equal error rate " in shown


CUT = "classes with the most mistakes are drawn, in the order of their names."


def test_a_cut_confusion_matrix_says_so(tmp_path):
    """1,002 classes are evaluated, and 1,000 are drawn."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((1002, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels, classes = np.arange(1002), [f"c{label:04d}" for label in range(1002)]
    setup = EvaluationSetup(
        gallery=lambda: [(rows, labels)], gallery_labels=labels, search=exact(rows),
        classes=classes, settings=settings(num_projected=0, num_mistakes=0), threshold=-1.0,
        num_queries=2,
    )  # fmt: skip
    result = evaluate_embeddings([(rows[:2], labels[:2])], setup)
    write_report(
        tmp_path, result, title="many", classes=classes, image=None, curves=[], facts=[],
        config_yaml="", lineage=[], gate={"passed": True, "reasons": []},
    )  # fmt: skip
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"Only the 1,000 {CUT}" in page.text


def test_a_confusion_matrix_of_all_classes_does_not_say_so(report):
    *_, text = report
    assert CUT not in Page(text).text
