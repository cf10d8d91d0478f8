"""The torchvision stub is used only where torchvision cannot be imported, and is removed."""

import sys
from importlib import import_module

import pytest

from arcloop.models.backbones.timm_import import torchvision_or_stub

REAL = {
    "__init__.py": "REAL = True\n",
    "ops/__init__.py": "",
    "ops/misc.py": "class FrozenBatchNorm2d: real = True\n",
}
BROKEN = {"__init__.py": "from torchvision import ops\n", "ops/__init__.py": "raise {error}\n"}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package named torchvision with these files on the path; remove it afterwards."""
    before = {name for name in sys.modules if name.partition(".")[0] == "torchvision"}
    assert not before

    def call(files):
        for name, text in files.items():
            path = tmp_path / "torchvision" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    yield call
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def imported():
    return [name for name in sys.modules if name.partition(".")[0] == "torchvision"]


def test_a_working_torchvision_is_used(install):
    install(REAL)
    with torchvision_or_stub():
        import torchvision
        from torchvision.ops.misc import FrozenBatchNorm2d

        assert torchvision.REAL
        assert FrozenBatchNorm2d.real is True
    assert "torchvision.ops.misc" in imported()


@pytest.mark.parametrize(
    "error", ["RuntimeError('operator torchvision::nms does not exist')", "ImportError", "OSError"]
)
def test_a_broken_torchvision_is_replaced(install, error):
    install({name: text.format(error=error) for name, text in BROKEN.items()})
    with torchvision_or_stub():
        from torchvision.ops.misc import FrozenBatchNorm2d
    assert isinstance(FrozenBatchNorm2d, type)
    assert imported() == []


def test_placeholders_can_be_named_and_subclassed_but_not_used(install):
    with torchvision_or_stub():
        import torchvision.transforms.functional as F
        from torchvision import transforms

        class Mine(transforms.ToTensor):
            pass

        assert {F.InterpolationMode.NEAREST: 1, F.InterpolationMode.BOX: 2}
        assert not isinstance(3, F.InterpolationMode)
        assert not hasattr(transforms, "__wrapped__")
        for use in (Mine, F.pil_to_tensor, transforms.Compose):
            with pytest.raises(ImportError, match="needs torchvision"):
                use([])
    assert imported() == []
    with pytest.raises(ModuleNotFoundError):
        import torchvision  # noqa: F401


def test_the_stub_is_removed_after_a_failure(install):
    finders = list(sys.meta_path)
    with pytest.raises(ImportError), torchvision_or_stub():
        import_module("torchvision.ops").nms()
    assert imported() == []
    assert sys.meta_path == finders
