"""From a VILA-HD checkpoint to an engine.plan that answers in words: vision tower, projector, prompt head and language model."""
from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from ps3_sdk.decode import Decoder, TokenEmbedding
from ps3_sdk.errors import ExportError
from ps3_sdk.manifest import TABLES

from . import to_onnx
from .apart import Apart, on_disk
from .check import LIMIT, LIMIT_INT8, READS, relative_error
from .kept import Kept
from .llm import LLM_PRECISIONS, build_llm, token_embedding
from .llm_builder import file_stamps
from .llm_check import DecoderApart, measure_llm
from .make_bundle import Draft, called, geometry, network_entry, networks_of, tools, vision_tables
from .reference.vila.model import VilaHd
from .reference.vila.tokenizer import read_tokenizer
from .streaming import Streamed
from .weights import load_into, locate
from .write_bundle import BundleWriter, SafetensorsLayout

Progress = Callable[[str], None]
LARGE_BYTES = 256 << 20     # networks that take long to write


def is_vila(folder: Path) -> bool:
    """Whether a checkpoint folder is a VILA-HD model rather than a PS3 encoder."""
    try:
        return json.loads((folder / "config.json").read_text("utf-8")).get("model_type") == "llava_topdown_llama"
    except (OSError, ValueError, AttributeError):
        return False


def make_vlm(checkpoint: str, output: str | Path, *, revision: str | None = None, precision: str = "fp32", llm_precision: str = "fp32",
             work_dir: str | Path | None = None, identity: dict | None = None, answer_tokens: int | None = None,
             progress: Progress = lambda line: None) -> None:
    """Export a VILA-HD checkpoint folder or hub id.

    Args:
        precision: of the vision encoder, fp32 or int8 | llm_precision: of the language model, fp32, fp16 or int4.
        work_dir: where finished networks lie until the bundle is written, so that an interrupted export goes on from there; it takes the
            bundle's size once more while the export lasts. Default: nothing is kept.
        identity: of the manifest's `model`, what the checkpoint itself does not say: name, source, revision, licence, note.
        answer_tokens: tokens of an answer at most where the caller of ask() says nothing; default: what the context holds.
    Raises:
        ExportError: the checkpoint does not fit its files, the disk is full, or an fp32 stage misses its parity bound. Nothing is left
        at `output` then but what was there before. RuntimeMissingError: the packages of ps3_sdk[vlm] are missing.
    """
    if llm_precision not in LLM_PRECISIONS:
        raise ExportError(f"[export] llm_precision is {llm_precision!r}; {', '.join(LLM_PRECISIONS)} are known.")
    folder, name, commit = locate(checkpoint, revision)
    model, parts = VilaHd.outline(folder)
    config, (tower, projector) = model.config, (parts[name][1] for name in ("vision_tower", "mm_projector"))
    streamed = {name: Streamed(*parts[name]) for name in ("vision_tower", "llm")}      # reports keys that do not fit
    load_into(*parts["mm_projector"])
    progress(f"read {name}: {config.projector}, {config.llm.model_type} of width {config.llm.width}")
    graphs = networks(tower, projector, config, precision)
    kept = Kept(work_dir, {"files": {part: file_stamps(path) for part, path in config.folders.items()}, "config": repr(replace(config, folders={})),
                           "precision": [precision, llm_precision], "tools": tools("torch", "onnx", "onnxruntime", "onnxruntime-genai")})
    with tempfile.TemporaryDirectory() as temporary, BundleWriter(output) as writer:
        llm = build_llm(config.folders["llm"], work_dir or temporary, llm_precision, progress)
        llm.name = "decode"
        for graph in (*graphs, llm):
            _write_network(writer, graph, kept, progress)
        _write_tables(writer, tower, projector, config)
        writer.add_bytes("tokenizer.json", read_tokenizer(config.folders["llm"])[0].to_str().encode())
        manifest = _manifest(model, llm, graphs, name, commit)
        manifest["model"] |= identity or {}
        if answer_tokens is not None:
            manifest["language"]["answer_tokens"] = answer_tokens
        manifest["parity"] = _measure(model, streamed, Draft(writer, manifest), precision, llm, progress)
        writer.finish(manifest)
    kept.remove()


