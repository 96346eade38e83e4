"""Runs onnxruntime-genai's model builder on a language model, in a process of its own, for its graph (llm_graph.py).

What else it writes (a tokenizer, stop ids it has thought up) is not used. It is given a folder made for it: a config.json of known
keys, a stand-in tokenizer. So nothing in the checkpoint can make it run code or reach for the network.
"""
from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections import deque
from pathlib import Path
from typing import Callable

from ps3_sdk.errors import ExportError, RuntimeMissingError

from .child import module
from .reference.vila.config import LlmConfig
from .weights import INDEX, SINGLE, Checkpoint

NEEDED = {"onnxruntime-genai": (0, 18), "transformers": (5, 23)}     # older builders write other graphs or do not start
PROVIDERS = {"fp32": "cpu", "fp16": "cuda"}     # whose graph: the builder's fp16 for the CPU repeats keys per head and fails at the second run
OPTIONS = ("exclude_embeds=true", "include_hidden_states=true", "prune_lm_head=true")     # rows in; hidden states out; logits of the last row
MODEL = "model.onnx"
_ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


def check_packages() -> dict[str, str]:
    """{package: version} of what the builder needs. Raises RuntimeMissingError naming the first that is absent or too old."""
    found = {}
    for name, minimum in NEEDED.items():
        wanted = ".".join(map(str, minimum))
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise RuntimeMissingError(f"[llm] exporting a language model needs {name} {wanted} or newer, which is not installed. pip install 'ps3_sdk[vlm]'") from error
        if tuple(map(int, re.findall(r"\d+", found[name])[:2])) < minimum:
            raise RuntimeMissingError(f"[llm] {name} is {found[name]}; {wanted} or newer is needed. pip install --upgrade 'ps3_sdk[vlm]'")
    return found


def run_builder(checkpoint: Checkpoint, config: LlmConfig, work_dir: Path, precision: str, progress: Callable[[str], None]) -> Path:
    """The graph's file, below work_dir: matrices are named and shaped in it, see llm_graph.py. precision: fp32 or fp16.

    A finished graph of the same files, settings and versions is used again.
    Raises: RuntimeMissingError: see check_packages. ExportError: the builder failed or the disk is full; the text ends with its last words.
    """
    stamp = json.dumps({"packages": check_packages(), "options": [precision, *OPTIONS], "config": config.__dict__, "files": file_stamps(checkpoint.folder)}, indent=1)
    target, done, part = work_dir / f"llm-{precision}.onnx", work_dir / f"llm-{precision}.json", work_dir / f"llm-{precision}.part"
    try:
        if target.is_file() and done.is_file() and done.read_text() == stamp:
            progress(f"llm: {target} is already built")
            return target
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _write_stand_in(part / "source", config)
        _call(checkpoint.folder, part, precision)
        progress(f"llm: graph of {config.depth} layers")
        done.unlink(missing_ok=True)
        (part / MODEL).replace(target)
        done.write_text(stamp)
    except OSError as error:
        raise ExportError(f"[llm] {work_dir} cannot be written: {error.strerror or error}. Choose a folder with some room.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _write_stand_in(folder: Path, config: LlmConfig) -> None:
    folder.mkdir()
    values = {
        "architectures": [_ARCHITECTURES[config.model_type]], "model_type": config.model_type, "hidden_act": "silu", "hidden_size": config.width,
        "intermediate_size": config.mlp_width, "num_hidden_layers": config.depth, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_width, "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions, "rms_norm_eps": config.norm_epsilon, "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied, "use_sliding_window": False, "sliding_window": None, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if config.rope_factor != 1.0:
        values["rope_scaling"] = {"rope_type": "linear", "factor": config.rope_factor}
    put = lambda name, content: (folder / name).write_text(json.dumps(content))
    put("config.json", values)
    put("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    put("tokenizer.json", {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
                           "post_processor": None, "decoder": None, "model": {"type": "WordLevel", "vocab": {"0": 0}, "unk_token": "0"}})


def file_stamps(folder: Path) -> list[list]:
    """What tells two checkpoints apart without reading them: names, sizes and times of the files that Checkpoint reads."""
    paths = [folder / SINGLE]
    if not paths[0].exists():
        paths = [folder / INDEX, *(folder / name for name in sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values())))]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def _call(checkpoint: Path, place: Path, precision: str) -> None:
    command = module("ps3_sdk.export.llm_graph", checkpoint, place / MODEL, "-i", place / "source", "-o", place / "out",
                     "-p", precision, "-e", PROVIDERS[precision], "-c", place / "cache", "--extra_options", *OPTIONS)
    said: deque[str] = deque(maxlen=40)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                               env={**os.environ, "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"})
    try:
        for line in process.stdout:
            if line.strip():
                said.append(line.strip())
        code = process.wait()
    finally:
        if process.poll() is None:      # interrupted: the builder must not go on alone
            process.kill()
            process.wait()
        process.stdout.close()
    if code:
        raise ExportError(f"[llm] onnxruntime-genai's builder {_why(code, said)}. {_advice(code, said)}")


def _why(code: int, said: deque[str]) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"failed: {(said[-1] if said else f'exit code {code}')[:300]}"


def _advice(code: int, said: deque[str]) -> str:
    if any("No space left on device" in line for line in said):
        return "Free some space or choose another work_dir."
    if code == -9:
        return "The system has probably run out of memory. Close other programs and export again."
    return "Check that the checkpoint's llm folder is complete."
