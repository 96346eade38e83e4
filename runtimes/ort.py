"""ONNX Runtime on the CPU. Weights are mapped from the bundle file itself: loading reads none of them."""
from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from ps3_sdk.errors import RuntimeFailedError, RuntimeMissingError
from ps3_sdk.manifest import MANIFEST

LARGE_BYTES = 100 << 20   # networks with more weights run for seconds; they give their working memory back after each run
LOCATION = "./" * 100    # the prefix that the exporter leaves in front of a weight file's name
OFFSET = re.compile(rb"offset\x12\x14(\d{20})")


def load(bundle, name: str, threads: int = 0, keep: bool = True) -> "OrtNetwork | PassingOrtNetwork":
    """See base. keep: False for networks that run now and then; a large one is then in memory only while it runs."""
    network = _open(bundle, name, threads)
    return network if keep or not _is_large(bundle, name) else PassingOrtNetwork(bundle, name, threads)


def _is_large(bundle, name: str) -> bool:
    weights = bundle.manifest["networks"][name]["weights"]
    return bool(weights) and bundle.members[weights] > LARGE_BYTES


def _open(bundle, name: str, threads: int) -> "OrtNetwork":
    session, run_options = open_session(bundle, name, threads, ["CPUExecutionProvider"]), _run_options()
    if _is_large(bundle, name):
        run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return OrtNetwork(session, name, run_options)


def module():
    """onnxruntime. Its official builds keep a device's id and what machine it is in the user's cache, to be sent to Microsoft: not here, unless the program had loaded it before.

    Source: ONNX Runtime, Privacy.md.
    """
    if "onnxruntime" not in sys.modules:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime
    return onnxruntime


def _run_options():
    return module().RunOptions()


def open_session(bundle, name: str, threads: int, providers: list):
    """An onnxruntime.InferenceSession of a bundle's network, its weights mapped from the bundle."""
    try:
        onnxruntime = module()
    except ImportError as error:
        raise RuntimeMissingError("[ort] the bundle's networks run on ONNX Runtime, which is not installed. pip install onnxruntime") from error
    entry = bundle.manifest["networks"][name]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Measured at SO400M, 2559 tokens: packed copies of fp32 weights cost 1.65 GB and a memory plan 0.8 GB, neither is faster; an ask of the
    # embedded bundle gains 1 to 5 % from packed ones. int8 weights are another matter, packed they run three times faster.
    if entry["precision"] == "fp32":
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_mem_pattern = False
    # Every network has threads of its own, which would go on turning after a run and take the cores from the next network's: with five
    # networks of a small model on 2 cores an ask took twice as long, and generating its tokens six times (benchmarks/default.py).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = bytes(bundle.member(entry["file"]))
    if entry["weights"] and not _still_there(bundle):       # replaced on the disk meanwhile: what is mapped is the one to go on with
        weights = bundle.member(entry["weights"])
        options.add_external_initializers_from_files_in_memory([LOCATION + entry["weights"]], [weights], [len(weights)])
    elif entry["weights"]:
        path = Path(bundle.path).resolve()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        model = point_into_bundle(model, entry["weights"], path.name, bundle.offset(entry["weights"]))
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:      # ONNX Runtime raises a dozen unrelated classes
        raise RuntimeFailedError(f"[ort] {name} of {bundle.path} cannot be loaded by onnxruntime {onnxruntime.__version__}: {first_line(error)}. "
                                 "Export the bundle again with this version of ps3_sdk.") from error


def point_into_bundle(model: bytes, weights: str, bundle_name: str, member_offset: int) -> bytes:
    """The same ONNX bytes with their weight file `weights` replaced by the bundle, at the member's place in it.

    The exporter writes locations with a prefix of ./././ and offsets with 20 digits, so both are replaced at equal length
    and the protobuf around them stays valid. An unzipped bundle needs none of this: its names are right as they are.
    """
    old = (LOCATION + weights).encode()
    new = bundle_name.encode()
    if len(new) > len(old) - 2:
        raise RuntimeFailedError(f"[ort] the bundle's file name is {len(new)} bytes long; at most {len(old) - 2} can be mapped. Rename it.")
    padding = len(old) - len(new)
    model = model.replace(old, b"./" * (padding // 2) + b"/" * (padding % 2) + new)
    return OFFSET.sub(lambda found: b"offset\x12\x14%020d" % (int(found[1]) + member_offset), model)


def _still_there(bundle) -> bool:
    """Whether the bundle's path still leads to the bundle: its manifest, which has the hash of every member, is the same."""
    if MANIFEST not in bundle.members:      # an unfinished bundle, whose exporter watches over it
        return True
    try:
        with open(bundle.path, "rb") as file:
            file.seek(bundle.offset(MANIFEST))
            return file.read(bundle.members[MANIFEST]) == bundle.member(MANIFEST)
    except OSError:
        return False


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


class OrtNetwork:
    def __init__(self, session, name: str, run_options):
        self._session, self._name, self._run_options = session, name, run_options

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        try:
            return dict(zip(outputs, self._session.run(list(outputs), dict(inputs), self._run_options)))
        except Exception as error:
            raise failed(self._name, inputs, error) from error

    def bound(self, arrays: Mapping[str, np.ndarray]) -> "BoundOrtNetwork":
        return BoundOrtNetwork(self._session, self._name, self._run_options, arrays)


class PassingOrtNetwork:
    """A large network that is opened for each run and gone after it. Opening costs milliseconds: weights are mapped, not read."""

    def __init__(self, bundle, name: str, threads: int):
        self._place = bundle, name, threads

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        # copied, because an output would keep the network's working memory
        return {key: array.copy() for key, array in _open(*self._place).run(inputs, outputs).items()}


class BoundOrtNetwork:
    """A network with some inputs and outputs in contiguous arrays of the caller's; see base.Bindable."""

    def __init__(self, session, name: str, run_options, arrays: Mapping[str, np.ndarray]):
        from onnxruntime import OrtValue
        self._session, self._name, self._run_options = session, name, run_options
        self._arrays, self._binding, self._outputs = dict(arrays), session.io_binding(), []
        values = {id(array): OrtValue.ortvalue_from_numpy(array) for array in arrays.values()}       # on the CPU: the array itself
        inputs = {value.name for value in session.get_inputs()}
        for key, array in arrays.items():
            if key in inputs:
                self._binding.bind_ortvalue_input(key, values[id(array)])
            else:
                self._binding.bind_ortvalue_output(key, values[id(array)])
                self._outputs.append(key)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        try:
            for key, array in inputs.items():
                self._binding.bind_cpu_input(key, array)
            for key in outputs:
                self._binding.bind_output(key)      # each time anew: its size may be another
            self._outputs += [key for key in outputs if key not in self._outputs]
            self._session.run_with_iobinding(self._binding, self._run_options)
            found = self._binding.get_outputs_as_ortvaluevector()       # in the order of binding
            return {key: found[self._outputs.index(key)].numpy() for key in outputs}
        except Exception as error:
            raise failed(self._name, inputs, error) from error


def failed(name: str, inputs: Mapping[str, np.ndarray], error: Exception, where: str = "ort") -> RuntimeFailedError:
    return RuntimeFailedError(f"[{where}] {name} failed: {first_line(error)}. It was given {', '.join(f'{key} {array.shape}' for key, array in list(inputs.items())[:4])}.")
