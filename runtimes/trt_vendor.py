"""The vendor's module of TensorRT or TensorRT-RTX, found when asked for, and its log, which is the only place where it says why."""
from __future__ import annotations

import functools
import importlib
from contextlib import contextmanager
from typing import Iterator

from ps3_sdk.errors import RuntimeMissingError

MODULES = {"tensorrt": ("tensorrt", "trt"), "tensorrt-rtx": ("tensorrt_rtx", "trt-rtx")}     # manifest's word -> (module, extra of ps3_sdk)
OLDEST = {"tensorrt": 10, "tensorrt-rtx": 1}
RTX_SMS = (75, 80, 86, 89, 120, 121)        # GPUs of TensorRT-RTX 1.7, where the package cannot be asked
OLDEST_SM = {"fp32": 50, "fp16": 53, "bf16": 80, "fp8": 89, "int8": 61, "int4": 80}
WITHOUT = {"int8": (62,), "fp8": (87,)}     # Jetson TX2 and Orin lack arithmetic that their neighbours have


def has_arithmetic(precision: str, sm: int) -> bool:
    """Source: NVIDIA CUDA C++ Programming Guide, Compute Capabilities."""
    return sm >= OLDEST_SM[precision] and sm not in WITHOUT.get(precision, ())


def rebuild_command(runtime: str, networks: dict, name: str, sm: int | None = None, max_tokens: int | None = None, max_batch: int | None = None) -> str:
    """The `ps3 build` that makes a manifest's engines anew, also for GPU `sm`, with as many tokens and frames a run, or as said. name: whose engine it is about."""
    entry = networks["encode"] if "engine" in networks.get("encode", {}) else networks[name]      # which tells what sizes were asked for
    engine, largest, precision = entry["engine"], {}, entry["precision"]
    for profile in engine["profiles"]:
        for size, (_, _, most) in profile.items():
            if size != "tokens" or profile.get("past", (0, 0, 0))[2]:       # a look at low resolution has as many as the model says
                largest[size] = max(most, largest.get(size, 0))
    sms = sorted({*engine["sms"], *([] if sm is None else [sm])})
    if runtime == "tensorrt-rtx" and sm is not None and sm not in RTX_SMS:
        runtime = "tensorrt"        # which builds for the GPU that it is on
    words = ["ps3 build CHECKPOINT_OR_ONNX_PLAN -o engine.plan --runtime", runtime]
    words += ["--sm", *sms] if runtime == "tensorrt-rtx" else []
    if sm is not None and not has_arithmetic(precision, sm):
        precision = "fp16"
    words += ["--precision", precision] + (["--calibrate", "FOLDER"] if precision in ("int8", "fp8") else [])
    tokens, batch = max_tokens or (largest.get("tokens") if "past" in largest else None), max_batch or largest.get("batch", 1)
    words += ([] if tokens is None else ["--max-tokens", tokens]) + (["--max-batch", batch] if batch > 1 else [])
    return " ".join(map(str, words))


def vendor(runtime: str, where: str):
    """The module of a runtime. `where` begins the error. Raises RuntimeMissingError: not installed, not loadable, or too old."""
    name, extra = MODULES[runtime]
    fix = f"pip install 'ps3_sdk[{extra}]'" + (" (on a Jetson it comes with JetPack: use the system's Python packages)" if runtime == "tensorrt" else "")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        why = "is not installed" if missing else f"cannot be loaded ({str(error).splitlines()[0][:200]})"
        raise RuntimeMissingError(f"[{where}] {runtime} {why}. {fix}") from error
    version = getattr(module, "__version__", None)
    if version is None:         # a folder of that name, which Python takes for a package
        raise RuntimeMissingError(f"[{where}] what Python finds as {name} is not {runtime}: {getattr(module, '__path__', 'no package')}. Start elsewhere, or {fix}")
    if int(version.split(".")[0]) < OLDEST[runtime]:
        raise RuntimeMissingError(f"[{where}] {runtime} is {version}; at least {OLDEST[runtime]} is needed. {fix.replace('install', 'install -U', 1)}")
    return module


class Log:
    """What the vendor said last. lines: errors and warnings since collect() began, errors first when asked for."""

    def __init__(self, module):
        self._errors: list[str] = []
        self._warnings: list[str] = []
        outer = self
        severity = module.ILogger if hasattr(module, "ILogger") else module.Logger

        class Logger(severity):
            def __init__(self):
                severity.__init__(self)

            def log(self, level, message):
                name = str(level).rsplit(".", 1)[-1]
                if name in ("ERROR", "INTERNAL_ERROR"):
                    outer._errors.append(message)
                elif name == "WARNING":
                    outer._warnings.append(message)
        self.logger = Logger()

    @contextmanager
    def collect(self) -> Iterator["Log"]:
        self._errors.clear()
        self._warnings.clear()
        yield self

    def why(self, unknown: str = "it did not say why") -> str:
        """The first errors in one line."""
        lines = [" ".join(line.split())[:300] for line in self._errors or self._warnings[-1:]]
        return "; ".join(dict.fromkeys(lines[:2])) or unknown

    def mentions(self, *words: str) -> bool:
        text = " ".join(self._errors).lower()
        return any(word in text for word in words)


@functools.lru_cache(maxsize=None)
def log_of(module) -> Log:
    """One log a module: the vendor's library keeps the first logger it is given for as long as the process lives."""
    return Log(module)


def release(version: str) -> tuple[int, ...]:
    """Numbers of a version, three of them: an engine runs with the release it was built with."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
