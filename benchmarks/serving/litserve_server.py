"""`litserve_server.py UNPACKED PORT BATCH`: the archive's predictor under LitServe.

It reads JSON or forms; JSON is what its own examples send, with images in base64.
"""

import base64
import sys
from pathlib import Path

import litserve
import yaml
from fastapi import Response


class Api(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        from arcloop_runtime.predictor import Predictor

        folder = Path(sys.argv[1])
        settings = yaml.safe_load((folder / "model-config.yaml").read_bytes())["handler"]
        self._predictor = Predictor(folder, settings)

    def decode_request(self, request):
        return base64.b64decode(request["b64"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, inputs: list[bytes]) -> list[bytes]:
        from arcloop_runtime.predictor import PredictRequest

        return [
            reply.body for reply in self._predictor.predict([PredictRequest(one) for one in inputs])
        ]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/json")


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    api = Api(max_batch_size=int(sys.argv[3]), batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, num_api_servers=1
    )
