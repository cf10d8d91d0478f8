"""Config files of an installed package."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import SMALL

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.config.composition import compose_config
from arcloop.config.files import choices_of
from arcloop.config.plugins import installed_plugins
from arcloop.errors import ConfigError
from arcloop.kfp.local import source_hash

SHOE = [*SMALL, "head=shoe", "callbacks=export_only", "run_dir=run"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of installed packages with the plug-in."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(Path(__file__).with_name("plugin"), folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "--target", folder / "site", folder / "source"], check=True)
    return folder / "site"


@pytest.fixture
def installed(site, tmp_path, monkeypatch):
    """A copy of the folder on the path of imports."""
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        installed_plugins.cache_clear()
        yield folder
    installed_plugins.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "shoes"]:
        del sys.modules[name]


def test_a_plug_in_adds_choices_after_those_of_arcloop(installed):
    (installed / "shoes/conf/head/cosface.yaml").write_text("_target_: shoes.heads.Shoe\n")
    assert compose_config(["head=shoe"]).head._target_ == "shoes.heads.Shoe"
    assert compose_config(["head=cosface"]).head._target_ == "arcloop.models.CosFace"
    assert choices_of("head")["cosface"] != installed / "shoes/conf/head/cosface.yaml"
    assert choices_of("head")["shoe"] == installed / "shoes/conf/head/shoe.yaml"
    before = source_hash()
    (installed / "shoes/conf/head/shoe.yaml").write_text("defaults: [cosface]\n")
    assert source_hash() != before


def test_a_run_names_the_plug_in_that_is_missing(installed, in_tmp, capsys):
    assert main(["train", *SHOE]) == 0
    run = artifacts.read(Path("run"), "run")
    assert run.info["plugins"] == {"shoes": "arcloop-shoes==1.2"}
    shutil.rmtree(installed / "shoes")
    shutil.rmtree(installed / "arcloop_shoes-1.2.dist-info")
    installed_plugins.cache_clear()
    capsys.readouterr()
    assert main(["reproduce", "run"]) == 2
    error = capsys.readouterr().err
    assert "there is no head=shoe" in error
    assert "remedy: pip install arcloop-shoes==1.2" in error
    assert main(["embed", "run_dir=run"]) == 0  # the exported model does not need its class


@pytest.mark.parametrize("fault", ["no folder", "no package", "two plug-ins"])
def test_a_plug_in_without_configs_or_with_those_of_another_is_an_error(installed, fault):
    points = installed / "arcloop_shoes-1.2.dist-info/entry_points.txt"
    if fault == "no folder":
        shutil.rmtree(installed / "shoes/conf")
        message = "names the package shoes, which has no folder conf/"
    elif fault == "no package":
        points.write_text(points.read_text().replace("= shoes", "= boots.nothing"))
        message = "names the package boots.nothing, which cannot be found"
    else:
        shutil.copytree(installed / "shoes", installed / "boots")
        points.write_text(points.read_text() + "boots = boots\n")
        message = "have the same config file, head/shoe.yaml"
    with pytest.raises(ConfigError, match=message):
        compose_config()
