"""model.pt as a model of MLflow: uint8 images [N, H, W, C] -> float32 embeddings [N, D].

`mlflow.pyfunc.load_model` imports this module. MLflow's PyTorch flavor would pickle the model.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.artifacts.writer import git_revision, package_versions
from arcloop.retrieval import load_model
from arcloop.runtime.searcher import MODEL, Model

_FOLDER = "mlflow_model"


class MlflowModel:
    """What `mlflow.pyfunc.load_model` wraps.

    Args:
        model: The scripted embedder.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    def predict(
        self, images_NHWC: npt.NDArray[np.uint8], params: object = None
    ) -> npt.NDArray[np.float32]:
        """Embed images; `params` has no effect."""
        return self._model.embed(images_NHWC)


def _load_pyfunc(path: str) -> MlflowModel:
    """Load model.pt, on a GPU if there is one; MLflow requires this function of a loader module."""
    return MlflowModel(load_model(Path(path), "auto"))


def register_model(client: Any, run_id: str, run_dir: Path, name: str) -> str:
    """Add the model of a run to its MLflow run, and make it a version in the model registry.

    Args:
        client: An `MlflowClient`.
        run_id: Id of the MLflow run.
        run_dir: Folder with model.pt. If it has an evaluation, the version has the tag
            `arcloop.gate`, "passed" or "not passed".
        name: Name in the registry; created if it does not exist.

    Returns:
        The version.
    """
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / _FOLDER
        save_model(run_dir / MODEL, folder)
        client.log_artifacts(run_id, str(folder), _FOLDER)
    try:
        client.create_registered_model(name)
    except MlflowException as cause:
        if cause.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags, gate = {"arcloop.git": git_revision() or "unknown"}, run_dir / "evaluation/gate.json"
    if gate.is_file():
        passed = json.loads(gate.read_bytes())["passed"]
        tags["arcloop.gate"] = "passed" if passed else "not passed"
    source = f"{client.get_run(run_id).info.artifact_uri}/{_FOLDER}"
    return str(client.create_model_version(name, source, run_id, tags=tags).version)


def save_model(model_file: Path, folder: Path) -> None:
    """Write an MLflow model with the flavor python_function and a signature.

    Args:
        model_file: model.pt.
        folder: The folder to write; it must not exist.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    with warnings.catch_warnings():
        # MLflow warns about its own type hints, and that the model has no example of an input.
        warnings.simplefilter("ignore", UserWarning)
        import mlflow.pyfunc

        model = load_model(model_file, "cpu")
        images = TensorSpec(np.dtype(np.uint8), (-1, *model.image_shape))
        embeddings = TensorSpec(np.dtype(np.float32), (-1, model.embedding_dim))
        mlflow.pyfunc.save_model(
            folder,
            loader_module=__name__,
            data_path=str(model_file),
            signature=ModelSignature(Schema([images]), Schema([embeddings])),
            pip_requirements=[f"arcloop[cpu]=={package_versions()['arcloop']}"],
        )
