"""From a checkpoint to an engine.plan: read, write networks and tables, run every stage beside the reference, seal."""
from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from ps3_sdk.datasheet import int8_caution
from ps3_sdk.errors import ExportError
from ps3_sdk.manifest import TABLES
from ps3_sdk.measure import version_of
from ps3_sdk.runtimes import ort
from ps3_sdk.tensors import views

from . import to_onnx
from .apart import LARGE_BYTES, Apart
from .check import measure, read_picture
from .graph import PRECISIONS, Graph
from .reference.config import Ps3Config
from .reference.model import Ps3Model
from .reference.side_files import PreprocessorConfig, TokenizerConfig
from .reference.vision import residual_keys
from .streaming import Streamed
from .tokenizer_files import read_prompt_tokenizer
from .weights import Checkpoint, locate
from .write_bundle import BundleWriter, SafetensorsLayout

Progress = Callable[[str], None]
NVIDIA_LICENCE = "NVIDIA PS3 weights: non-commercial use, see the model card"


@dataclass(frozen=True)
class Prepared:
    """What a bundle is made of besides the weights. tokenizer: bytes of a tokenizer.json, None without a text tower."""
    config: Ps3Config
    name: str
    licence: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    clean: str = "canonicalize"
    tokenizer: bytes | None = None
    weights: str = "trained"
    note: str = ""


def make_bundle(checkpoint: str, output: str | Path, *, revision: str | None = None, tokenizer: str | Path | None = None,
                precision: str = "fp32", check_frame: str | Path | None = None, progress: Progress = lambda line: None) -> None:
    """Export a checkpoint folder or hub id to `output`.

    Args:
        tokenizer: tokenizer.json for checkpoints that only name their tokenizer and cannot fetch it.
        precision: "fp32", or "int8" for the blocks of the encoder: a quarter of the size, faster on CPUs, less exact (ps3 info
            says how much on these weights; the rest of the model stays fp32).
        check_frame: a picture file to measure the error of each stage on; default: a drawn picture, the same on every machine.
    Raises:
        ExportError: the checkpoint does not fit its config.json, the disk is full, or a stage misses its parity bound. InputError: check_frame is no picture.
        Nothing is left at `output` then but what was there before.
    """
    folder, name, commit = locate(checkpoint, revision)
    config = Ps3Config.read(folder)     # first: it says better what is wrong with a folder of another model
    source = Checkpoint(folder, name, commit)
    progress(f"read {source.source}: {config.family}, {len(source.keys())} tensors")
    preprocessor = PreprocessorConfig.read(folder, config.vision.scales_px[-1])
    text = {}
    if config.text is not None:
        text = dict(tokenizer=read_prompt_tokenizer(folder, config.text.context_length, tokenizer, config.text.vocab_size), clean=TokenizerConfig.read(folder).clean)
    licence = _licence(source)
    write(source, Prepared(config, called(name, commit), licence, preprocessor.mean, preprocessor.std, **text), output, progress, precision, check_frame)


def write(source, prepared: Prepared, output: str | Path, progress: Progress = lambda line: None, precision: str = "fp32",
          check_frame: str | Path | None = None) -> None:
    """The same from anything with Checkpoint's methods and a Prepared that says the rest."""
    if precision not in PRECISIONS:
        raise ExportError(f"[export] precision is {precision!r}; {' or '.join(PRECISIONS)} is needed.")
    picture, config = None if check_frame is None else read_picture(check_frame), prepared.config
    with torch.device("meta"):
        model = Ps3Model(config)
    streamed = Streamed(model, source)      # also reports every key that does not fit, before anything is written
    graphs = networks(source, config, precision)
    with BundleWriter(output) as writer:
        for graph in graphs:
            write_network(writer, graph)
            progress(f"wrote {graph.name}: {sum(weight.num_bytes for weight in graph.weights.values()) / 1e6:.1f} MB, {graph.precision}")
        tables = vision_tables(source, config.vision)
        layout = SafetensorsLayout({name: ("F32", shape) for name, (shape, _) in tables.items()})
        writer.add_tensors(TABLES, layout, lambda name: tables[name][1]())
        if prepared.tokenizer is not None:
            writer.add_bytes("tokenizer.json", prepared.tokenizer)
        manifest = _manifest(source, prepared, graphs)
        draft = Draft(writer, manifest)
        manifest["parity"] = measure(streamed, networks_of(draft), manifest["geometry"], draft.tensors(TABLES), draft.path.parent, precision, progress, picture)
        writer.finish(manifest)
    if caution := int8_caution(manifest):
        progress(f"note: {caution}")


def networks(source, config: Ps3Config, precision: str = "fp32") -> list[Graph]:
    """An encoder's networks; no weight is read yet."""
    graphs = [to_onnx.encode(source, config.vision, precision), to_onnx.score_features(source, config.vision), to_onnx.pool(source, config.vision)]
    return graphs if config.text is None else [*graphs, to_onnx.encode_prompt(source, config.text)]


@dataclass(frozen=True)
class Draft:
    """An unfinished bundle as a runtime sees it."""
    writer: BundleWriter
    manifest: dict

    @property
    def path(self) -> Path:
        return Path(self.writer.beside)

    @property
    def members(self) -> dict[str, int]:
        return {name: entry["bytes"] for name, entry in self.writer.members.items()}

    def member(self, name: str) -> bytes:
        return self.writer.read(name)

    def offset(self, name: str) -> int:
        return self.writer.offset(name)

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        size = self.members[name]
        return views(memoryview(np.memmap(self.path, np.uint8, "r", self.offset(name), size)), f"[export] {name}")


