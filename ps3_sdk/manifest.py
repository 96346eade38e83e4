"""The manifest of a bundle: the closed schema, and what its fields must say about each other."""
import functools
import itertools
from pathlib import Path

from .errors import BundleError
from .schema import check, parse_json
from .tensors import Tensor

MANIFEST, TABLES = "manifest.json", "tables.safetensors"
MAX_MANIFEST_BYTES = 4 << 20
ENGINES = ("tensorrt", "tensorrt-rtx")     # runtimes that are given an engine built ahead, for some GPUs
ASKED_FOR = {"encode": {"tokens", "past", "keep"}, "pool": {"tokens"}, "project": {"blocks"}}       # network -> sizes that a session or a runtime asks an engine's profiles for by name


@functools.lru_cache(maxsize=1)
def schema() -> dict:
    """bundle.schema.json, beside this file."""
    return parse_json(Path(__file__).with_name("bundle.schema.json").read_bytes(), "bundle.schema.json")


def parse_manifest(data: bytes, where: str) -> dict:
    """The manifest in `data`, checked. `where` names the bundle in errors. Raises: BundleError that names the field."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{where}: {MANIFEST} has {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are read. Export the bundle again.")
    manifest = parse_json(data, f"{where}: {MANIFEST}")
    check_manifest(manifest, where)
    return manifest


def check_manifest(manifest: dict, where: str) -> None:
    """Schema first, then the rules between fields. Raises: BundleError that names the field and the rule."""
    check(manifest, schema(), f"{where}: manifest")
    for wrong in itertools.chain(_geometry(manifest["geometry"]), _parts(manifest), _ports(manifest)):      # one at a time: later ones rely on earlier ones
        raise BundleError(f"{where}: manifest.{wrong}. Export the bundle again.")


def check_members(manifest: dict, sizes: dict[str, int], where: str) -> None:
    """The file holds just the members that the manifest lists, each of the listed size. sizes: {name: bytes}, in file order."""
    listed, found = set(manifest["members"]), set(sizes) - {MANIFEST}
    if MANIFEST in listed or next(iter(sizes), None) != MANIFEST:
        raise BundleError(f"{where}: {MANIFEST} must be the first member and cannot list itself. Export the bundle again.")
    for name in sorted(listed ^ found):
        what = "is listed in the manifest and missing from the file" if name in listed else "is in the file and not listed in the manifest"
        raise BundleError(f"{where}: member {name} {what}. Export the bundle again.")
    for name, entry in manifest["members"].items():
        if entry["bytes"] != sizes[name]:
            raise BundleError(f"{where}: member {name} has {sizes[name]} bytes, the manifest says {entry['bytes']}. Copy the file again, or export "
                              "it again.")


def check_tables(manifest: dict, tables: dict[str, Tensor], where: str) -> None:
    """The tensors of tables.safetensors are those, of the shapes, that the geometry calls for."""
    g = manifest["geometry"]
    wanted = {"position": (g["position_grid"] ** 2, g["width"]), "prior_prompt": (g["width"],)}
    optional = {f"position_residual_{px}": ((px // g["patch_px"]) ** 2, g["width"]) for px in g["scales_px"]}
    optional |= {f"position_{part}_{px}": (px // g["patch_px"], g["width"]) for part in ("row", "column") for px in g["scales_px"]}
    for px in g["scales_px"]:
        if (f"position_row_{px}" in tables) != (f"position_column_{px}" in tables):
            raise BundleError(f"{where}: {TABLES} holds one of position_row_{px} and position_column_{px}; both or neither are needed. Export the bundle again.")
    if g["view_px"]:
        wanted["view_prompt_weight"] = (g["view_width"], g["width"])
        optional["view_prompt_bias"] = (g["view_width"],)
    language = manifest.get("language")
    if language:
        width = language["width"]
        wanted["token_embedding"] = (tables["token_embedding"].shape[0] if "token_embedding" in tables else 0, width)
        optional |= {"row_position": ((g["scales_px"][0] // g["patch_px"]) ** 2, width), "row_scale": (len(g["scales_px"]), width), "row_prob": (width,)}
    for name, shape in wanted.items():
        if name not in tables:
            raise BundleError(f"{where}: {TABLES} lacks {name} {shape}. Export the bundle again.")
    for name, tensor in tables.items():
        shape = wanted.get(name) or optional.get(name)
        if shape is None:
            raise BundleError(f"{where}: {TABLES} holds {name[:80]!r}; known are {', '.join([*wanted, *optional])}. Export the bundle again.")
        dtypes = ("F32", "F16", "BF16") if name == "token_embedding" else ("F32", "F16") if name.startswith("position_residual") else ("F32",)
        if tensor.shape != shape or tensor.dtype not in dtypes:
            raise BundleError(f"{where}: {TABLES}: {name} is {tensor.dtype} {tensor.shape}; the geometry needs {' or '.join(dtypes)} {shape}. Export the bundle again.")


def _geometry(g: dict):
    """What is wrong in manifest.geometry, one text each."""
    scales, patch = g["scales_px"], g["patch_px"]
    if sorted(set(scales)) != scales:
        yield f"geometry.scales_px is {scales}; scales ascend"
    if any(px % patch for px in scales):
        yield f"geometry.scales_px is {scales}; scales are multiples of patch_px {patch}"
    if len(g["per_look"]) != len(scales) - 1:
        yield f"geometry.per_look has {len(g['per_look'])} entries; one for each of the {len(scales) - 1} high-res scales is needed"
    if g["width"] % g["heads"]:
        yield f"geometry.heads is {g['heads']}; it must divide width {g['width']}"
    if min(g["std"]) <= 0:
        yield f"geometry.std is {g['std']}; deviations are above 0"
    if g["position"] == "crop" and scales[-1] // patch > g["position_grid"]:
        yield f"geometry.position_grid is {g['position_grid']}; crop needs at least the largest grid, {scales[-1] // patch}"
    view = [g["view_px"], g["view_patch_px"], g["view_width"]]
    if None in view:
        if view != [None] * 3:
            yield f"geometry.view_px, view_patch_px, view_width are {view}; all or none are given"
    elif view[0] % view[1] or view[0] // view[1] < scales[0] // patch:
        yield f"geometry.view_px is {view[0]}; its grid of {view[1]} px patches must be whole and at least the low-res grid {scales[0] // patch}"


def _parts(manifest: dict):
    """What is wrong between text, contrast, networks and members."""
    networks, members, text, language, g = manifest["networks"], manifest["members"], manifest["text"], manifest.get("language"), manifest["geometry"]
    if (manifest["kind"] == "vlm") != (language is not None):
        yield f"kind is {manifest['kind']!r}; language is given for vlm and for nothing else"
    if {name in networks for name in ("project", "decode")} != {language is not None} or "prompt_head" in networks and language is None:
        yield "networks: project and decode belong to language, prompt_head may"
    if (text is None) != ("encode_prompt" not in networks):
        yield "text and networks.encode_prompt belong together; one is given without the other"
    if manifest["contrast"] is not None and (text is None or "pool" not in networks):
        yield "contrast needs text and networks.pool"
    files = {f"networks.{name}.{key}": entry[key] for name, entry in networks.items() for key in ("file", "weights") if entry[key] is not None}
    if language is not None:
        files["language.tokenizer"] = language["tokenizer"]
        if text is not None or "pool" in networks:
            yield "a vlm has no text tower; text and networks.pool belong to encoders"
    if text is not None:
        files["text.tokenizer"] = text["tokenizer"]
        if text["pad_id"] >= text["vocabulary"]:
            yield f"text.pad_id is {text['pad_id']}; the vocabulary has {text['vocabulary']} entries"
    if language is not None and any(px // g["patch_px"] % language["downsample"] for px in g["scales_px"][1:]):
        yield f"language.downsample is {language['downsample']}; it must divide the grids of the high-res scales, {', '.join(str(px // g['patch_px']) for px in g['scales_px'][1:])}"
    if manifest.get("verify"):
        files["verify.weights"] = manifest["verify"]["file"]
        if text is not None and not manifest["verify"]["prompt"].strip():
            yield "verify.prompt is blank; a text tower is measured on a text"
    for name, entry in networks.items():
        yield from _engine(name, entry)
    for place, name in files.items():
        if name not in members:
            yield f"{place} is {name!r}, which is not among the members"
        if place.endswith(".weights") and not name.endswith(".safetensors"):
            yield f"{place} is {name!r}; weights are .safetensors"


def _engine(name: str, entry: dict):
    """What is wrong between a network's runtime and the record of its engine. Profiles give each symbolic size its least, best and most, of encode also the value of keep."""
    engine, sizes = entry.get("engine"), {n for port in entry["inputs"] for n in port["shape"] if isinstance(n, str)} | ASKED_FOR.get(name, set())
    if (engine is None) != (entry["runtime"] not in ENGINES):
        yield f"networks.{name}.engine belongs to {' and '.join(ENGINES)} and to nothing else; the runtime is {entry['runtime']!r}"
    if engine is None:
        return
    if entry["weights"] is not None:
        yield f"networks.{name}.weights is {entry['weights']!r}; an engine holds its own weights"
    stays = {port["name"] for port in entry["outputs"]} & {port["name"].removeprefix("past_") for port in entry["inputs"] if port["name"].startswith("past_")}
    if others := sorted(set(engine["on_device"]) - stays):
        yield f"networks.{name}.engine.on_device names {others[0]}; only keys and values stay, outputs that are the past_ inputs of later runs"
    for profile in engine["profiles"]:
        if not sizes <= set(profile) or any(sorted(range_) != range_ for range_ in profile.values()):
            yield f"networks.{name}.engine.profiles: each gives {', '.join(sorted(sizes))} as least, best, most"
    if name == "encode" and not any(profile.get("past", (0, 0, 0))[2] for profile in engine["profiles"]):
        yield f"networks.{name}.engine.profiles: none takes the keys and values of a look, past is 0 in all"
    if name == "encode" and any(port["shape"] != [1] for port in entry["inputs"] if port["name"] == "keep"):
        yield f"networks.{name}.inputs: keep is one number, its shape must be [1]"


