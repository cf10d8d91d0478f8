"""Hydra's flags work with `-m`: they show the first job, or one error."""

import contextlib
import shutil
import subprocess
import sys

import pytest

from arcloop.cli.main import main
from arcloop.config.files import bundled
from arcloop.pipeline.sweeps.plan import plan

SWEEP = ["train", "-m", "data=synthetic", "head.margin=0.25,0.4", "seed=3,4"]


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["--cfg", "job"], "run_dir: runs/sweeps/synthetic/head.margin-0.25_seed-3\n"),
        (["--cfg=job", "--resolve", "--package", "head"], "margin: 0.25\n"),
        (["--cfg", "hydra"], "sweep:\n    dir: runs/sweeps/${name}"),
        (["--cfg", "all"], "seed: 3\n"),
        (["--version"], "Hydra"),
        (["--hydra-help"], "Hydra's help"),
    ],
    ids=lambda flags: " ".join(flags) if isinstance(flags, list) else "",
)
def test_the_config_of_the_first_job_is_shown(in_tmp, capfd, flags, shown):
    with contextlib.suppress(SystemExit):  # of --version
        assert main([*SWEEP, *flags]) == 0
    output = capfd.readouterr()
    assert shown in output.out
    assert output.err == "the first job: head.margin=0.25 seed=3\n"
    assert not list(in_tmp.iterdir())


def test_info_of_the_first_job(in_tmp):
    command = [sys.executable, "-m", "arcloop", *SWEEP, "--info"]  # it configures the logging
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "margin: 0.25\n" in shown.stdout
    assert shown.stderr == "the first job: head.margin=0.25 seed=3\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run"], "-m and --run exclude each other"),
        (["--resolve"], "--resolve flag can only be used in conjunction with --cfg"),
        (["--experimental-rerun", "none"], "--experimental-rerun is not supported"),
    ],
)
def test_flags_that_exclude_each_other_are_one_error(in_tmp, capsys, flags, message):
    assert main([*SWEEP, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "remedy:" in error
    assert not list(in_tmp.iterdir())


def test_the_first_job_on_a_run_has_its_recorded_settings(work, capfd):
    shutil.move("runs/synthetic", "runs/a=b")
    command = ["index", "-m", "run_dir=runs/a=b", "calibration.far=0.1,0.2", "--cfg", "job"]
    assert main(command) == 0
    output = capfd.readouterr().out
    assert "run_dir: runs/a=b\n" in output
    assert "embedding_dim: 16\n" in output
    assert "far: 0.1\n" in output


def test_a_folder_of_own_configs_works_in_a_sweep(in_tmp, capsys):
    """The checks before the first job read it too, also to find keys that a choice lacks."""
    own = in_tmp / "own, [a]"
    (own / "head").mkdir(parents=True)
    (own / "experiment").mkdir()
    shutil.copy(bundled("conf") / "head/softmax.yaml", own / "head/mine.yaml")
    (own / "experiment/mine.yaml").write_text("# @package _global_\nname: of_mine\n")
    swept = ["head=arcface,mine", "head.margin=0.2,0.4", "experiment=mine"]
    assert main(["train", "-m", "--config-dir", str(own), *swept, "--cfg", "job"]) == 0
    assert "name: of_mine" in capsys.readouterr().out
    planned = plan("train", [*swept, f'hydra.searchpath=["file://{own}"]'])
    assert planned.total == 3
    assert main(["train", f"--config-dir={in_tmp}/none", "seed=1"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