def networks_of(draft: Draft) -> dict:
    """The networks of an unfinished bundle, ready to run; large ones in a process of their own."""
    size = lambda entry: draft.members[entry["weights"]] if entry["weights"] else 0
    return {name: Apart(draft, name) if size(entry) > LARGE_BYTES else ort.load(draft, name) for name, entry in draft.manifest["networks"].items()}


def write_network(writer: BundleWriter, graph: Graph) -> None:
    weights_file, weights = f"{graph.name}.safetensors", graph.weights
    layout = SafetensorsLayout({name: (weight.dtype, weight.shape) for name, weight in weights.items()})
    writer.add_tensors(weights_file, layout, lambda name: weights[name].load())
    writer.add_bytes(f"{graph.name}.onnx", graph.to_onnx(weights_file, layout.offsets))


def vision_tables(source, vision) -> dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
    """What ops need besides the networks: name in the manifest's contract -> shape and a function that reads it."""
    found = {}

    def table(name: str, key: str, cut=lambda array: array) -> None:
        key = f"vision_model.{key}"
        stand_in = np.broadcast_to(np.zeros((), np.float32), source.shape(key))
        found[name] = cut(stand_in).shape, lambda: np.ascontiguousarray(cut(source.array(key)))

    table("position", "trunk.pos_embed", lambda array: array[0])
    table("prior_prompt", "prior_prompt")
    for i, px in enumerate(vision.scales_px[1:], 1):
        for key in residual_keys(vision, i):
            name = "row" if "_rows." in key else "column" if "_columns." in key else "residual"
            table(f"position_{name}_{px}", key, lambda array: array[0])
    if vision.highres_selection_feature:    # rows past view_width serve scales whose score is never used
        for part in ("weight", "bias"):
            table(f"view_prompt_{part}", f"prompt_proj_for_highres.{part}", lambda array: array[:vision.view_width])
    return found


def _manifest(source, prepared: Prepared, graphs: list[Graph]) -> dict:
    config, text = prepared.config, prepared.config.text
    return {
        "format": "ps3-bundle", "format_version": 1, "kind": "encoder",
        "model": {"name": prepared.name, "family": config.family, "source": origin(source), "revision": source.revision or "", "licence": prepared.licence,
                  "weights": prepared.weights, "note": prepared.note},
        "geometry": geometry(config.vision, config.vision.trunk.depth, prepared.mean, prepared.std),
        "text": None if text is None else {"context_length": text.context_length, "vocabulary": text.vocab_size, "clean": prepared.clean,
                                           "pad_id": _pad_id(prepared.tokenizer, text.pad_id), "tokenizer": "tokenizer.json"},
        "contrast": _contrast(source),
        "networks": {graph.name: network_entry(graph) for graph in graphs},
        "parity": {},
        "tools": tools("torch", "onnx", "onnxruntime"),
        "members": {},
    }


def geometry(vision, num_blocks: int, mean, std) -> dict:
    """The manifest's geometry. num_blocks: blocks that the encode network has."""
    view = vision.highres_selection_feature
    return {
        "patch_px": vision.trunk.patch_px, "scales_px": list(vision.scales_px), "width": vision.width, "depth": num_blocks,
        "heads": vision.trunk.num_heads, "feature_width": vision.feature_width, "pooled_width": vision.pool_width,
        "mean": list(mean), "std": list(std), "per_look": list(vision.per_look),
        "view_px": vision.view_px if view else None, "view_patch_px": vision.view_patch_px if view else None, "view_width": vision.view_width if view else None,
        "position": "crop" if vision.radio else "resample", "position_grid": vision.trunk.position_grid}


def network_entry(graph) -> dict:
    """A graph in the manifest's words; its members are <name>.onnx and <name>.safetensors."""
    ports = lambda each: [{"name": port.name, "dtype": port.dtype, "shape": list(port.shape)} for port in each]
    return {"runtime": "onnxruntime", "file": f"{graph.name}.onnx", "weights": f"{graph.name}.safetensors", "precision": graph.precision,
            "inputs": ports(graph.inputs), "outputs": ports(graph.outputs)}


def called(name: str, commit: str | None) -> str:
    """What the manifest calls a model: its hub id, or the last name of its folder."""
    return Path(name).resolve().name if commit is None else name


def origin(source) -> str:
    """Where weights come from, without the paths of the exporting machine."""
    return source.source if source.revision or source.folder is None else f"folder {Path(source.source).resolve().name}"


def tools(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version_of(name) for name in ("ps3_sdk", *packages)}}


def _pad_id(tokenizer: bytes, default: int) -> int:
    """The id that pads a text: the tokenizer's own when its file says so. PS3's tower has no mask, so it matters."""
    padding = json.loads(tokenizer).get("padding")
    return padding["pad_id"] if padding else default


def _contrast(source) -> dict | None:
    keys = source.keys()
    if "logit_scale" not in keys:
        return None
    return {"scale": float(np.exp(source.array("logit_scale").reshape(-1)[0])),
            "bias": float(source.array("logit_bias").reshape(-1)[0]) if "logit_bias" in keys else 0.0}


def _licence(source: Checkpoint) -> str:
    """The licence line of the model card, as the hub's README.md states it."""
    card = source.folder / "README.md"
    if card.is_file():
        for line in card.read_text("utf-8", "replace").splitlines()[:60]:
            if line.startswith(("license_name:", "license:")) and line.split(":", 1)[1].strip() not in ("", "other"):
                return line.split(":", 1)[1].strip()
    return NVIDIA_LICENCE if source.source.startswith("nvidia/") else "unknown: no model card beside the weights"