def _ports(manifest: dict):
    """What is wrong in the names and widths of the networks' inputs and outputs."""
    g, text = manifest["geometry"], manifest["text"]
    layers = range(g["depth"])
    width, features, pooled = g["width"], g["feature_width"], g["pooled_width"]
    head = width // g["heads"]
    patch = 3 * g["patch_px"] ** 2
    view_in = {"view": 3 * g["view_patch_px"] ** 2} if g["view_px"] else {}
    view_out = {"view_features": g["view_width"]} if g["view_px"] else {}
    known = {       # network -> (input -> last size, output -> last size)
        "encode": ({"patches": patch, "position": width, "keep": 1, **{f"past_{kind}_{i}": head for kind in ("key", "value") for i in layers}},
                   {"tokens": width, "features": features, **{f"{kind}_{i}": head for kind in ("key", "value") for i in layers}}),
        "score_features": ({"features": features, **view_in}, {"low_features": width, **view_out}),
        "encode_prompt": ({"ids": text["context_length"] if text else 0}, {"pooled": pooled, "prompt": width}),
        "pool": ({"tokens": width}, {"pooled": pooled}),
    }
    if manifest.get("language"):
        spec = manifest["language"]
        rows, kv = spec["width"], [f"{i}.{kind}" for i in range(spec["num_layers"]) for kind in ("key", "value")]
        known["project"] = {"blocks": spec["downsample"] ** 2 * width}, {"rows": rows}
        known["prompt_head"] = {"hidden": rows}, {"prompt": width}
        known["decode"] = ({"inputs_embeds": rows, "attention_mask": None, **{f"past_key_values.{name}": spec["head_width"] for name in kv}},
                           {"hidden_states": rows, "logits": None, **{f"present.{name}": spec["head_width"] for name in kv}})
    for name, entry in manifest["networks"].items():
        for side, sizes in zip(("inputs", "outputs"), known[name]):
            ports = {port["name"]: port["shape"] for port in entry[side]}
            if len(ports) != len(entry[side]) or set(ports) != set(sizes):
                differ = sorted(set(ports) ^ set(sizes)) or ["a name given twice"]
                yield f"networks.{name}.{side} differ from the {name} network of this geometry in {', '.join(differ[:4])}"
                continue
            for port, shape in ports.items():
                if not shape or None is not sizes[port] != shape[-1] and isinstance(shape[-1], int):
                    yield f"networks.{name}.{side}: {port} has shape {shape}; its last size is {sizes[port]}"



def most_in_a_run(manifest: dict, network: str, size: str) -> int | None:
    """How much of a size, such as tokens, a network takes at once; None for any number, as ONNX networks do. Of encode it is what is picked, behind a look's keys and values."""
    engine = manifest["networks"].get(network, {}).get("engine")
    return max(profile[size][2] for profile in engine["profiles"] if profile.get("past", (0, 0, 1))[2]) if engine else None
