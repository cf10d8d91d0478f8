import csv

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from tests.conftest import SMALL

from arcloop.cli.main import main
from arcloop.training import ExponentialAverage


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)

    def training_step(self, batch, _):
        return (self.norm(self.linear(batch)) - batch[:, :2]).square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Record(Callback):
    """Records the state after each step, in float64."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, module, *_):
        self.states.append({k: v.double().clone() for k, v in module.state_dict().items()})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("decay", "largest"), [(0.999, 42 / 51), (0.5, 0.5)])
def test_the_average_equals_a_loop(tmp_path, decay, largest):
    record, module = Record(), Net()
    data = torch.randn(43, 4, 3, generator=torch.Generator().manual_seed(0))
    pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        max_epochs=1, enable_checkpointing=False, default_root_dir=tmp_path,
        callbacks=[ExponentialAverage(decay=decay), record],
    ).fit(module, torch.utils.data.DataLoader(list(data), batch_size=None))  # fmt: skip
    assert len(record.states) == 43
    average = record.states[0]
    for step, state in enumerate(record.states[1:], 1):
        used = min(decay, (1 + step) / (10 + step))
        average = {k: used * average[k] + (1 - used) * state[k] for k in state}
    assert used == pytest.approx(largest, abs=0.02)
    for name, value in module.state_dict().items():
        is_buffer = "running" in name or "num_batches" in name
        expected = record.states[-1][name] if is_buffer else average[name]
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(module.linear.weight.double(), record.states[-1]["linear.weight"])


def test_the_average_of_a_short_training_is_as_good_as_its_weights(in_tmp):
    """Before the warm-up of the decay, it was close to the untrained weights."""
    found = {}
    for callbacks in ("export_only", "ema"):
        train = ["train", *SMALL, "callbacks.evaluate=null", "callbacks.build_index=null"]
        assert main([*train, f"callbacks={callbacks}", f"run_dir={callbacks}"]) == 0
        with open(f"{callbacks}/metrics.csv", newline="") as file:
            values = [row["val_map_at_r"] for row in csv.DictReader(file)]
        found[callbacks] = max(float(value) for value in values if value)
    assert found["ema"] > found["export_only"] - 0.05


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_outside_its_range_is_refused(in_tmp, capsys, decay):
    assert main(["train", *SMALL, "callbacks=ema", f"callbacks.ema.decay={decay}"]) == 2
    assert "callbacks.ema.decay" in capsys.readouterr().err
