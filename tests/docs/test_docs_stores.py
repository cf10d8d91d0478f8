"""The commands of docs/stores.md run, in the order they are written, on a few pictures."""

import re
import shlex
import subprocess
from pathlib import Path

from PIL import Image, ImageOps
from tests.docs.test_docs import pictures, quick

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.pipeline.chains import find_store

PAGE = (Path(__file__).parents[2] / "docs/stores.md").read_text()


def test_the_commands_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "my/pictures")
    pictures(tmp_path / "more/pictures")
    for file in Path("more/pictures").glob("*/*"):
        ImageOps.invert(Image.open(file)).save(file.with_name(f"new-{file.name}"))
        file.unlink()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL):
        for command in block.splitlines():
            words = shlex.split(command)
            if words[0] == "arcloop":
                more = [] if words[1] == "lineage" else quick(words[1], words)
                assert main([*words[1:], *more]) == 0, command
            else:
                subprocess.run(words, check=True)
    assert "all links verified" in capsys.readouterr().out
    store = artifacts.load(find_store(Path("runs/grown")), "store")
    assert sum(store.info["appended"].values()) > 0
