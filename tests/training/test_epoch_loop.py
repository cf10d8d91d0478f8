"""The loop does what Lightning's own does, which is the oracle."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.profilers import SimpleProfiler

from arcloop.config.composition import compose_config
from arcloop.pipeline import steps
from arcloop.pipeline.steps import build
from arcloop.training import NODES, Recipe
from arcloop.training.epoch_loop import EpochLoop
from arcloop.training.quiet import quiet

SMALL = [
    "data=synthetic", "data.train=130", "data.val=30", "data.num_classes=3", "data.image_size=12",
    "loader.batch_size=20", "loader.eval_batch_size=20", "backbone.widths=[4,4]",
    "embedder.embedding_dim=8", "trainer.max_epochs=2", "trainer.log_every_n_steps=2",
]  # fmt: skip
HOOKS = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad",
    "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end",
    "on_validation_start", "on_validation_end", "on_train_epoch_end", "on_train_end",
)  # fmt: skip


class Diary(Callback):
    """Notes each hook with what can be seen in it, and logs in some."""

    def __init__(self, pages, logs):
        self.pages, self.logs = pages, logs

    def note(self, hook, trainer, module, *arguments):
        given = [a["loss"] if isinstance(a, dict) else a for a in arguments]
        seen = [a if isinstance(a, int) else a.item() for a in given
                if isinstance(a, int) or (torch.is_tensor(a) and a.ndim == 0)]  # fmt: skip
        grads = [p.grad is not None and float(p.grad.sum()) for p in module.parameters()]
        self.pages.append(
            (hook, module._current_fx_name, trainer.global_step, seen, grads,
             torch.is_grad_enabled(), dict(trainer.callback_metrics),
             dict(trainer.progress_bar_metrics), str(trainer.fit_loop.state_dict()))
        )  # fmt: skip
        if self.logs and hook in ("on_train_batch_end", "on_before_backward"):
            module.log(hook, float(trainer.global_step), prog_bar=True, on_epoch=True)


for name in HOOKS:
    setattr(Diary, name, lambda self, *arguments, hook=name: self.note(hook, *arguments))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("epoch_loop") / "store"
    steps.apply("prepare", compose_config(SMALL), {}, path)
    return path


def fit(store, folder, overrides, *, loop, logs=True):
    alone = ["callbacks=export_only", "callbacks.export=null", f"run_dir={folder}"]
    config = compose_config([*SMALL, *alone, *overrides])
    recipe = Recipe(**{n: build(config, n) for n in NODES}, seed=0, monitor=config.monitor)
    with quiet():
        return fit_with(recipe, store, folder, loop, logs)


def fit_with(recipe, store, folder, loop, logs):
    datamodule = recipe.make_datamodule(store)
    module = recipe.make_module(datamodule.image_shape, datamodule.num_classes)
    pages = []
    trainer = recipe.make_trainer(Diary(pages, logs))
    assert type(trainer.fit_loop.epoch_loop) is EpochLoop
    if loop is not EpochLoop:
        trainer.fit_loop.epoch_loop = loop(
            trainer, min_steps=trainer.min_steps, max_steps=trainer.max_steps
        )
    trainer.fit(module, datamodule=datamodule)
    trainer.save_checkpoint(folder / f"{loop.__name__}.ckpt")
    checkpoint = torch.load(folder / f"{loop.__name__}.ckpt", weights_only=True)
    return pages, checkpoint, trainer


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"],
        ["trainer.gradient_clip_val=0.1"],
        ["trainer.gradient_clip_val=0.01", "+trainer.gradient_clip_algorithm=value"],
        ["trainer.precision=bf16-mixed"],
        ["trainer.accumulate_grad_batches=2"],
        ["+trainer.val_check_interval=0.5"],
        ["trainer.max_steps=9"],
        ["optimizer=adamw", "scheduler=constant"],
        ["+trainer.limit_train_batches=3"],
    ],
    ids=lambda overrides: " ".join(overrides) or "default",
)
@pytest.mark.parametrize("logs", [True, False])
def test_each_hook_sees_what_it_sees_in_the_loop_of_lightning(store, tmp_path, overrides, logs):
    ours, left, trainer = fit(store, tmp_path, overrides, loop=EpochLoop, logs=logs)
    theirs, expected, _ = fit(store, tmp_path, overrides, loop=_TrainingEpochLoop, logs=logs)
    assert len(ours) > 20
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == other
    assert str(left["loops"]) == str(expected["loops"])
    for name, weight in expected["state_dict"].items():
        assert torch.equal(left["state_dict"][name], weight), name
    assert str(left["optimizer_states"]) == str(expected["optimizer_states"])
    assert trainer.fit_loop.epoch_loop._hooks is not None


def test_a_profiler_that_was_asked_for_gets_all_that_lightning_measures(store, tmp_path):
    *_, trainer = fit(store, tmp_path, ["+trainer.profiler=simple"], loop=EpochLoop)
    assert isinstance(trainer.profiler, SimpleProfiler)
    assert "run_training_batch" in trainer.profiler.recorded_durations
