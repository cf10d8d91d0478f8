"""`kserve_server.py UNPACKED PORT NAME`: the archive's predictor under KServe's Python server.

KServe's protocol is JSON, so images are sent in base64. It answers requests one by one.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import kserve
import yaml


class Model(kserve.Model):  # type: ignore[misc]
    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        from arcloop_runtime.predictor import Predictor

        settings = yaml.safe_load((folder / "model-config.yaml").read_bytes())["handler"]
        self._predictor = Predictor(folder, settings)
        self.ready = True

    def predict(self, payload: dict[str, Any], *_: object, **__: object) -> dict[str, Any]:
        from arcloop_runtime.predictor import PredictRequest

        requests = [PredictRequest(base64.b64decode(one["b64"])) for one in payload["instances"]]
        return {
            "predictions": [
                json.loads(response.body) for response in self._predictor.predict(requests)
            ]
        }


if __name__ == "__main__":
    folder, port, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    sys.path.insert(0, str(folder))
    sys.argv = sys.argv[:1]
    kserve.ModelServer(http_port=port, enable_grpc=False, access_log_format=None).start(
        [Model(name, folder)]
    )
