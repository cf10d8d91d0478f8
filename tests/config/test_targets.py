import inspect
import subprocess
import sys

import pytest
import pytorch_lightning
import torch
from pytorch_metric_learning import distances, losses, miners, reducers

from arcloop.config.signatures import read_signature
from arcloop.config.targets import find_faults


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.SGD",
        "torch.optim.AdamW",
        "pytorch_lightning.callbacks.ModelCheckpoint",
        "pytorch_lightning.loggers.TensorBoardLogger",
        "arcloop.models.CosineClassifier",
        "arcloop.models.ConvNet",
        "arcloop.data.IdxSource",
        "arcloop.data.ImageFolderSource",
        "arcloop.retrieval.FaissIndex",
        "arcloop.training.optim.one_cycle",
    ],
)
def test_reads_from_source_what_inspect_sees_at_run_time(target):
    module, _, name = target.rpartition(".")
    __import__(module)
    real = inspect.signature(getattr(sys.modules[module], name)).parameters.values()
    named = [p for p in real if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    found = dict(read_signature(target).parameters)
    is_open = found.pop("kwargs", None) is not None
    assert sorted(found) == sorted(p.name for p in named)
    assert required(found) == {p.name for p in named if p.default is p.empty}
    assert is_open == any(p.kind is p.VAR_KEYWORD for p in real)


def required(parameters):
    return {name for name, p in parameters.items() if p.default is p.empty}


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from arcloop.config.signatures import read_signature as s;"
        "s('torch.optim.SGD'); s('pytorch_lightning.Trainer'); s('arcloop.models.ArcFace');"
        "assert not {'torch', 'pytorch_lightning', 'arcloop.models'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PML = "pytorch_metric_learning"
HEAD = {"_target_": "arcloop.models.ArcFace", "_partial_": True, "scale": 32.0}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"head": {**HEAD, "margn": 1}}, "head.margn is unknown; did you mean margin"),
        ({"head": {**HEAD, "margin": 4}}, "head.margin=4 must be less than 3.14159"),
        ({"head": {**HEAD, "easy_margin": 1}}, "head.easy_margin=1 must be true or false"),
        ({"head": {"_target_": "arcloop.models.Nope"}}, "is not installed"),
        ({"head": {"_target_": "nope.Nope"}}, "is not installed"),
        ({"index": {"_target_": "faiss_gpu.Index"}}, "pip install 'arcloop[gpu]'"),
        (
            {"loss": {"_target_": f"{PML}.losses.MultiSimilarityLoss", "alfa": 2}},
            "loss.alfa is unknown; did you mean alpha",
        ),
        (
            {"loss": {"_target_": f"{PML}.losses.ContrastiveLoss", "mat_based_loss": True}},
            "loss.mat_based_loss is unknown",
        ),
        ({"miner": {"_target_": f"{PML}.miners.TripletMarginMiner", "margn": 2}}, "margin"),
        (
            {"a": [{"_target_": "torch.optim.SGD", "_partial_": True, "lrr": 1}]},
            "a[0].lrr is unknown",
        ),
        ({"x": {"_target_": "torch.optim.SGD"}}, "x.params is required by torch.optim.SGD"),
        ({"a": {"b": HEAD | {"scale": 0}}}, "a.b.scale=0 must be greater than 0"),
    ],
)
def test_faults(node, message):
    found = list(find_faults(node))
    assert len(found) == 1
    assert message in found[0]


def test_a_good_node_has_no_fault():
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "nesterov": True}
    assert list(find_faults({"head": HEAD, "optimizer": {"factory": sgd}})) == []
    assert torch.optim.SGD
    assert pytorch_lightning


CALLABLES = [
    f"{module.__name__}.{name}"
    for module in (losses, miners, distances, reducers)
    for name, value in vars(module).items()
    if inspect.isclass(value) and not name.endswith("Mixin")
]


FOLLOWED = [t for t in CALLABLES if "kwargs" not in read_signature(t).parameters]


@pytest.mark.parametrize("target", FOLLOWED)
def test_keywords_are_followed_to_the_classes_that_take_them(target):
    """What passes **kwargs on to its base takes what that takes, and Python agrees."""
    signature = read_signature(target)
    module, _, name = target.rpartition(".")
    make = getattr(sys.modules[module], name)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nope'"):
        make(**dict.fromkeys(required(signature.parameters), 1), nope=1)
    for parameter in signature.parameters:
        message = ""
        try:
            make(**{parameter: 1})
        except Exception as error:  # noqa: BLE001 - a value that fits no one
            message = str(error)
        assert f"unexpected keyword argument '{parameter}'" not in message


def test_most_of_them_are_followed():
    assert len(FOLLOWED) > 0.9 * len(CALLABLES)


def test_keywords_of_a_head_are_followed_to_its_base_class():
    signature = read_signature("arcloop.models.ArcFace")
    own, shared = (
        {"easy_margin", "margin", "size_margin"},
        {"embedding_dim", "num_classes", "scale"},
    )
    assert (
        required(signature.parameters) == {*signature.parameters} == own | shared | {"size_power"}
    )
