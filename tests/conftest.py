"""Fixtures every test may use: a seeded encoder, a session of it, and a real 4K photograph."""
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PHOTO = ROOT / "examples" / "frames" / "boats_4k.jpg"


def lacking(message: str, *words: str) -> list[str]:
    """Those of the words that a message does not have."""
    return [word for word in words if word not in message]


def why_no_gpu() -> str:
    """What keeps the core's kernels from running here; empty where they run."""
    from ps3_sdk import _core
    from ps3_sdk.errors import RuntimeMissingError
    try:
        _core.Cuda()
    except RuntimeMissingError as error:
        return str(error)
    return ""


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
def seeded(tmp_path_factory):
    """Path of an encoder of seeded random weights, made in a process of its own: this one stays without PyTorch."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "onnx")):
        pytest.skip("needs ps3_sdk[export]")
    plan = tmp_path_factory.mktemp("seeded") / "seeded.plan"
    subprocess.run([sys.executable, "-m", "ps3_sdk.export.seeded_bundle", plan], cwd=plan.parent, check=True, capture_output=True)
    return plan


@pytest.fixture(scope="session")
def session(seeded):
    import ps3_sdk
    with ps3_sdk.Session(seeded) as opened:
        yield opened


@pytest.fixture(scope="module")
def standin():
    """The stand-in of TensorRT and of a GPU in place of the real ones, in this process and its children; gives the module `gpu`."""
    import os
    import sys
    from ps3_sdk import _core
    from ps3_sdk.errors import RuntimeMissingError
    from ps3_sdk.runtimes import cuda_driver, trt_common

    def no_kernels(*_):
        raise RuntimeMissingError("[cuda] a stand-in of a GPU runs no kernels")
    folder, names = str(ROOT / "tests" / "standin"), ("tensorrt", "tensorrt_rtx", "gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")])))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        import gpu
        patch.setattr(cuda_driver, "Driver", gpu.Driver)
        patch.setattr(trt_common, "Driver", gpu.Driver)
        patch.setattr(_core, "Cuda", no_kernels)        # of a machine with a real GPU, whose kernels do not reach the stand-in's memory
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield gpu
    for name in names:
        if str(getattr(sys.modules.get(name), "__file__", "")).startswith(folder):      # a real one was put back
            del sys.modules[name]
