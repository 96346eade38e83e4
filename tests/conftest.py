"""Fixtures every test may use: the default session and a real 4K photograph."""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PHOTO = ROOT / "examples" / "frames" / "boats_4k.jpg"


def pytest_addoption(parser):
    parser.addoption("--peer", default=None, help="python of an environment with ps3-torch (default: .peer/bin/python when it exists)")


@pytest.fixture(scope="session")
def photo_path():
    return PHOTO


@pytest.fixture(scope="session")
def photo():
    """(2160, 3840, 3) uint8 RGB"""
    return np.asarray(Image.open(PHOTO))


@pytest.fixture(scope="session")
def session():
    import ps3_sdk
    with ps3_sdk.Session() as opened:
        yield opened
