"""Replace v1 by v2 under load, and try a broken v3: no request fails, v3 answers no request.

v2 has other settings than v1, so its archive differs. v3 passes the checks in its constructor, but
its responses are wrong, which only the parity check of the running server detects.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from arcloop.errors import ConfigError
from arcloop.runtime.images import encode_png
from arcloop.serving.deploy import activate_version, deploy, stage
from arcloop.serving.model_store import ModelStore
from arcloop.serving.roll import main as roll
from arcloop.serving.serve import SERVERS
from arcloop.serving.servers.client import ManagementClient, require_parity
from arcloop.serving.servers.process import TorchServe

HERE = Path(__file__).parent
BOTH = [pytest.param("torchserve", marks=pytest.mark.java), "fastapi"]
CLIENTS = 2
CHANGED = {
    "wrong answers": ("vars(neighbour) for", "vars(neighbour) | {'similarity': 0.5} for"),
    "does not load": ("self.golden = GoldenBatch", "raise ArchiveError('broken')  # "),
}  # fmt: skip
BROKEN = {
    "wrong answers": "the server fails the parity check: golden image",
    "does not load": "a worker cannot load",
}


@pytest.fixture
def image(small_run, tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(encode_png(np.load(small_run / "golden.npz")["images"][0]))
    return file


@contextlib.contextmanager
def load(port, name, image):
    """Run load_client.py during the block; yields a dict that has its output after the block."""
    arguments = ("127.0.0.1", port, f"/predictions/{name}", image, CLIENTS)
    command = ["nice", sys.executable, str(HERE / "load_client.py"), *map(str, arguments)]
    result = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield result
        finally:
            result.update(json.loads(process.communicate(timeout=60)[0]))


def arguments(run_dir, settings, **changes):
    keys = ("model_store", "inference_port", "management_port", "startup_timeout_s")
    given = {key: getattr(settings, key) for key in keys} | changes
    return [f"run_dir={run_dir}", *(f"deploy.{key}={value}" for key, value in given.items())]


def processes(server, script):
    """Return the running processes of a server whose command line contains `script`."""
    found = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended or is a zombie
            if any(script in word for word in child.cmdline()):
                found.append(child)
    return found


def versions(management):
    return {found.version for found in management.versions()}


@pytest.mark.java
def test_a_roll_by_the_management_api_loses_no_request(
    small_run, make_settings, tmp_path, image, broken_archive, capsys
):
    settings = make_settings(tmp_path / "store", model_api=True)
    first = deploy(small_run, settings, force=False)
    store = ModelStore(tmp_path / "store", settings.name)
    management = ManagementClient(settings.management_port, settings.name)
    with TorchServe(settings, first.path, tmp_path) as server:
        server.wait_until_ready()
        assert_only_the_store_is_open(management, first.path, tmp_path)
        with load(settings.inference_port, settings.name, image) as result:
            assert roll(arguments(small_run, settings, max_k=50)) == 0
            second = store.live()
            assert second.version != first.version
            assert versions(management) == {second.version}
            for how, said in BROKEN.items():
                with broken_archive(*CHANGED[how]):
                    assert roll(arguments(small_run, settings)) == 1
                assert said in capsys.readouterr().err
                assert versions(management) == {second.version}
                assert store.live() == second
        assert result["versions"] == [first.version, second.version]
        assert_only_killed_requests_repeated(result, kills=0)

        with load(settings.inference_port, settings.name, image) as result:
            time.sleep(0.5)
            os.kill(worker(management, second.version), signal.SIGKILL)
            assert roll(arguments(small_run, settings, max_k=60)) == 0
            (third,) = versions(management)
        assert result["versions"] == [second.version, third]
        assert_only_killed_requests_repeated(result, kills=1)


def assert_only_the_store_is_open(management, mar, outside):
    """With deploy.model_api=true, only archives of the model store can be loaded."""
    shutil.copyfile(mar, outside / "other.mar")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for url in (
            f"file://{outside}/other.mar", "../other.mar", f"{mar.name}/../../other.mar",
            f"file://{mar.parent}/../other.mar",
            f"http://127.0.0.1:{listener.getsockname()[1]}/other.mar",
        ):  # fmt: skip
            with pytest.raises(ConfigError, match=r"404, (Given URL|Relative path)"):
                management.register(url, 1)
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()  # the server did not try to download it
    assert len(management.versions()) == 1


@pytest.mark.java
def test_a_roll_without_a_server_fails(small_run, make_settings, tmp_path, capsys):
    settings = make_settings(tmp_path / "store")
    assert roll(arguments(small_run, settings)) == 1
    assert "the management API of TorchServe does not answer" in capsys.readouterr().err
    assert ModelStore(tmp_path / "store", settings.name).live() is None
    assert roll([*arguments(small_run, settings), "deploy.server=fastapi"]) == 2


@pytest.mark.parametrize("kind", BOTH)
def test_replacing_servers_behind_a_service_loses_no_request(
    kind, small_run, make_settings, tmp_path, image, switch
):
    """Like a rollout of pods: start a new server, check it, switch to it, stop the old one."""

    def replace(old, **changes):
        settings = make_settings(tmp_path / "store", **changes)
        # The path of a socket in it has at most 107 characters.
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="roll-")))
        with stage(small_run, settings, force=False) as staged, \
                contextlib.ExitStack() as starting:  # fmt: skip
            new = starting.enter_context(SERVERS[kind](settings, staged.version.path, folder))
            new.wait_until_ready()
            require_parity(new.endpoint, staged.golden, staged.version.version)
            activate_version(staged.store, staged.version.version, settings)
            switch.direct_to(new.endpoint)
            stop = running.enter_context(starting.pop_all())
        if old:
            switch.wait_until_left(old[0].endpoint)
            old[1].close()
        return new, stop, staged.version.version

    with contextlib.ExitStack() as running:
        one = replace(None)
        with load(switch.port, "synthetic", image) as result:
            two = replace(one, max_k=50, workers=2)
        assert result["versions"] == [one[2], two[2]]
        assert_only_killed_requests_repeated(result, kills=0)

        with load(switch.port, "synthetic", image) as result:
            time.sleep(0.5)
            script = "model_service_worker" if kind == "torchserve" else "spawn_main"
            killed = processes(two[0], script)
            assert len(killed) == 2
            killed[0].kill()
            wait_until_restarted(two[0], script, killed)
        assert result["versions"] == [two[2]]
        assert_only_killed_requests_repeated(result, kills=1)
        assert ModelStore(tmp_path / "store", "synthetic").live().version == two[2]


def wait_until_restarted(server, script, before):
    """Wait until a process of the server has replaced the first one, which was killed."""
    deadline = time.monotonic() + 30
    while len({*processes(server, script)} - {before[0]}) < len(before) or not server.ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker(management, version):
    """Return the process id of the only worker of a version."""
    ((_, process),) = management.find(version).workers.values()
    return process


def assert_only_killed_requests_repeated(result, *, kills):
    """No request failed twice, and at most those of the killed processes were repeated."""
    outcomes = result["outcomes"]
    again = sum(count for outcome, count in outcomes.items() if outcome.startswith("again"))
    assert again <= kills * CLIENTS, outcomes
    assert {o for o in outcomes if not o.startswith("again")} == {"200"}, outcomes
    assert outcomes["200"] > 100