def networks(tower, projector, config, precision: str = "fp32") -> list:
    """Networks of the vision tower and the projector; no weight is read yet."""
    graphs = [to_onnx.encode(tower, config.vision, precision, config.token_layer), to_onnx.score_features(tower, config.vision), to_onnx.project(projector, config)]
    return graphs if config.prompt_head is None else [*graphs, to_onnx.prompt_head(projector, config)]


def _write_network(writer: BundleWriter, graph, kept: Kept, progress: Progress) -> None:
    """A network's two members. Says how far it is every tenth part of a large one."""
    weights, file, seen = graph.weights, f"{graph.name}.safetensors", [0, 0]
    layout = SafetensorsLayout({name: (weight.dtype, weight.shape) for name, weight in weights.items()})

    def load(name: str) -> np.ndarray:
        seen[0] += weights[name].num_bytes
        if layout.size > LARGE_BYTES and 10 * seen[0] // layout.size > seen[1]:
            seen[1] = 10 * seen[0] // layout.size
            progress(f"writing {graph.name}: {seen[0] / 1e6:.0f} of {layout.size / 1e6:.0f} MB")
        return weights[name].load()

    found = kept.add_tensors(writer, file, layout, load)
    writer.add_bytes(f"{graph.name}.onnx", graph.to_onnx(file, layout.offsets))
    progress(f"wrote {graph.name}: {layout.size / 1e6:.1f} MB, {graph.precision}" + (", made before" if found else ""))


def _write_tables(writer: BundleWriter, tower, projector, config) -> None:
    embedding = token_embedding(config.folders["llm"])
    tables = {name: ("F32", shape, load) for name, (shape, load) in vision_tables(tower, config.vision).items()}
    tables["token_embedding"] = (embedding.dtype, embedding.shape, embedding.load)
    if config.position_embedding:
        table = projector.array("high_res_pos_embed")[0]
        scales = np.stack([projector.array(f"high_res_scale_embed.{i}").reshape(-1) for i in range(len(config.vision.scales_px))])
        tables |= {"row_position": ("F32", table.shape, lambda: table), "row_scale": ("F32", scales.shape, lambda: scales)}
    if config.prob_embedding:
        told = projector.array("high_res_prob_embed").reshape(-1)
        tables["row_prob"] = ("F32", told.shape, lambda: told)
    writer.add_tensors(TABLES, SafetensorsLayout({name: (dtype, shape) for name, (dtype, shape, _) in tables.items()}), lambda name: tables[name][2]())


def _manifest(model: VilaHd, llm, graphs, name: str, commit: str | None) -> dict:
    config, chat, spec = model.config, model.chat, llm.spec
    num_blocks = sum(port.name.startswith("key_") for port in graphs[0].outputs)
    mode = config.looks.mode
    return {
        "format": "ps3-bundle", "format_version": 1, "kind": "vlm",
        "model": {"name": called(name, commit), "family": "c-radio" if config.vision.radio else "siglip", "source": name if commit is not None else f"folder {Path(name).resolve().name}",
                  "revision": commit or "", "licence": "NVIDIA VILA-HD weights: non-commercial use, see the model card" if name.startswith("nvidia/") else "unknown: see where the weights come from",
                  "weights": "trained", "note": "" if mode == "after_prompt" else "looks by saliency: its prompts do not say where"},
        "geometry": geometry(config.vision, num_blocks, config.mean, config.std),
        "text": None, "contrast": None,
        "language": {
            **{key: getattr(spec, key) for key in ("width", "num_layers", "kv_heads", "head_width", "vocabulary", "dtype")},
            "context_length": max(config.max_rows_of(config.looks), 1), "tokenizer": "tokenizer.json",
            "before": chat.template.before, "after": chat.template.after, "trim": chat.template.trim, "image_id": chat.image_id,
            "newline_ids": list(chat.newline_ids), "prompt_end_ids": list(chat.prompt_end_ids), "stop_ids": sorted(chat.stop_ids), "downsample": config.downsample,
            "num_looks": config.looks.num_looks, "num_tokens": config.looks.num_tokens,
            **({"not_seen": config.not_seen} if config.not_seen else {}), **({"lower_case": True} if config.lower_case else {}), **({"look_around": config.looks.around} if config.looks.around else {}),
            **({"confidence": config.confidence} if config.confidence else {})},
        "networks": {graph.name: network_entry(graph) for graph in (*graphs, llm)},
        "parity": {}, "tools": tools("torch", "onnx", "onnxruntime", "onnxruntime-genai"), "members": {},
    }


