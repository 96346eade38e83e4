"""What README and the headers show is what runs."""
import re
import shutil

import numpy as np
from PIL import Image

import ps3_sdk
from conftest import PHOTO, ROOT
from ps3_sdk import cli

README = (ROOT / "README.md").read_text()


def blocks(language):
    found = [text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S) if name == language]
    assert found, f"README has no {language or 'plain'} block"
    return found


def test_the_python_block_runs(tmp_path, monkeypatch, seeded):
    shutil.copy(seeded, tmp_path / "engine.plan")
    shutil.copy(PHOTO, tmp_path / "frame.jpg")
    monkeypatch.chdir(tmp_path)
    names = {"frame": np.ascontiguousarray(np.asarray(Image.open(PHOTO))[..., ::-1])}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "seen.jpg").exists()
    names["session"].close()


def test_the_two_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for line in blocks("")[0].splitlines():
        assert re.match(r"make (\w+)", line)[1] in targets


def test_every_option_in_readme_is_one_of_the_command(capsys):
    shown = next(block for block in blocks("") if block.startswith("ps3 ask"))
    for line in shown.splitlines():
        for usage in re.split(r"\s{4,}", line.split("#")[0].strip()):
            command = usage.split()[1]
            try:
                cli.main([command, "--help"])
            except SystemExit:
                pass
            text = capsys.readouterr().out
            for option in re.findall(r"(?<![\w-])--?[a-z-]+", usage.split("ps3 ", 1)[1].split(" ", 1)[-1]):
                assert option in text, f"ps3 {command} has no {option}"


def test_the_version_is_one():
    assert f'version = "{ps3_sdk.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert ps3_sdk._core.version() == ps3_sdk.__version__
    assert f"## {ps3_sdk.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README + (ROOT / "ARCHITECTURE.md").read_text()):
        assert (ROOT / target).exists(), target
