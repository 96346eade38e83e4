"""The bundle of engines: networks typed, measured in ONNX Runtime, built, and sealed with what was measured."""
from __future__ import annotations

import gc
import importlib.metadata
import platform
from pathlib import Path
from typing import Callable

import numpy as np

from ps3_sdk.bundle import Bundle
from ps3_sdk.errors import ExportError, InputError
from ps3_sdk.measure import version_of
from ps3_sdk.session import Session
from ps3_sdk.stages import TEXTS_A_RUN
from ps3_sdk.verify import REFERENCE, Report, compare, observe, sample

from .apart import let_go
from .build_apart import build_apart
from .check_picture import read_picture, sample_picture
from .engine_options import CALIBRATED, LOOKS_POOLED, EngineOptions, calibration_frames, named
from .fused_attention import fused
from .graph import Graph
from .precision import summed_exactly, typed
from .quantise import Quantisation, layers, quantised
from .to_engine import Plan, Profile
from .vision_session import open_vision
from .write_bundle import BundleWriter, SafetensorsLayout

PROMPT = "the text on the sign"
ALIGNMENT = 64
SAFETENSORS = {np.dtype(np.float32): "F32", np.dtype(np.int32): "I32", np.dtype(np.uint8): "U8"}
Progress = Callable[[str], None]


def write_engine_bundle(bundle: Bundle, graphs: dict[str, Graph], output: Path, folder: Path, options: EngineOptions, module, progress: Progress) -> list[str]:
    """See build_engine.build_engine, which has checked the options. folder: for unfinished work, removed by the caller."""
    picture, on_a_frame = _picture(options)
    reference = _reference(bundle, picture, options, progress)
    _let_go()
    if options.runtime == "onnx" and options.precision == "fp32":       # the networks that are there, as they are
        graphs = {}
    quantisation = _quantisation(bundle, options, progress)
    report, quantisation = _measure(bundle, graphs, folder, options, reference, picture, quantisation, progress)
    progress(f"error of the {options.precision} networks:\n{report.table()}")
    kinds = options.precision if quantisation is None else f"{options.precision} in {quantisation.num_quantised(graphs['encode'])} of {len(layers(graphs['encode']))} linear layers of the blocks"
    manifest = _manifest(bundle.manifest, options, report, on_a_frame, picture, module, kinds)
    with BundleWriter(output) as writer:
        _copy(writer, bundle, [name for name in bundle.members if not _belongs_to(name, bundle.manifest, graphs)])
        layout = SafetensorsLayout({name: (SAFETENSORS[array.dtype], array.shape) for name, array in reference.items()})
        writer.add_tensors(REFERENCE, layout, lambda name: reference[name])
        if options.runtime == "onnx" and graphs:
            with Bundle.open(folder / "twin.plan", verify=False) as twin:
                _copy(writer, twin, [twin.manifest["networks"][name][key] for name in graphs for key in ("weights", "file")])
                manifest["networks"] |= {name: twin.manifest["networks"][name] for name in graphs}
        (folder / "twin.plan").unlink(missing_ok=True)
        if options.runtime != "onnx":
            for name, graph in graphs.items():
                manifest["networks"][name] = _engine(writer, name, _graph(graph, options, quantisation), bundle, folder, options, module, progress)
        writer.finish(manifest)
    size = output.stat().st_size
    lines = [f"{output}: {size / 1e6:.1f} MB, {options.runtime} {kinds}" + (f" for {', '.join(map(named, options.sms))}" if options.sms else "")]
    if options.runtime != "onnx":
        lines.append(f"measured in ONNX Runtime; on the GPU it is for: ps3 verify {output}")
    return lines


# -- the frame and the error on it ----------------------------------------------------------------------------------

def _picture(options: EngineOptions) -> tuple[np.ndarray, bool]:
    if options.check_frame is not None:
        return read_picture(options.check_frame), True
    if options.calibrate is not None:
        return read_picture(calibration_frames(options.calibrate)[1]), True
    return sample_picture(), False


