"""The FastAPI server as a server process."""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping

from arcloop.serving.servers.config_files import fastapi_config
from arcloop.serving.servers.entrypoint import FASTAPI_CONFIG
from arcloop.serving.servers.server_process import ServerProcess

_READY_TIMEOUT_SECONDS = 5


class FastApiServer(ServerProcess):
    """FastAPI under uvicorn, configured by http-server.json; see `ServerProcess`."""

    name = "fastapi"

    @staticmethod
    def require() -> None:
        """Nothing to check: the extra `serving` installs all packages that the server needs."""

    def write_config(self) -> None:
        text = fastapi_config(self.settings, self.archive)
        (self.folder / FASTAPI_CONFIG).write_text(text, encoding="utf-8")

    def ports(self) -> Mapping[str, str]:
        return {"inference_port": self.settings.host}

    @property
    def page(self) -> str:
        return self.endpoint.root + "/"

    def ready(self) -> bool:
        host, port = self.endpoint.host, self.endpoint.port
        connection = http.client.HTTPConnection(host, port, timeout=_READY_TIMEOUT_SECONDS)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def load_failure(self) -> str | None:
        pattern = r"^(?:\w+\.)*((?:Archive|Searcher)Error: .*)"
        found = re.findall(pattern, self.log.read_text(), re.MULTILINE)
        return found[-1] if found else None
