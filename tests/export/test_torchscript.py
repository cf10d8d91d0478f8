import numpy as np
import pytest
import torch

from arcloop.errors import ArtifactError
from arcloop.export.torchscript import export_scripted
from arcloop.models import ConvNet, Embedder
from arcloop.models.checkpoints import AtomicCheckpointIO
from arcloop.runtime.golden_batch import GOLDEN
from arcloop.runtime.images import Conversion
from arcloop.runtime.searcher import Model


def embedder(seed):
    torch.manual_seed(seed)
    backbone = ConvNet(in_channels=1, widths=[4, 8], depth=1)
    return Embedder(backbone, image_shape=(12, 12, 1), embedding_dim=8, dropout=0.1,
                    mean=[0.5], std=[0.5])  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    trained = embedder(1)
    state = {f"embedder.{k}": v for k, v in trained.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint(
        {"state_dict": {**state, "head.weight_CD": torch.ones(2, 8)}}, tmp_path / "best.ckpt"
    )
    return trained.eval(), tmp_path / "best.ckpt"


GOLDEN_IMAGES = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 1), dtype=np.uint8)


def test_exported_model_has_the_weights_of_the_checkpoint(tmp_path, checkpoint):
    trained, file = checkpoint
    difference = export_scripted(
        embedder(2), file, GOLDEN_IMAGES, tmp_path, max_abs_diff=1e-5, conversion=Conversion(4095)
    )
    with torch.no_grad():
        expected = trained(torch.from_numpy(GOLDEN_IMAGES).permute(0, 3, 1, 2)).numpy()
    model = Model(tmp_path / "model.pt")
    assert difference <= 1e-5
    np.testing.assert_allclose(model.embed(GOLDEN_IMAGES), expected, atol=1e-5)
    assert (model.image_shape, model.conversion.max_value) == ((12, 12, 1), 4095)
    golden = np.load(tmp_path / GOLDEN)
    assert np.array_equal(golden["images"], GOLDEN_IMAGES)
    np.testing.assert_array_equal(golden["embeddings"], expected)


def test_model_with_different_embeddings_is_not_exported(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(Model, "embed", lambda self, batch: np.zeros((len(batch), 8), np.float32))
    with pytest.raises(ArtifactError, match="differs from the eager one"):
        export_scripted(embedder(2), checkpoint[1], GOLDEN_IMAGES, tmp_path, max_abs_diff=1e-5)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("content", [None, b"", b"torn"])
def test_unreadable_checkpoint_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "best.ckpt").write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot read the checkpoint"):
        export_scripted(
            embedder(2), tmp_path / "best.ckpt", GOLDEN_IMAGES, tmp_path, max_abs_diff=1
        )
