"""From a VILA-HD checkpoint to an engine.plan that answers in words: vision tower, projector, prompt head and language model."""
from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from ps3_sdk.decode import Decoder, TokenEmbedding
from ps3_sdk.errors import ExportError
from ps3_sdk.manifest import TABLES
from ps3_sdk.runtimes import ort

from . import to_onnx
from .check import LIMIT, LIMIT_INT8, relative_error
from .llm import LLM_PRECISIONS, build_llm, measure_llm, token_embedding
from .make_bundle import Draft, geometry, network_entry, origin, tools, vision_tables, write_network
from .reference.vila.model import VilaHd
from .reference.vila.tokenizer import read_tokenizer
from .weights import Checkpoint, locate
from .write_bundle import BundleWriter, SafetensorsLayout

Progress = Callable[[str], None]


def is_vila(folder: Path) -> bool:
    """Whether a checkpoint folder is a VILA-HD model rather than a PS3 encoder."""
    try:
        return json.loads((folder / "config.json").read_text("utf-8")).get("model_type") == "llava_topdown_llama"
    except (OSError, ValueError, AttributeError):
        return False


def make_vlm(checkpoint: str, output: str | Path, *, revision: str | None = None, precision: str = "fp32", llm_precision: str = "fp32",
             work_dir: str | Path | None = None, progress: Progress = lambda line: None) -> None:
    """Export a VILA-HD checkpoint folder or hub id.

    Args:
        precision: of the vision encoder, fp32 or int8 | llm_precision: of the language model, fp32, fp16 or int4.
        work_dir: where the language model's graph is built; what is finished there is used again after an interruption.
    Raises:
        ExportError: the checkpoint does not fit its files, the disk is full, or an fp32 stage misses its parity bound. Nothing is left
        at `output` then but what was there before. RuntimeMissingError: the packages of ps3_sdk[vlm] are missing.
    """
    if llm_precision not in LLM_PRECISIONS:
        raise ExportError(f"[export] llm_precision is {llm_precision!r}; {', '.join(LLM_PRECISIONS)} are known.")
    folder, name, commit = locate(checkpoint, revision)
    model = VilaHd.from_checkpoint(folder)
    config = model.config
    progress(f"read {name}: {config.projector}, {config.llm.model_type} of width {config.llm.width}")
    tower, projector = Checkpoint.open(config.folders["vision_tower"]), Checkpoint.open(config.folders["mm_projector"])
    graphs = [to_onnx.encode(tower, config.vision, precision, config.token_layer), to_onnx.score_features(tower, config.vision), to_onnx.project(projector, config)]
    if config.prompt_head is not None:
        graphs.append(to_onnx.prompt_head(projector, config))
    with tempfile.TemporaryDirectory() as temporary, BundleWriter(output) as writer:
        llm = build_llm(config.folders["llm"], work_dir or temporary, llm_precision, progress)
        llm.name = "decode"
        for graph in graphs:
            write_network(writer, graph)
            progress(f"wrote {graph.name}: {sum(weight.num_bytes for weight in graph.weights.values()) / 1e6:.1f} MB, {graph.precision}")
        writer.add_tensors("decode.safetensors", llm.layout, llm.load)
        writer.add_bytes("decode.onnx", llm.to_onnx("decode.safetensors", llm.layout.offsets))
        progress(f"wrote decode: {sum(weight.num_bytes for weight in llm.weights.values()) / 1e6:.1f} MB, {llm.precision}")
        _write_tables(writer, tower, projector, config)
        writer.add_bytes("tokenizer.json", read_tokenizer(config.folders["llm"])[0].to_str().encode())
        manifest = _manifest(model, llm, graphs, tower, name, commit)
        draft = Draft(writer, manifest)
        networks = {graph.name: ort.load(draft, graph.name) for graph in (*graphs, llm)}
        manifest["parity"] = _measure(model, networks, manifest, draft.tensors(TABLES), precision, llm, progress)
        writer.finish(manifest)


def _write_tables(writer: BundleWriter, tower, projector, config) -> None:
    embedding = token_embedding(config.folders["llm"])
    tables = {name: ("F32", shape, load) for name, (shape, load) in vision_tables(tower, config.vision).items()}
    tables["token_embedding"] = (embedding.dtype, embedding.shape, embedding.load)
    if config.position_embedding:
        table = projector.array("high_res_pos_embed")[0]
        scales = np.stack([projector.array(f"high_res_scale_embed.{i}").reshape(-1) for i in range(len(config.vision.scales_px))])
        tables |= {"row_position": ("F32", table.shape, lambda: table), "row_scale": ("F32", scales.shape, lambda: scales)}
    writer.add_tensors(TABLES, SafetensorsLayout({name: (dtype, shape) for name, (dtype, shape, _) in tables.items()}), lambda name: tables[name][2]())


