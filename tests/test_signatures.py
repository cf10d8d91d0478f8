import inspect
import subprocess
import sys

import pytest
import pytorch_lightning
import torch

from arcloop.signatures import faults, signature_of


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.SGD",
        "torch.optim.AdamW",
        "pytorch_lightning.callbacks.ModelCheckpoint",
        "pytorch_lightning.loggers.TensorBoardLogger",
        "arcloop.models.ArcFace",
        "arcloop.models.ConvNet",
        "arcloop.data.IdxSource",
        "arcloop.data.ImageFolderSource",
        "arcloop.retrieval.FaissIndex",
        "arcloop.training.schedulers.one_cycle",
    ],
)
def test_reads_from_source_what_inspect_sees_at_run_time(target):
    module, _, name = target.rpartition(".")
    __import__(module)
    real = inspect.signature(getattr(sys.modules[module], name)).parameters.values()
    named = [p for p in real if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    found = signature_of(target)
    assert sorted(found.parameters) == sorted(p.name for p in named)
    assert {n for n, p in found.parameters.items() if p.required} == {
        p.name for p in named if p.default is p.empty
    }
    assert found.open == any(p.kind is p.VAR_KEYWORD for p in real)


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from arcloop.signatures import signature_of as s;"
        "s('torch.optim.SGD'); s('pytorch_lightning.Trainer'); s('arcloop.models.ArcFace');"
        "assert not {'torch', 'pytorch_lightning', 'arcloop.models'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


HEAD = {"_target_": "arcloop.models.ArcFace", "_partial_": True, "scale": 32.0}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"head": {**HEAD, "margn": 1}}, "head.margn is unknown; did you mean margin"),
        ({"head": {**HEAD, "margin": 4}}, "head.margin=4 must be in [0, 3.14159)"),
        ({"head": {**HEAD, "easy_margin": 1}}, "head.easy_margin=1 must be true or false"),
        ({"head": {"_target_": "arcloop.models.Nope"}}, "names nothing that is installed"),
        ({"head": {"_target_": "nope.Nope"}}, "names nothing that is installed"),
        (
            {"a": [{"_target_": "torch.optim.SGD", "_partial_": True, "lrr": 1}]},
            "a[0].lrr is unknown",
        ),
        ({"x": {"_target_": "torch.optim.SGD"}}, "x.params is required by torch.optim.SGD"),
        ({"a": {"b": HEAD | {"scale": 0}}}, "a.b.scale=0 must be in (0, inf)"),
    ],
)
def test_faults(node, message):
    found = list(faults(node))
    assert len(found) == 1
    assert message in found[0]


def test_a_good_node_has_no_fault():
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "nesterov": True}
    assert list(faults({"head": HEAD, "optimizer": {"factory": sgd}})) == []
    assert torch.optim.SGD
    assert pytorch_lightning
