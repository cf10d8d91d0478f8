import math

import pytest
import pytorch_lightning as pl
import torch
from tests.conftest import SMALL

from arcloop.cli.main import main
from arcloop.models.checkpoints import read_checkpoint
from arcloop.training import BestCheckpoint, ExportScripted


class Logged(pl.LightningModule):
    """Logs one of the given values in each epoch."""

    def __init__(self, values):
        super().__init__()
        self.values, self.weight = values, torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, _):
        return self.weight.sum()

    def on_train_epoch_end(self):
        self.log("value", self.values[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("max", [0.1, 0.9, 0.9, 0.5], 2),
        ("max", [1.0, 1.0, 1.0], 2),
        ("max", [0.5, math.nextafter(0.5, 0) - 1e-7], 0),
        ("max", [0.3, math.nan, 0.2], 0),
        ("min", [0.9, 0.1, 0.1, 0.5], 2),
        ("min", [0.0, 0.0, 1e-9], 1),
    ],
)
@pytest.mark.parametrize("kept", [1, 2, -1])
def test_the_later_one_of_equal_values_is_the_best(tmp_path, mode, values, best, kept):
    callback = BestCheckpoint(
        tmp_path, filename="best" if kept == 1 else "{epoch}", monitor="value", mode=mode,
        save_top_k=kept, enable_version_counter=False,
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        max_epochs=len(values), callbacks=[callback],
    )  # fmt: skip
    trainer.fit(Logged(values), torch.utils.data.DataLoader(torch.zeros(1)))
    assert len([*tmp_path.iterdir()]) == (kept if kept > 0 else len(values))
    saved = torch.load(callback.best_model_path)
    assert saved["epoch"] == best
    (state,) = saved["callbacks"].values()
    assert state["best_model_path"] == callback.best_model_path
    assert float(callback.best_model_score) == pytest.approx(values[best])


def test_a_metric_that_reaches_its_maximum_at_once_exports_the_last_epoch(in_tmp, capsys):
    command = ["train", *SMALL, "data.noise=0.1", "callbacks=export_only", "trainer.max_epochs=3"]
    assert main([*command, "monitor=val_recall_at_5"]) == 0
    assert capsys.readouterr().err.count("val_recall_at_5 1.0000") == 3
    assert read_checkpoint(in_tmp / "runs/synthetic/checkpoints/best.ckpt")["global_step"] == 18


@pytest.mark.parametrize(
    ("monitor", "more"),
    [
        (["monitor=val_margin"], []),
        (["monitor=train_loss", "monitor_mode=min"], ["+trainer.val_check_interval=3"]),
    ],
)
def test_early_stopping_follows_any_metric_and_stays_ended(
    in_tmp, capsys, monkeypatch, monitor, more
):
    """The second validation ends the training, because no improvement is larger than 20. The run is
    interrupted before its export, and the same command finishes it without another epoch."""
    command = ["train", *SMALL, "callbacks=[early_stopping,export_only,ema]", *monitor, *more]
    command += ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=20"]
    command += ["trainer.max_epochs=4"]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ExportScripted, "on_fit_end", interrupted)
        assert main(command) == 130
    epochs = 1 if more else 2  # with two validations in an epoch
    assert capsys.readouterr().err.count("epoch ") == epochs
    folder = in_tmp / "runs/synthetic/checkpoints"
    before = [read_checkpoint(folder / f"{name}.ckpt")["global_step"] for name in ("best", "last")]
    assert before[1] == 6 * epochs
    assert main(command) == 0
    output = capsys.readouterr().err
    assert "resuming from" in output
    assert "epoch " not in output
    assert read_checkpoint(folder / "best.ckpt")["global_step"] == before[0]
    assert main([*command, "resume=true", "callbacks.early_stopping=null"]) == 0
    assert capsys.readouterr().err.count("epoch ") == 4 - epochs


def test_a_resumed_training_knows_the_step_of_the_best_checkpoint(tmp_path):
    """Otherwise a run that was interrupted at its end would keep other checkpoint files."""
    callback = BestCheckpoint(tmp_path, monitor="value", mode="max")
    callback.best_model_path = str(tmp_path / "best.ckpt")
    callback._steps = {callback.best_model_path: 12}
    resumed = BestCheckpoint(tmp_path, monitor="value", mode="max")
    resumed.load_state_dict(callback.state_dict())
    assert resumed.step_of_best == 12