def _manifest(model: VilaHd, llm, graphs, tower, name: str, commit: str | None) -> dict:
    config, chat, spec = model.config, model.chat, llm.spec
    num_blocks = sum(port.name.startswith("key_") for port in graphs[0].outputs)
    mode = config.looks.mode
    return {
        "format": "ps3-bundle", "format_version": 1, "kind": "vlm",
        "model": {"name": Path(name).name if commit is None else name, "family": "c-radio" if config.vision.radio else "siglip", "source": origin(tower) if commit is None else name,
                  "revision": commit or "", "licence": "NVIDIA VILA-HD weights: non-commercial use, see the model card" if name.startswith("nvidia/") else "unknown: see where the weights come from",
                  "weights": "trained", "note": "" if mode == "after_prompt" else "looks by saliency: its prompts do not say where"},
        "geometry": geometry(config.vision, num_blocks, config.mean, config.std),
        "text": None, "contrast": None,
        "language": {
            **{key: getattr(spec, key) for key in ("width", "num_layers", "kv_heads", "head_width", "vocabulary", "dtype")},
            "context_length": max(config.max_rows_of(config.looks), 1), "tokenizer": "tokenizer.json",
            "before": chat.template.before, "after": chat.template.after, "trim": chat.template.trim, "image_id": chat.image_id,
            "newline_ids": list(chat.newline_ids), "prompt_end_ids": list(chat.prompt_end_ids), "stop_ids": sorted(chat.stop_ids), "downsample": config.downsample,
            "num_looks": config.looks.num_looks, "num_tokens": config.looks.num_tokens},
        "networks": {graph.name: network_entry(graph) for graph in (*graphs, llm)},
        "parity": {}, "tools": tools("torch", "onnx", "onnxruntime", "onnxruntime-genai"), "members": {},
    }


def _measure(model: VilaHd, networks, manifest, tables, precision: str, llm, progress: Progress) -> dict[str, dict]:
    """Every network on seeded inputs beside the reference's modules."""
    from .reference.stages import Encode, ScoreFeatures
    config, spec = model.config, manifest["language"]
    against = f"PyTorch {torch.__version__.split('+')[0]} float32"
    encode, grid = Encode(model.vision, config.token_layer), config.vision.grids[0] ** 2
    errors: dict[str, tuple[float, str]] = {}

    def compare(stage: str, network: str, inputs: dict[str, np.ndarray], wanted: dict[str, torch.Tensor], what: str) -> None:
        got = networks[network].run(inputs, list(wanted))
        error = max(relative_error(got[key], value.numpy()) for key, value in wanted.items())
        errors[stage] = (max(error, errors.get(stage, (0.0, ""))[0]), what)
        progress(f"check {network}")

    with torch.inference_mode():
        for stage, sizes in (("encode_low", dict(batch=1, tokens=grid, past=0, kept=grid)), ("encode_high", dict(batch=1, tokens=256, past=grid, kept=0))):
            inputs = encode.example(sizes)
            wanted = dict(zip((port.name for port in encode.outputs), encode(*inputs)))
            compare(stage, "encode", {port.name: value.numpy() for port, value in zip(encode.inputs, inputs)}, wanted, f"{sizes['tokens']} random patches")
        features = ScoreFeatures(model.vision)
        inputs = features.example(dict(batch=1))
        compare("encode_low", "score_features", {port.name: value.numpy() for port, value in zip(features.inputs, inputs)},
                dict(zip((port.name for port in features.outputs), features(*inputs))), f"{grid} random patches")
        blocks = torch.randn(1, 64, config.downsample ** 2 * config.vision.width, generator=torch.Generator().manual_seed(0))
        compare("project", "project", {"blocks": blocks.numpy()}, {"rows": model.projector.layers(blocks)}, "64 random blocks")
        if "prompt_head" in networks:
            hidden = torch.randn(2, config.llm.width, generator=torch.Generator().manual_seed(1))
            compare("prompt_head", "prompt_head", {"hidden": hidden.numpy()}, {"prompt": model.projector.prompt(hidden)}, "2 random states")
    found = measure_llm(Decoder(networks["decode"], llm.spec), model.llm, TokenEmbedding(tables["token_embedding"]))
    errors["decode"] = (found["logits"], f"logits of {found['inputs']}; the same word {100 * found['argmax_agreement']:.0f} % of the time")
    progress("check decode")
    limits = {stage: LIMIT_INT8 if precision == "int8" and stage.startswith("encode_") else LIMIT for stage in errors}
    limits["decode"] = LIMIT if llm.precision == "fp32" else float("inf")      # fp16, int4: said, not judged
    bad = [f"{stage} is off by {error:.1e} (allowed {limits[stage]:.0e})" for stage, (error, _) in errors.items() if not error <= limits[stage]]
    if bad or not np.isfinite(errors["decode"][0]):
        raise ExportError(f"[check] {', '.join(bad) or 'decode gives no numbers in this precision'}, beside {against}. Nothing was written; try fp32.")
    return {stage: {"max_relative_error": error, "against": against, "inputs": what} for stage, (error, what) in errors.items()}
