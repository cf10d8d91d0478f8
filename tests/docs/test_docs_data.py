"""The commands of docs/data.md run, in the order they are written, on a small list of pictures."""

import re
import shlex
from pathlib import Path

from tests.docs.test_docs import pictures, quick

from arcloop import artifacts
from arcloop.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text()
FEW = ["data.val_classes=2", "data.test_classes=2", "evaluate.gate.min_top1=null"]


def test_the_commands_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        pictures(tmp_path / "my" / str(number))
    files = sorted(Path("my").glob("*/*/*.png"))
    rows = [f"{f.relative_to('my')},{f.parent.name} {f.parts[1]}" for f in files]
    for row, file in enumerate(files):  # no two of them alike
        file.write_bytes(_marked(file, row))
    Path("my/list.csv").write_text("\n".join(["path,label", *rows]))
    for row, file in enumerate(files):
        video = Path("my/videos", file.parent.name, f"v{row % 8}_{row:03d}.png")
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(file.read_bytes())
    commands = [
        line
        for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(commands) == 7
    for command in commands:
        arguments = shlex.split(command)[1:]
        assert main([*arguments, *quick(arguments[0], arguments), *FEW]) == 0, command
    assert artifacts.load(Path("runs/unseen/evaluation"), "evaluation").info["leave_one_out"]
    classes = artifacts.load(Path("runs/pk"), "run").config["sampler"]
    assert classes["images_per_class"] == 4


def _marked(file, row):
    import io

    from PIL import Image

    image = Image.open(file)
    for place in range(2):
        image.paste(tuple([(row * 37 * (place + 1)) % 256] * 3), (8 * place, 0, 8 * place + 8, 4))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def test_the_error_that_the_page_shows(tmp_path, monkeypatch, capsys):
    from tests.docs.test_docs import small_mnist

    monkeypatch.chdir(tmp_path)
    small_mnist(tmp_path / "mnist")
    (shown,) = re.findall(r"```console\n\$ (.*?)\n(.*?)```", PAGE, flags=re.DOTALL)
    command, expected = shown
    small = ["data.root=mnist", "data.val=100", "data.gallery=200"]
    assert main([*shlex.split(command)[1:], *small]) == 2
    assert capsys.readouterr().err.endswith(expected)
