"""A bundle held to its own reference values on the machine at hand: what `ps3 verify` does, and how a builder makes its certificate.

A bundle may carry the frame it was measured on and, of every stage, a sample of what float32 gave there (member reference.safetensors,
manifest `verify`). Every stage is run as in use, one after the other, so errors add up as they do in an ask; encode_high is given the
reference's patches (every n-th of them), so that one other pick does not hide everything behind it.
"""
from __future__ import annotations

import io
import math
import platform
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import BundleError, InputError, RuntimeFailedError
from .frame import Frame
from .look import Look
from .manifest import ENGINES, most_in_a_run
from .answer import Timing
from .session import Session
from .stages import unit

REFERENCE = "reference.safetensors"
SAMPLES = 4096          # values kept of each output
HIGH_PATCHES = 256      # of the picked ones, evenly, go through encode_high: at SO400M size all would take minutes on a CPU
NEARLY_ALL = 0.99       # of the picked patches; where fewer are the same it is said, though plain frames have many places of nearly equal probability
VIEWS = ("", "_1", "_2", "_3")     # of the frame, by which what is picked is named: itself, and those of _views()
STAGES = ("encode_low", "encode_prompt", "score", "gather", "encode_high", "decode", "project", "prompt_head")
WORDS = 16              # tokens that a language model reads
WORDS_LIMIT = 0.1       # of its logits: loose, since kernels of half precision differ from machine to machine; it finds wrong ones, and values that are no numbers
LIMITS = {              # precision -> (largest relative error of a stage, least overlap of picked patches, least cosine of embeddings)
    "fp32": (1e-4, 0.999, 0.99999), "fp16": (5e-3, 0.95, 0.9999), "bf16": (4e-2, 0.9, 0.999),
    "int8": (0.1, 0.9, 0.99), "fp8": (0.1, 0.9, 0.99), "int4": (0.3, 0.7, 0.9)}


@dataclass(frozen=True)
class Report:
    """errors: stage -> largest difference over largest value | overlap: share of picked patches that are the reference's |
    cosine: between the pooled embedding and the reference's, None without one | ran_on: what computed it, of verify()."""
    errors: dict[str, float]
    overlap: float
    cosine: float | None
    ran_on: str = ""

    def wrong(self, precision: str) -> list[str]:
        """What misses the limits of a precision, each in words that start with the stage's name; empty when all is well."""
        error, overlap, cosine = LIMITS[precision]
        allowed = {stage: WORDS_LIMIT if stage == "decode" and self.cosine is None else error for stage in self.errors}
        found = [f"{stage} is off by {value:.1e} (allowed {allowed[stage]:.0e})" for stage, value in self.errors.items() if not value <= allowed[stage]]
        if not self.overlap >= overlap:
            found.append(f"select picks {self.overlap:.1%} of the same patches (at least {overlap:.1%} needed)")
        if self.cosine is not None and not self.cosine >= cosine:
            found.append(f"decode gives an embedding of cosine {self.cosine:.5f} (at least {cosine} needed)")
        return found

    def to_dict(self) -> dict:
        """Plain values for JSON. None: infinitely off, or no number; of the cosine also that there is no embedding."""
        return {"max_relative_error": {stage: _number(value) for stage, value in self.errors.items()}, "picked_overlap": self.overlap, "embedding_cosine": _number(self.cosine),
                "ran_on": self.ran_on}

    def table(self) -> str:
        rows = [f"{stage:<14}{value:.1e} of the largest value" for stage, value in self.errors.items()]
        why = "" if self.overlap >= NEARLY_ALL else f", fewer than {NEARLY_ALL:.0%}: places of nearly equal probability changed their order"
        rows.append(f"{'select':<14}{self.overlap:.2%} of the picked patches are the reference's{why}")
        if self.cosine is not None:
            rows.append(f"{'decode':<14}cosine of the embeddings {self.cosine:.6f}")
        if self.ran_on:
            rows.append(f"{'ran on':<14}{self.ran_on}")
        return "\n".join(rows)