def _reference(bundle: Bundle, picture: np.ndarray, options: EngineOptions, progress: Progress) -> dict[str, np.ndarray]:
    """What the float32 networks give on the frame, sampled. Raises ExportError where that is no numbers."""
    damaged = "[build] the float32 networks that are built from give no numbers"
    fix = "Their weights are damaged, here or in the checkpoint. Download it again, and export it."
    with Session(bundle.path, verify=False) as session:
        progress("run the float32 networks on the frame")
        try:
            observed = observe(session, picture, PROMPT, most=options.max_tokens)
        except InputError as error:         # of the ops, which take finite numbers
            raise ExportError(f"{damaged}: {str(error).split('] ', 1)[-1].split(';')[0]}. {fix}") from error
    stages = sorted({name.split(".")[0] for name, array in observed.items() if not np.isfinite(array).all()})
    if stages:
        raise ExportError(f"{damaged} in {', '.join(stages)}. {fix}")
    return sample(observed, picture)


def _quantisation(bundle: Bundle, options: EngineOptions, progress: Progress) -> Quantisation | None:
    if options.precision in CALIBRATED:
        from .calibrate import measure_ranges
        return Quantisation(options.precision, measure_ranges(bundle, calibration_frames(options.calibrate)[0], progress))
    return Quantisation("int4", {}) if options.precision == "int4" else None


def _graph(graph: Graph, options: EngineOptions, quantisation: Quantisation | None, twin: bool = False) -> Graph:
    """The network in the engine's types; twin: in the types that ONNX Runtime can compute with."""
    if quantisation is None and options.runtime == "onnx" and options.precision == "fp16" and graph.name == "encode":
        return fused(typed(graph, "fp16"), next(port.shape[1] for port in graph.inputs if port.name.startswith("past_key")))
    made = typed(graph, options.precision if quantisation is None else "fp16", twin)
    if quantisation is not None and graph.name == "encode":
        made = quantised(made, quantisation, twin)
    return made if twin or options.runtime == "onnx" else summed_exactly(made)


def _measure(bundle: Bundle, graphs: dict[str, Graph], folder: Path, options: EngineOptions, reference, picture: np.ndarray,
             quantisation: Quantisation | None, progress: Progress) -> tuple[Report, Quantisation | None]:
    """The report of the typed networks in ONNX Runtime, and of none the source's. Quantised layers go back to float16, the worst first, while a stage is off."""
    picks = {px: reference[f"picked_{px}"] for px in bundle.manifest["geometry"]["scales_px"][1:]}
    seen = {name: array for name, array in reference.items() if not (bundle.manifest.get("language") and name.startswith("decode."))}      # that one is not built
    path = folder / "twin.plan" if graphs else bundle.path
    while True:
        if graphs:
            _write_twin(bundle, graphs, path, options, quantisation)
        with open_vision(path, bundle.manifest) as session:
            progress(f"run the {options.precision} networks on the frame")
            report = compare(seen, observe(session, picture, PROMPT, picks, options.max_tokens))
        _let_go()
        wrong = report.wrong(options.precision)
        if bundle.manifest["model"]["weights"] == "random":     # probabilities of random weights are nearly equal, so picks say nothing
            wrong = [each for each in wrong if not each.startswith("select")]
        if not wrong:
            if quantisation is not None and not quantisation.num_quantised(graphs["encode"]):
                raise ExportError(f"[build] {options.precision} would change no layer of this model: int4 needs rows that are a multiple of 64. Build with --precision fp16.")
            return report, quantisation
        coarser = quantisation.without_worst(graphs["encode"]) if quantisation is not None else None
        if coarser is None:
            finer = {"fp16": "bf16 or fp32", "bf16": "fp16 or fp32"}.get(options.precision, "fp16")
            fix = "The ONNX of this bundle is not what it was: export it again." if options.precision == "fp32" else f"Build with --precision {finer}."
            raise ExportError(f"[build] in {options.precision} {'; '.join(wrong)}. Nothing was written. {fix}")
        quantisation = coarser
        progress(f"{wrong[0]}: {len(quantisation.left_out)} layers stay in float16")


