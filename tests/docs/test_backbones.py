"""Runs the commands of docs/backbones.md in order on a few images."""

import re
from pathlib import Path

from arcloop.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs/backbones.md").read_text()
FEW = [
    "data=synthetic", "data.train=24", "data.val=12", "data.gallery=12", "data.query=12",
    "data.num_classes=2", "data.image_size=32", "data.noise=1.0", "loader.batch_size=12",
    "trainer.max_epochs=1", "callbacks.build_index=null", "callbacks.evaluate=null",
]  # fmt: skip


def test_every_command_runs(lora_extra, in_tmp):
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 7
    narrow = ["backbone.width=64", "backbone.features=64"]
    for command in commands:
        program, *arguments = command.split()
        assert program == "arcloop"
        smaller = narrow if "backbone=mobilefacenet" in arguments else []
        assert main([*arguments, *FEW, *smaller]) == 0, command