def _measure(model: VilaHd, streamed: dict[str, Streamed], draft: Draft, precision: str, llm, progress: Progress) -> dict[str, dict]:
    """Every network on seeded inputs beside the reference's modules."""
    from .reference.stages import Encode, ScoreFeatures
    config, networks = model.config, networks_of(draft)
    against = f"PyTorch {torch.__version__.split('+')[0]} float32"
    encode, grid = Encode(model.vision, config.token_layer), config.vision.grids[0] ** 2
    errors: dict[str, tuple[float, str]] = {}

    def compare(stage: str, network: str, inputs: dict[str, np.ndarray], wanted: dict[str, torch.Tensor], what: str) -> None:
        wanted = on_disk({key: value.numpy() for key, value in wanted.items()}, draft.path.parent)
        got = networks[network].run(inputs, list(wanted))
        error = max(relative_error(got[key], value) for key, value in wanted.items())
        errors[stage] = (max(error, errors.get(stage, (0.0, ""))[0]), what)
        progress(f"check {network}: {stage}")

    def compare_stage(name: str, module, sizes: dict[str, int], what: str) -> None:
        inputs = module.example(sizes)
        with streamed["vision_tower"].resident(*READS[module.name]):
            wanted = dict(zip((port.name for port in module.outputs), module(*inputs)))
        compare(name, module.name, {port.name: value.numpy() for port, value in zip(module.inputs, inputs)}, wanted, what)

    with torch.inference_mode():
        for stage, sizes in (("encode_low", dict(batch=1, tokens=grid, past=0, kept=grid)), ("encode_high", dict(batch=1, tokens=256, past=grid, kept=0))):
            compare_stage(stage, encode, sizes, f"{sizes['tokens']} random patches")
        compare_stage("encode_low", ScoreFeatures(model.vision), dict(batch=1), f"{grid} random patches")
        blocks = torch.randn(1, 64, config.downsample ** 2 * config.vision.width, generator=torch.Generator().manual_seed(0))
        compare("project", "project", {"blocks": blocks.numpy()}, {"rows": model.projector.layers(blocks)}, "64 random blocks")
        if "prompt_head" in networks:
            hidden = torch.randn(2, config.llm.width, generator=torch.Generator().manual_seed(1))
            compare("prompt_head", "prompt_head", {"hidden": hidden.numpy()}, {"prompt": model.projector.prompt(hidden)}, "2 random states")
    decoder = DecoderApart(draft, "decode", llm.spec) if isinstance(networks["decode"], Apart) else Decoder(networks["decode"], llm.spec)
    for i, layer in enumerate(model.llm.model.layers):      # each is read from the disk: minutes at seven billion parameters
        if i % 7 == 6:
            layer.register_forward_pre_hook(lambda *_, number=i + 1: progress(f"check decode: the reference is at layer {number} of {config.llm.depth}"))
    found = measure_llm(decoder, model.llm, TokenEmbedding(draft.tensors(TABLES)["token_embedding"]), streamed=streamed["llm"])
    errors["decode"] = (found["logits"], f"logits of {found['inputs']}; the same word {100 * found['argmax_agreement']:.0f} % of the time")
    progress("check decode")
    limits = {stage: LIMIT_INT8 if precision == "int8" and stage.startswith("encode_") else LIMIT for stage in errors}
    limits["decode"] = LIMIT if llm.precision == "fp32" else float("inf")      # fp16, int4: said, not judged
    bad = [f"{stage} is off by {error:.1e} (allowed {limits[stage]:.0e})" for stage, (error, _) in errors.items() if not error <= limits[stage]]
    if bad or not np.isfinite(errors["decode"][0]):
        raise ExportError(f"[check] {', '.join(bad) or 'decode gives no numbers in this precision'}, beside {against}. Nothing was written; try fp32.")
    return {stage: {"max_relative_error": error, "against": against, "inputs": what} for stage, (error, what) in errors.items()}
