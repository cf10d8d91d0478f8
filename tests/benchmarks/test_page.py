import importlib
import json
import re

import pytest
from benchmarks import page
from benchmarks.measure import Comparison, Section, alternate, number

MACHINE = {
    "date": "2026-01-02 03:04 UTC", "cpu": "A processor", "cores": 2, "simd": "AVX2",
    "memory_gib": 8.0, "gpu": None, "load_before": 0.0, "python": "3.11",
    "packages": {"torch": "2"},
}  # fmt: skip
POINTS = [
    {"rows": 10, "index": name, "search": "", "recall@1": recall, "queries/s": 5.0 * recall,
     "x flat": 1.0, "bytes per vector": 4.0, "build, s": 0.1, "factory": "Flat"}
    for name in ("flat", "auto") for recall in (0.5, 1.0)
]  # fmt: skip
FOUND = {
    "training": Section([Comparison("a way", [4.0, 9.0, 8.0], [8.0, 9.0, 4.0], "images/s", 0.97)]),
    "index": Section([Comparison("no target", [3.0], [2.0], "", None)], {"points": POINTS}),
    "gpu": Section(notes=["Not measured: no GPU was available."]),
}


def write_results(folder):
    folder.mkdir()
    for name, section in FOUND.items():
        value = {"section": name, "size": "usual", "machine": MACHINE, "found": section.as_dict()}
        (folder / f"{name}.json").write_text(json.dumps(value))


def test_the_page_shows_what_was_measured_and_what_was_not(tmp_path):
    write_results(tmp_path / "results")
    page.write(tmp_path / "results", tmp_path / "docs.md", tmp_path / "pictures")
    text = (tmp_path / "docs.md").read_text()
    assert "| a way | 8 images/s | 8 images/s | 1 | 0.97 | yes |" in text
    assert "| no target | 3 | 2 | 1.5 |  |  |" in text
    assert "| 10 | auto |  | 0.5 | 2.5 | 1 | 4 | 0.1 | Flat |" in text
    assert "Not measured: no GPU was available." in text
    assert "run `python -m benchmarks memory`" in text
    assert text.count("Measured 2026-01-02 03:04 UTC; A processor, 2 cores (AVX2), 8.0 GiB;") == 3
    pictures = re.findall(r"\]\((.*?)\)", text)
    assert sorted(pictures) == ["pictures/index-10.png", "pictures/ratios.png"]
    assert all((tmp_path / name).stat().st_size > 1000 for name in pictures)


def test_the_page_in_docs_is_made_from_the_results(tmp_path):
    page.write(page.RESULTS, tmp_path / "performance.md", tmp_path / "performance")
    assert (tmp_path / "performance.md").read_text() == page.PAGE.read_text()


@pytest.mark.parametrize("name", page.SECTIONS)
def test_every_section_has_a_title_and_a_measure_function(name):
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.TITLE
    assert callable(module.measure)


def test_rounds_alternate_after_a_warm_up_round():
    calls = []

    def way(name, rates):
        return lambda: calls.append(name) or rates.pop(0)

    found = alternate("x", way("a", [1.0, 2.0, 6.0]), way("b", [9.0, 4.0, 3.0]), unit="",
                      target=1.0, rounds=2)  # fmt: skip
    assert calls == ["a", "b"] * 3
    assert (found.ours, found.other, found.ratio) == ([2.0, 6.0], [4.0, 3.0], 1.25)


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (0.98765, "0.9877"), (7, "7"), (None, ""), ("a", "a"), (0.0, "0")],
)
def test_numbers_have_three_or_four_significant_digits(value, text):
    assert number(value) == text