def observe(session: Session, picture: np.ndarray, prompt: str, picks: dict[int, np.ndarray] | None = None, most: int | None = None) -> dict[str, np.ndarray]:
    """Every stage's outputs on a frame, by "stage.output": float32, besides "picked_<px>" and, of three views of the frame, "picked_<px>_<view>", int32.

    picture: (h, w, 3) uint8 RGB | prompt: used where the bundle has a text tower, else saliency | picks: patches for encode_high, default the picked ones |
    most: patches that encode_high takes, default any number.
    """
    frame, found, g = Frame.of(picture), {}, session.geometry
    query = session.encode_prompt(prompt if session.bundle.manifest["text"] else "")
    if query.pooled is not None:
        found |= {"encode_prompt.pooled": query.pooled, "encode_prompt.prompt": query.vector}
    for number, view in enumerate(_views(picture), 1):      # before the frame itself, whose outputs would be held meanwhile
        found |= _scored(session, session.look(view), query, f"_{number}", picks is None)[1]
    patches, *view = session._whole([frame])
    ((tokens, kv),), features = session._encode_low(patches)
    found |= {"encode_low.tokens": tokens, "encode_low.features": features[0]}
    found |= {f"encode_low.{name.removeprefix('past_')}": np.asarray(array) for name, array in kv.items()}
    low, view = session._score_features(features, *view)[0]
    found |= {"encode_low.low_features": low, **({} if view is None else {"encode_low.view_features": view})}
    found["score.prob"], picked = _scored(session, Look(session, frame, tokens, kv, low, view, Timing(), None), query, "", picks is None)
    found |= picked
    chosen = picks or {px: found[f"picked_{px}"] for px in g["scales_px"][1:]}
    step, longest = max(1, -(-sum(map(len, chosen.values())) // HIGH_PATCHES)), max(map(len, chosen.values()))
    while most is not None and step < longest and sum(-(-len(ids) // step) for ids in chosen.values()) > most:
        step += 1
    chosen = {px: np.ascontiguousarray(ids[::step]) for px, ids in chosen.items()}
    patches, position = session.gather(frame, chosen)
    found |= {"gather.patches": np.asarray(patches), "gather.position": np.asarray(position)}
    found["encode_high.tokens"] = high = session.encode_high(patches, position, kv)
    if "pool" in session._networks:
        found["decode.pooled"] = session.pool(high)
    _language(session, tokens, found)
    return {name: array if name.startswith("picked_") else _float32(array) for name, array in found.items()}


def _views(picture: np.ndarray) -> list[np.ndarray]:
    """Three more frames made of one: places swap where two are nearly equal, and one frame alone has too few to tell percents."""
    h, w = picture.shape[:2]
    return [np.ascontiguousarray(view) for view in (picture[:, ::-1], picture[:-(-h * 2 // 3), :-(-w * 2 // 3)], picture[h // 3:, w // 3:])]


def _scored(session: Session, look: Look, query, view: str, strict: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The map of a look and what is picked by it. Where its features are no numbers both say nothing, or InputError is raised if strict."""
    g = session.geometry
    try:
        prob = session.score(look, query)
        return prob, _picks(session, prob, view)
    except InputError:          # compare() says of which stage; where there is nothing to compare with yet, this says it
        if strict:
            raise
        nothing = {f"picked_{px}{view}": np.empty(0, np.int32) for px in g["scales_px"][1:]}
        return np.full((g["scales_px"][0] // g["patch_px"],) * 2, np.nan, np.float32), nothing


def _picks(session: Session, prob: np.ndarray, view: str) -> dict[str, np.ndarray]:
    g, found = session.geometry, {}
    for px, count in zip(g["scales_px"][1:], g["per_look"]):
        patches = (px // g["patch_px"]) ** 2
        found[f"picked_{px}{view}"] = session.select(prob, px, min(count, patches), np.zeros(patches, np.uint8))
    return found


def _language(session: Session, tokens: np.ndarray, found: dict) -> None:
    if session.language is None:
        return
    language = session.language
    found["project.rows"] = language.low_rows(tokens)
    if "decode" in session._networks:       # not one that runs elsewhere
        read = language.decoder.prefill(language.embed(np.arange(WORDS) * (language.spec["vocabulary"] - 1) // (WORDS - 1)))
        found |= {"decode.hidden": read.hidden, "decode.logits": read.logits}
    if "prompt_head" in session._networks:
        hidden = np.random.Generator(np.random.PCG64(0)).standard_normal((1, session.language.spec["width"]), np.float32)
        found["prompt_head.prompt"] = session._networks["prompt_head"].run({"hidden": hidden}, ["prompt"])["prompt"]


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def sample(observed: dict[str, np.ndarray], picture: np.ndarray) -> dict[str, np.ndarray]:
    """What a bundle keeps of `observed`: the frame (frame_of), all picks, prob and embedding, SAMPLES values of the rest, the largest of each."""
    kept = {"frame": np.frombuffer(_png(picture), np.uint8)}
    for name, array in observed.items():
        if name.startswith("picked_"):
            kept[name] = array
            continue
        flat = array.reshape(-1)
        rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        at = np.arange(flat.size) if flat.size <= SAMPLES else np.unique(rng.integers(0, flat.size, SAMPLES))
        kept |= {name: flat[at], f"{name}.at": at.astype(np.int32), f"{name}.largest": np.array([np.abs(flat).max(initial=0), flat.size], np.float32)}
    return kept


def frame_of(kept: dict[str, np.ndarray]) -> np.ndarray:
    """The frame that sample() kept: (h, w, 3) uint8 RGB. It is kept as PNG, which every machine reads alike. Raises InputError: it is none."""
    try:
        with Image.open(io.BytesIO(kept["frame"].tobytes()), formats=["PNG"]) as image:
            return np.array(image.convert("RGB"))
    except Exception as error:      # of damaged bytes Pillow raises nearly anything
        raise InputError(f"[verify] frame is no picture that can be read ({error}); a PNG is needed.") from error


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def outputs_of(manifest: dict) -> list[str]:
    """Names of what observe() gives of a bundle with these networks, besides what is picked."""
    g, networks = manifest["geometry"], manifest["networks"]
    names = ["encode_low.tokens", "encode_low.features", "encode_low.low_features", "score.prob", "gather.patches", "gather.position", "encode_high.tokens"]
    names += [f"encode_low.{kind}_{i}" for kind in ("key", "value") for i in range(g["depth"])]
    names += ["encode_low.view_features"] if g["view_px"] else []
    for network, outputs in (("encode_prompt", ("encode_prompt.pooled", "encode_prompt.prompt")), ("pool", ("decode.pooled",)), ("project", ("project.rows",)),
                             ("decode", ("decode.hidden", "decode.logits")), ("prompt_head", ("prompt_head.prompt",))):
        names += outputs if network in networks else ()
    return names


def check_reference(kept: dict[str, np.ndarray], manifest: dict) -> None:
    """Raises InputError: `kept` is not as sample() makes it of all that the bundle's networks give; what would be missing in it would pass unmeasured."""
    g, outputs = manifest["geometry"], outputs_of(manifest)
    picked = {f"picked_{px}{view}": ((px // g["patch_px"]) ** 2, count) for px, count in zip(g["scales_px"][1:], g["per_look"]) for view in VIEWS}
    names = {"frame", *picked, *(f"{name}{part}" for name in outputs for part in ("", ".at", ".largest"))}
    for name in sorted(names ^ set(kept)):
        raise InputError(f"[verify] {name} is {'missing' if name in names else 'unknown'}.")
    for name, array in kept.items():
        dtype = "uint8" if name == "frame" else "int32" if name in picked or name.endswith(".at") else "float32"
        if array.ndim != 1 or array.dtype != dtype or not np.isfinite(array).all():
            raise InputError(f"[verify] {name} is {array.dtype} {array.shape}; one row of {dtype} is needed, every one finite.")
    for name, (patches, count) in picked.items():
        ids = kept[name]
        if len(ids) != min(count, patches) or not _ascend(ids) or len(ids) and ids[-1] >= patches:
            raise InputError(f"[verify] {name} holds {len(ids)} ids; {min(count, patches)} that ascend are needed, of {patches} patches.")
    for name in outputs:
        values, at, largest = (kept[f"{name}{part}"] for part in ("", ".at", ".largest"))
        if len(largest) != 2 or largest[1] < 1:
            raise InputError(f"[verify] {name}.largest is {largest[:4].tolist()}; the largest value and how many there are is needed.")
        if len(at) != len(values) or 2 * len(at) < min(SAMPLES, largest[1]) or not _ascend(at):
            raise InputError(f"[verify] {name} holds {len(values)} values of {largest[1]:.0f} and {len(at)} places; as many that ascend are needed, {SAMPLES // 2} at least or half of all.")


def _ascend(ids: np.ndarray) -> bool:
    return bool((np.diff(ids.astype(np.int64), prepend=-1) > 0).all())


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def compare(kept: dict[str, np.ndarray], observed: dict[str, np.ndarray]) -> Report:
    """The report of `observed` against what sample() kept. A stage with an output missing, of another size or not finite, here or there, is off by infinity."""
    errors: dict[str, float] = {}
    cosine, same, total = None, 0, 0
    for name in (name for name in kept if name != "frame" and not name.endswith((".at", ".largest"))):
        if name.startswith("picked_"):
            same, total = same + len(np.intersect1d(kept[name], observed[name])), total + len(kept[name])
            continue
        stage, got, wanted, at = name.split(".")[0], observed.get(name), kept[name].astype(np.float64), kept[f"{name}.at"]
        largest, size = (float(value) for value in kept[f"{name}.largest"])
        error, direction = math.inf, math.nan
        if got is not None and np.float32(got.size) == np.float32(size) and at.max(initial=-1) < got.size and all(np.isfinite(each).all() for each in (got, wanted, largest)):
            found = got.reshape(-1)[at].astype(np.float64)
            most = min(largest, 2 * float(np.abs(got).max(initial=0)))      # a wrong `largest` there would excuse any error
            error, direction = float(np.abs(found - wanted).max(initial=0)) / max(most, 1e-30), float(unit(found) @ unit(wanted))
        errors[stage] = max(errors.get(stage, 0.0), error)
        cosine = direction if name == "decode.pooled" else cosine
    return Report({stage: errors[stage] for stage in STAGES if stage in errors}, same / total if total else 1.0, cosine)


def ran_on(session: Session) -> str:
    """-> "onnxruntime on cpu; score and gather on cpu; Linux x86_64" """
    runtimes = sorted({entry["runtime"] for entry in session.bundle.manifest["networks"].values()})
    where = "the GPU" if session.bundle.manifest["networks"]["encode"]["runtime"] in ENGINES or session._device == "cuda" else "cpu"
    return f"{' and '.join(runtimes)} on {where}; score and gather on {session.ops.where}; {platform.system()} {platform.machine()}"


def precision_of(manifest: dict) -> str:
    """The coarsest precision among the vision networks, whose limits hold for the whole."""
    used = {entry["precision"] for name, entry in manifest["networks"].items() if name != "decode"}
    return next(each for each in reversed(LIMITS) if each in used)


def verify(path: str | Path | None = None, *, threads: int = 0, stream: int | None = None, device: str | None = None) -> Report:
    """Run a bundle on this machine and hold every stage to the reference values inside. threads, stream, device: as in Session.

    Returns the report. Raises BundleError: no reference values inside, or not those of its networks; RuntimeFailedError that names the stages which are off, with `report`
    as its attribute; and what opening a Session raises: no GPU, another GPU, another version of the runtime.
    """
    with Session(path, threads=threads, stream=stream, device=device) as session:
        manifest = session.bundle.manifest
        if not manifest.get("verify"):
            raise BundleError(f"[verify] {session.bundle.path} holds no reference values to compare with. Make a bundle that does: "
                              f"ps3 build {session.bundle.path} -o engine.plan --runtime onnx")
        kept = session.bundle.tensors(manifest["verify"]["file"])
        try:
            check_reference(kept, manifest)
            picks, picture = {px: kept[f"picked_{px}"] for px in session.geometry["scales_px"][1:]}, frame_of(kept)
            report = replace(compare(kept, observe(session, picture, manifest["verify"]["prompt"], picks, most_in_a_run(manifest, "encode", "tokens"))), ran_on=ran_on(session))
        except InputError as error:
            raise BundleError(f"[verify] the reference values of {session.bundle.path} do not fit its model: {str(error).removeprefix('[verify] ').rstrip('.')}. Build the bundle again.") from error
        precision = precision_of(manifest)
        wrong = report.wrong(precision)
        if manifest["model"]["weights"] == "random":    # probabilities of random weights are nearly equal, so what is picked says nothing
            wrong = [each for each in wrong if not each.startswith("select")]
        if wrong:
            error = RuntimeFailedError(f"[verify] {'; '.join(wrong)}, on this machine, against {manifest['verify']['against']}. Do not trust its answers here: rebuild with "
                                       f"ps3 build, with a finer --precision than {precision} if this machine's runtime is the one it was built for.")
            error.report = report
            raise error
        return report
