"""v1 -> v2 -> a broken v3 while a client asks without pause: nothing is lost, v3 never answers.

v2 has other settings than v1, so it is another archive. v3 loads, and its golden batch is right in
a call from within, but through a server it answers wrongly: only the gate in front of it can tell.
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

from arcloop.errors import ArtifactError, ConfigError
from arcloop.runtime.images import encode_png
from arcloop.serving.deploy import candidate, deploy, put_live
from arcloop.serving.roll import main as roll
from arcloop.serving.serve import SERVERS
from arcloop.serving.servers.client import require_parity, stored_answers
from arcloop.serving.servers.management import Management
from arcloop.serving.servers.torchserve import TorchServe
from arcloop.serving.store.model_store import ModelStore

HERE = Path(__file__).parent
BOTH = [pytest.param("torchserve", marks=pytest.mark.java), "fastapi"]
CLIENTS = 2
CHANGED = {
    "answers wrongly": ("vars(neighbour) for", "vars(neighbour) | {'similarity': 0.5} for"),
    "does not load": ("self._prove(folder)", "raise ResponderError('it will not')"),
}  # fmt: skip
BROKEN = {
    "answers wrongly": "the parity gate refuses the server: golden image",
    "does not load": "a worker cannot load",
}


@pytest.fixture
def image(small_run, tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(encode_png(np.load(small_run / "golden.npz")["images"][0]))
    return file


@contextlib.contextmanager
def load(port, name, image):
    """A process that asks without pause; yields the object that it will have printed."""
    asked = ("127.0.0.1", port, f"/predictions/{name}", image, CLIENTS)
    command = ["nice", sys.executable, str(HERE / "load_client.py"), *map(str, asked)]
    told = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield told
        finally:
            told.update(json.loads(process.communicate(timeout=60)[0]))


def arguments(run_dir, settings, **changes):
    keys = ("model_store", "inference_port", "management_port", "startup_timeout_s")
    given = {key: getattr(settings, key) for key in keys} | changes
    return [f"run_dir={run_dir}", *(f"deploy.{key}={value}" for key, value in given.items())]


def processes(server, script):
    """Processes of a server whose command line names this."""
    children = psutil.Process(server.pid).children(recursive=True)
    return [child for child in children if any(script in word for word in child.cmdline())]


def versions(management):
    return {found.version for found in management.registered()}


@pytest.mark.java
def test_a_roll_by_api_loses_nothing(small_run, make_settings, tmp_path, image, spoiled, capsys):
    settings = make_settings(tmp_path / "store", model_api=True)
    first = deploy(small_run, settings, force=False)
    store = ModelStore(tmp_path / "store", settings.name)
    management = Management(settings.management_port, settings.name)
    with TorchServe(settings, first.path, tmp_path) as server:
        server.wait_until_ready()
        assert_only_the_store_is_open(management, first.path, tmp_path)
        with load(settings.inference_port, settings.name, image) as told:
            assert roll(arguments(small_run, settings, max_k=50)) == 0
            second = store.live()
            assert second.version != first.version
            assert versions(management) == {second.version}
            for how, said in BROKEN.items():
                with spoiled(*CHANGED[how]):
                    assert roll(arguments(small_run, settings)) == 1
                assert said in capsys.readouterr().err
                assert versions(management) == {second.version}
                assert store.live() == second
        assert told["versions"] == [first.version, second.version]
        assert_only_killed_lost(told, kills=0)

        with load(settings.inference_port, settings.name, image) as told:
            time.sleep(0.5)
            os.kill(worker(management, second.version), signal.SIGKILL)
            assert roll(arguments(small_run, settings, max_k=60)) == 0
            (third,) = versions(management)
            os.kill(worker(management, third), signal.SIGKILL)
            wait_until_ready(server)
            time.sleep(0.5)
        assert told["versions"] == [second.version, third]
        assert_only_killed_lost(told, kills=2)


def assert_only_the_store_is_open(management, mar, outside):
    """The model API is on; yet nothing can be loaded but archives of the model store."""
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
            listener.accept()  # nobody came for it
    assert len(management.registered()) == 1


@pytest.mark.java
def test_where_there_is_nothing_to_roll(small_run, make_settings, tmp_path, capsys):
    settings = make_settings(tmp_path / "store")
    assert roll(arguments(small_run, settings)) == 1
    assert "no TorchServe's management answers" in capsys.readouterr().err
    assert ModelStore(tmp_path / "store", settings.name).live() is None
    assert roll([*arguments(small_run, settings), "deploy.server=fastapi"]) == 2


@pytest.mark.parametrize("kind", BOTH)
def test_replacing_processes_behind_a_service_loses_nothing(
    kind, small_run, make_settings, tmp_path, image, spoiled, switch
):
    """As a rollout of pods does: start the new one, prove it, direct to it, let the old one go."""

    def replace(old, **changes):
        settings = make_settings(tmp_path / "store", **changes)
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        with candidate(small_run, settings, force=False) as proven, \
                contextlib.ExitStack() as starting:  # fmt: skip
            new = starting.enter_context(SERVERS[kind](settings, proven.version.path, folder))
            new.wait_until_ready()
            golden = stored_answers(proven.unpacked, settings.parity_tolerance)
            require_parity(new.endpoint, golden, proven.version.version)
            put_live(proven.store, proven.version.version, settings)
            switch.direct_to(new.endpoint)
            stop = running.enter_context(starting.pop_all())
        if old:
            switch.wait_until_left(old[0].endpoint)
            old[1].close()
        return new, stop, proven.version.version

    with contextlib.ExitStack() as running:
        one = replace(None)
        with load(switch.port, "synthetic", image) as told:
            two = replace(one, max_k=50, workers=2)
        assert told["versions"] == [one[2], two[2]]
        assert_only_killed_lost(told, kills=0)

        with load(switch.port, "synthetic", image) as told:
            time.sleep(0.5)
            script = "model_service_worker" if kind == "torchserve" else "spawn_main"
            killed = processes(two[0], script)
            assert len(killed) == 2
            killed[0].kill()
            with (
                spoiled(*CHANGED["answers wrongly"]),
                pytest.raises(ArtifactError, match=BROKEN["answers wrongly"]),
            ):
                replace(two, max_k=60)
            wait_until_ready(two[0])
        assert told["versions"] == [two[2]]
        assert_only_killed_lost(told, kills=1)
        assert ModelStore(tmp_path / "store", "synthetic").live().version == two[2]
        assert len(processes(two[0], script)) == 2  # it came back


def wait_until_ready(server):
    """As the server's own, but not minding what the log says of workers that are gone."""
    deadline = time.monotonic() + 30
    while not server.ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker(management, version):
    """Process id of the one worker of a version."""
    ((_, process),) = management.find(version).workers.values()
    return process


def assert_only_killed_lost(told, *, kills):
    """No request failed for good; those sent again are no more than the killed processes held."""
    outcomes = told["outcomes"]
    again = sum(count for outcome, count in outcomes.items() if outcome.startswith("again"))
    assert again <= kills * CLIENTS, outcomes
    assert {o for o in outcomes if not o.startswith("again")} == {"200"}, outcomes
    assert outcomes["200"] > 100