def _write_twin(bundle: Bundle, graphs: dict[str, Graph], path: Path, options: EngineOptions, quantisation: Quantisation | None) -> None:
    manifest = {**bundle.manifest, "networks": dict(bundle.manifest["networks"])}
    manifest.pop("verify", None)
    unread = None
    if language := manifest["networks"].get("decode"):      # is not run there, so its weights stay where they are
        unread, manifest["networks"]["decode"] = language["weights"], {**language, "weights": None}
    with BundleWriter(path) as writer:
        _copy(writer, bundle, [name for name in bundle.members if name != unread and not _belongs_to(name, bundle.manifest, graphs)])
        for name, graph in graphs.items():
            made = _graph(graph, options, quantisation, twin=options.runtime != "onnx")      # for onnx it is the network itself
            layout = SafetensorsLayout({key: (weight.dtype, weight.shape) for key, weight in made.weights.items()})
            writer.add_tensors(f"{name}.safetensors", layout, lambda key, weights=made.weights: np.ascontiguousarray(weights[key].load()))
            writer.add_bytes(f"{name}.onnx", made.to_onnx(f"{name}.safetensors", layout.offsets))
            bundle.release(bundle.manifest["networks"][name]["weights"])
            manifest["networks"][name] = {"runtime": "onnxruntime", "file": f"{name}.onnx", "weights": f"{name}.safetensors", "precision": options.precision if options.runtime == "onnx" else "fp32", **_ports(made)}
        writer.finish(manifest)


def _ports(graph: Graph) -> dict:
    ports = lambda each: [{"name": port.name, "dtype": port.dtype, "shape": list(port.shape)} for port in each]
    return {"inputs": ports(graph.inputs), "outputs": ports(graph.outputs)}


def _belongs_to(member: str, manifest: dict, graphs) -> bool:
    """Whether a member is replaced: part of a network that is built, reference values, the manifest."""
    return member in ("manifest.json", REFERENCE) or any(member in (manifest["networks"][name]["file"], manifest["networks"][name]["weights"]) for name in graphs)


def _copy(writer: BundleWriter, bundle: Bundle, names: list[str]) -> None:
    for name in names:
        writer.add_stream(name, bundle.members[name], [bundle.member(name)])
        bundle.release(name)


def _let_go() -> None:
    """Memory of a session that is closed goes back to the system, before the next one or a builder takes as much."""
    gc.collect()
    let_go({})


# -- one engine -----------------------------------------------------------------------------------------------------

def _engine(writer: BundleWriter, name: str, graph: Graph, bundle: Bundle, folder: Path, options: EngineOptions, module, progress: Progress) -> dict:
    """Build one network into the bundle; returns its manifest entry."""
    path, profiles = _write_onnx(graph, folder), profiles_of(name, bundle.manifest, options)
    bundle.release(bundle.manifest["networks"][name]["weights"])
    plan = Plan(name, {port.name: port.shape for port in graph.inputs}, profiles, options.sms if options.runtime == "tensorrt-rtx" else (), options.workspace_bytes,
                options.timing_cache, options.precision, options.sizes_given)
    _let_go()
    engine = build_apart(options.runtime, path, plan, folder, progress)
    path.unlink()
    path.with_suffix(".weights").unlink()
    size = engine.stat().st_size
    writer.add_stream(f"{name}.engine", size, [np.memmap(engine, np.uint8, "r")])
    engine.unlink()
    progress(f"built {name}: {size / 1e6:.1f} MB")
    on_device = [port.name for port in graph.outputs if f"past_{port.name}" in plan.inputs]
    return {"runtime": options.runtime, "file": f"{name}.engine", "weights": None, "precision": options.precision, **_ports(graph),
            "engine": {"builder": module.__version__, "platform": options.platform, "sms": list(options.sms), "workspace_bytes": options.workspace_bytes, "on_device": on_device,
                       "profiles": [{size: list(each) for size, each in profile.items()} for profile in profiles]}}


