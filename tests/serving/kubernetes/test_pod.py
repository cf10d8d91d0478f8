"""The container's entry script and what it runs, for real, out of a copy of the image's files."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from arcloop import __version__
from arcloop.serving.kubernetes.objects import MODELS, SCRATCH, USER, Release, make_objects
from arcloop.serving.servers.client import Endpoint, require_parity
from arcloop.serving.settings import PORTS

ROOT = Path(__file__).parents[3]
POD = ("-m", "arcloop.serving.servers.entrypoint")
DOCKERFILE = (ROOT / "serving/Dockerfile").read_text()


def environment(image):
    """Environment in which the image's own code is imported."""
    return {**os.environ, "PYTHONPATH": f"{image / 'absent'}:{image}"}


def instructions(name):
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", joined, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The code in the image; packages that the image lacks cannot be imported."""
    folder = tmp_path_factory.mktemp("image")
    source, target = next(c for c in instructions("COPY") if "arcloop/arcloop" in c).split()
    assert target == "/opt/arcloop/arcloop"
    shutil.copytree(ROOT / source, folder / "arcloop")
    (folder / "absent").mkdir()
    for name in ("hydra", "omegaconf", "pytorch_lightning", "torchmetrics", "matplotlib"):
        (folder / f"absent/{name}.py").write_text("raise ImportError('not in the image')\n")
    return folder


@pytest.fixture
def pod(image, archived, settings_of, free, tmp_path):
    """A function: server -> its process, and where it is asked; started as the manifest says."""
    running = []

    def start(server):
        ports = dict(zip(PORTS, free(len(PORTS)), strict=True))
        settings = dataclasses.replace(settings_of("deploy=kubernetes"), server=server, **ports)
        release = Release(archived.versions[0], {}, False, settings)
        for name, text in release.config.items():
            (tmp_path / "config").mkdir()
            (tmp_path / "config" / name).write_text(text.replace(MODELS, str(archived.store)))
        (container,) = make_objects(release)[-1]["spec"]["template"]["spec"]["containers"]
        places = {f"--config={tmp_path / 'config'}", f"--store={archived.store}"}
        kept = [a for a in container["args"] if not a.startswith(("--config", "--store"))]
        kept = [a.replace(SCRATCH, str(tmp_path / "s")) for a in kept]
        with open(tmp_path / "said.txt", "w") as said:
            process = subprocess.Popen(
                [sys.executable, *POD, *kept, *sorted(places)],
                cwd=image,
                env=environment(image),
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        running.append(process)
        return process, settings, container

    yield start
    for process in running:
        if process.poll() is None:
            for one in psutil.Process(process.pid).children(recursive=True):
                one.kill()
            process.kill()
            process.wait()


@pytest.fixture
def free():
    from socket import socket

    def ports(count):
        sockets = [socket() for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        found = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        return found

    return ports


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, b""
    except OSError:
        return 0, b""


def probe(container, image, settings):
    """Whether the readiness probe of the manifest lets the pod through."""
    asked = container["readinessProbe"]
    if "httpGet" in asked:
        return get(settings.inference_port, asked["httpGet"]["path"])[0] == 200
    command = [sys.executable if w == "python" else w for w in asked["exec"]["command"]]
    command = [w.replace("/opt/arcloop", str(image)) for w in command]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("server", [pytest.param("torchserve", marks=pytest.mark.java), "fastapi"])
def test_a_pod_serves_as_in_its_manifest_and_ends_at_sigterm(
    server, pod, image, archived, tmp_path
):
    before = {path: path.stat().st_mtime_ns for path in archived.store.rglob("*")}
    process, settings, container = pod(server)
    assert not probe(container, image, settings)
    deadline = time.monotonic() + 60
    while not probe(container, image, settings):
        assert process.poll() is None, (tmp_path / "said.txt").read_text()
        assert time.monotonic() < deadline, (tmp_path / "said.txt").read_text()
        time.sleep(0.2)
    url = f"http://127.0.0.1:{settings.inference_port}/predictions/{settings.name}"
    require_parity(Endpoint(url, 20), archived.golden[0], archived.versions[0])
    assert get(settings.inference_port, "/ping")[0] == 200
    assert get(settings.inference_port, "/metrics")[0] == 404
    status, metrics = get(settings.metrics_port, "/metrics")
    assert status == 200
    assert b"ts_inference_requests_total" in metrics or b"arcloop_request_seconds_count" in metrics
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    listening = {
        c.laddr.port: c.laddr.ip
        for one in family
        for c in psutil.Process(one.pid).net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    }
    public = {port for port, ip in listening.items() if not ip.endswith("127.0.0.1")}
    assert public == {settings.inference_port, settings.metrics_port}
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert psutil.wait_procs(family[1:], timeout=10)[1] == []
    assert {path: path.stat().st_mtime_ns for path in archived.store.rglob("*")} == before


def test_a_missing_archive_is_reported(image, tmp_path):
    (tmp_path / "http-server.json").write_text('{"archive": "mnist-1.mar"}')
    ended = subprocess.run(
        [sys.executable, *POD, "fastapi", f"--config={tmp_path}",
         f"--store={tmp_path}", f"--scratch={tmp_path}"],
        capture_output=True, text=True, env=environment(image),
    )  # fmt: skip
    assert ended.returncode == 1
    assert "mnist-1.mar" in ended.stderr
    assert "the mounted model store contains the archive" in ended.stderr


def test_the_config_names_the_image_of_this_version(settings_of):
    assert settings_of("deploy=kubernetes").image == f"arcloop-serving:{__version__}"
    assert f"-t arcloop-serving:{__version__} ." in DOCKERFILE


def test_the_image_does_not_run_as_root():
    assert instructions("USER") == [f"{USER}:{USER}"]
    assert instructions("ENTRYPOINT") == ['["python", "-m", "arcloop.serving.servers.entrypoint"]']


def test_the_packages_of_the_image_are_pinned():
    (install,) = [i for i in instructions("RUN") if "pip install" in i]
    words = install.partition("constraints.txt")[2].split()
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().split()}
    assert set(words) <= pinned
    assert {"torch", "faiss-cpu", "torchserve", "pyyaml", "fastapi", "uvicorn"} <= set(words)


def test_the_files_that_the_image_copies_exist():
    for copy in instructions("COPY"):
        for source in copy.split()[:-1]:
            assert "$" in source or list(ROOT.glob(source)), source
