"""The second server as a server process."""

from __future__ import annotations

import http.client
import re
import sys
from collections.abc import Mapping, Sequence

from arcloop.serving.servers.server_config import HTTP_SERVER, http_server_config
from arcloop.serving.servers.server_process import ServerProcess


class HttpServer(ServerProcess):
    """FastAPI under uvicorn, as http-server.json says; see `ServerProcess`."""

    @staticmethod
    def require() -> None:
        """It needs nothing that arcloop's serving extra does not bring."""

    def configure(self) -> None:
        told = http_server_config(self.settings, self.archive)
        (self.folder / HTTP_SERVER).write_text(told, encoding="utf-8")
        beside = self.folder / self.archive.name
        if beside != self.archive:
            beside.symlink_to(self.archive)

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "arcloop.serving.servers.http_server", str(self.folder)]

    def ports(self) -> Mapping[str, str]:
        return {"inference_port": self.settings.host}

    @property
    def page(self) -> str:
        return self.endpoint.root + "/"

    def ready(self) -> bool:
        endpoint = self.endpoint
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def load_failure(self) -> str | None:
        found = re.findall(
            r"^(?:\w+\.)*((?:Responder|Searcher)Error: .*)", self.log.read_text(), re.MULTILINE
        )
        return found[-1] if found else None

    def stop(self) -> None:
        """SIGTERM: it answers what was asked, then ends."""
        self.terminate()
