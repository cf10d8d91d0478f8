"""docs/metrics.md runs, and leaves out no metric."""

import json
import pickle
import re
import shlex
from pathlib import Path

from tests.evaluation.pairs.test_pairs import noise, write_list

from arcloop.artifacts.metrics import read_intervals, read_metrics
from arcloop.cli.main import main
from arcloop.evaluation.report.page import read_glossary

PAGE = (Path(__file__).parents[2] / "docs/metrics.md").read_text()


def test_every_metric_is_on_the_page_and_in_the_glossary():
    assert set(read_glossary()) <= set(re.findall(r"`([\w-]+)`", PAGE))


def test_the_commands_of_the_page(work):
    found = set()
    images, flags = noise(24), [True, False] * 6
    Path("lfw.bin").write_bytes(pickle.dumps((images, flags)))
    write_list(Path("my_pairs.csv"), images, flags)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL):
        for command in block.splitlines():
            _, verb, *rest = shlex.split(re.sub("runs/(mnist|new)", "runs/synthetic", command))
            if verb != "evaluate":
                continue
            assert main([verb, *rest]) == 0
            metrics = read_metrics(Path("runs/synthetic/evaluation"))
            assert metrics.keys() >= read_intervals(Path("runs/synthetic/evaluation")).keys()
            found |= metrics.keys()
    assert found <= read_glossary(found).keys()
    assert {"pairs_lfw_accuracy", "pairs_my_pairs_accuracy"} <= found
    assert {"map_at_r", "mrr", "fnir", "ami", "pair_accuracy", "minp"} <= found
    timing = json.loads(Path("runs/synthetic/evaluation/.timing.json").read_bytes())
    assert 0 < timing["search_p50_ms"] <= timing["search_p99_ms"]
    report = Path("runs/synthetic/evaluation/report.html").read_text()
    assert "ms per search of one query" in report
    assert "DIR at FAR 10%" in report
    assert "are needed to expect 30 errors" in report


def test_the_python_of_the_page(work):
    found = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block.replace("runs/mnist", "runs/synthetic"), "metrics.md", "exec"), found)
    assert len(found["hardest"]) == 10