def profiles_of(name: str, manifest: dict, options: EngineOptions) -> tuple[Profile, ...]:
    """The sizes an engine is made for. encode has two profiles, one a pass: encode_low's all fixed, encode_high's with any number of tokens."""
    g = manifest["geometry"]
    low, look = (g["scales_px"][0] // g["patch_px"]) ** 2, sum(g["per_look"])
    r = manifest["language"]["downsample"] if manifest.get("language") else 1
    most, batch = options.max_tokens or look + r * r - 1, (1, 1, options.max_batch)      # whole blocks carry patches from one look to the next
    tokens = (1, min(look, most), most)
    if name == "encode":
        return ({"batch": batch, "tokens": (low,) * 3, "past": (0,) * 3, "keep": (low,) * 3},
                {"batch": batch, "tokens": tokens, "past": (low,) * 3, "keep": (0,) * 3})
    if name == "encode_prompt":
        return ({"batch": (1, 1, TEXTS_A_RUN)},)
    if name == "pool":
        return ({"batch": batch, "tokens": (1, tokens[1], max(LOOKS_POOLED * most, low))},)
    if name == "project":       # more are projected piece by piece
        whole = (-(-g["scales_px"][0] // g["patch_px"] // r)) ** 2
        return ({"batch": batch, "blocks": (1, max(1, tokens[1] // r ** 2), max(most // r ** 2, whole))},)
    return ({"batch": batch},)


def _write_onnx(graph: Graph, folder: Path) -> Path:
    """The network as a file with its weights beside it, one tensor in memory at a time; each starts at a multiple of ALIGNMENT. Raises ExportError: the disk is full."""
    try:
        return _written_onnx(graph, folder)
    except OSError as error:
        raise ExportError(f"[build] {folder} cannot be written to ({error.strerror or error}); {graph.name} lies there while it is built. Free some space or choose another disk.") from error


def _written_onnx(graph: Graph, folder: Path) -> Path:
    offsets, cursor, path = {}, 0, folder / f"{graph.name}.onnx"
    with open(path.with_suffix(".weights"), "wb") as file:
        for weight in graph.weights.values():
            file.write(b"\0" * (-cursor % ALIGNMENT))
            cursor += -cursor % ALIGNMENT
            offsets[weight.name] = cursor
            data = np.ascontiguousarray(weight.load())
            if data.nbytes != weight.num_bytes:
                raise ExportError(f"[build] {weight.name} came as {data.nbytes} bytes; {weight.num_bytes} were announced. Report it.")
            file.write(memoryview(data).cast("B"))
            cursor += data.nbytes
    path.write_bytes(graph.to_onnx(f"{graph.name}.weights", offsets))
    return path


# -- the manifest ---------------------------------------------------------------------------------------------------

def _manifest(source: dict, options: EngineOptions, report: Report, on_a_frame: bool, picture: np.ndarray, module, kinds: str) -> dict:
    on = "the frame given" if on_a_frame else "the picture"
    ort, torch = version_of("onnxruntime"), next((entry["against"] for entry in source["parity"].values()), "")
    against = f"{torch}, by way of its float32 ONNX" if torch else "float32 ONNX"
    device = "" if options.runtime == "onnx" else "; not yet run on the device"
    measured_on = f"{kinds}: the ONNX that was built, in ONNX Runtime {ort} on {platform.machine()}{device}"
    kept = {"gather"} | {"decode"} & set(source["networks"])        # what is not built stays as it was measured
    parity = {stage: entry for stage, entry in source["parity"].items() if stage in kept}
    for stage, error in ((stage, error) for stage, error in report.errors.items() if stage not in kept):      # of the typed against the float32 network, plus that one's against PyTorch
        before = source["parity"].get(stage, {"max_relative_error": 0.0})["max_relative_error"]
        parity[stage] = {"max_relative_error": error + before, "against": against, "inputs": f"{on}, {picture.shape[1]}x{picture.shape[0]}; {measured_on}"}
    tools = {**source["tools"], "ps3_sdk": importlib.metadata.version("ps3_sdk"), "onnx": importlib.metadata.version("onnx")}
    if module is not None:
        tools[options.runtime] = module.__version__
    cosine = None if report.cosine is None else min(1.0, report.cosine)
    return {**source, "networks": dict(source["networks"]), "parity": parity, "tools": tools,
            "verify": {"file": REFERENCE, "prompt": PROMPT, "against": against, "on_a_frame": on_a_frame, "measured_on": measured_on, "picked_overlap": report.overlap,
                       "embedding_cosine": cosine}}

