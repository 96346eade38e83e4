"""A bundle as a data sheet, for people: what `ps3 info` prints."""
from __future__ import annotations

ON_A_FRAME = "the frame given"      # in parity's `inputs`: the exporter was given a frame to measure on


def describe(bundle) -> str:
    """The data sheet of an open Bundle: model, geometry, networks, measured parity, members, tools. Plain text, no trailing newline."""
    manifest = bundle.manifest
    sections = [_model(bundle, manifest), _geometry(manifest["geometry"]), _text(manifest), _networks(manifest), _parity(manifest),
                _members(bundle, manifest), "tools: " + ", ".join(f"{name} {version}" for name, version in manifest["tools"].items())]
    return "\n\n".join(section for section in sections if section)


def size_text(num_bytes: int) -> str:
    """1023 -> "1023 B", 1651000000 -> "1.65 GB" (powers of 1000, as disks are sold)."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.2f} {unit}"
    return f"{num_bytes} B"


def _model(bundle, manifest) -> str:
    model = manifest["model"]
    weights = "trained" if model["weights"] == "trained" else "RANDOM: what it picks and ranks means nothing"
    source = " @ ".join(part for part in (model["source"], model["revision"]) if part)
    rows = [("family", model["family"]), ("weights", weights), ("source", source), ("licence", model["licence"] or "not stated"),
            ("note", model["note"]), ("file", f"{bundle.path}, {size_text(bundle.size_bytes)}, {manifest['format']} {manifest['format_version']}, {manifest['kind']}")]
    return "\n".join([model["name"], *(f"  {name:<9} {value}" for name, value in rows if value)])


def _geometry(g) -> str:
    rows = [("scale px", "grid", "patches", "per look")]
    for index, px in enumerate(g["scales_px"]):
        n = px // g["patch_px"]
        rows.append((str(px), f"{n} x {n}", str(n * n), "all, once a frame" if index == 0 else str(g["per_look"][index - 1])))
    lines = [f"geometry: patch {g['patch_px']} px, depth {g['depth']}, width {g['width']}, {g['heads']} heads", *("  " + line for line in _table(rows))]
    if g["view_px"]:
        lines.append(f"  score also looks at {g['view_px']} px, {g['view_px'] // g['view_patch_px']} x {g['view_px'] // g['view_patch_px']} places")
    return "\n".join([*lines, f"  position rows: {g['position']} of a {g['position_grid']} x {g['position_grid']} table"])


def _text(manifest) -> str:
    text, contrast, language = manifest["text"], manifest["contrast"], manifest.get("language")
    if language:
        r = language["downsample"]
        tokens, looks = language["num_tokens"], language["num_looks"]
        budget = f"{tokens} patches" if tokens is not None else f"{looks} looks" if looks is not None else "every patch"
        around = f", around the most probable place (radius {language['look_around']} of the low-res grid; more patches in further places, until something is found)" if "look_around" in language else ""
        again = language.get("confidence", {}).get("again")
        calibrated = ("; confidence is calibrated" if "confidence" in language else "") + (f"; what is less sure than {again:g} is looked for again" if again else "")
        return (f"an ask looks at {budget}{around}{calibrated}\nlanguage model: {language['num_layers']} layers of width {language['width']}, {language['vocabulary']} tokens, context {language['context_length']} rows, "
                f"{language['dtype']}; a row for each block of {r} x {r} patches")
    if text is None:
        return "prompts: as vectors, or none (no text tower)"
    ranked = f"choices ranked with scale {contrast['scale']:g}, bias {contrast['bias']:g}" if contrast else "no contrast of its own"
    return f"prompts: {text['context_length']} tokens of {text['vocabulary']}, {text['clean']}; {ranked}"


def _networks(manifest) -> str:
    rows = [("network", "runtime", "precision", "size", "inputs")]
    for name, entry in manifest["networks"].items():
        size = sum(manifest["members"][entry[key]]["bytes"] for key in ("file", "weights") if entry[key])
        rows.append((name, entry["runtime"], entry["precision"], size_text(size), _ports(entry["inputs"])))
    lines = _table(rows)
    for engine, names in _engines(manifest).items():
        lines.append(f"  {', '.join(names)}: {engine}")
    return "\n".join(lines)


def _engines(manifest) -> dict[str, list[str]]:
    """Networks by what their engines were built with and for."""
    found: dict[str, list[str]] = {}
    for name, entry in manifest["networks"].items():
        if "engine" in entry:
            engine = entry["engine"]
            found.setdefault(f"{entry['runtime']} {engine['builder']} for {', '.join(f'sm_{sm}' for sm in engine['sms'])}, {engine['platform']}", []).append(name)
    return found


def _ports(ports) -> str:
    """Names and shapes; the keys and values of the blocks as one entry."""
    shown = [f"{p['name']} ({', '.join(map(str, p['shape']))})" for p in ports if not p["name"].startswith("past_")]
    past = sum(port["name"].startswith("past_") for port in ports)
    return ", ".join(shown) + (f", {past} past keys and values" if past else "")


def int8_caution(manifest: dict) -> str | None:
    """What to know before trusting an int8 bundle; None for others, and where the error was measured on trained weights and a user's own frame."""
    if all(entry["precision"] != "int8" for entry in manifest["networks"].values()):
        return None
    entries = [manifest["parity"][stage] for stage in ("encode_low", "encode_high") if stage in manifest["parity"]]
    error = f"int8 is off by {max(entry['max_relative_error'] for entry in entries):.1e} of the largest value" if entries else "the error of int8 was not measured"
    if manifest["model"]["weights"] == "random":
        return f"{error} on these random weights; that says nothing about trained ones"
    if manifest.get("language"):
        return f"{error}, {entries[0]['inputs']}: what that does to answers is for ps3 eval to say" if entries else error
    if not any(ON_A_FRAME in entry["inputs"] for entry in entries):
        return f"{error} on a drawn picture; to know it on what you will look at, export with --check-frame FRAME"
    return None


def _parity(manifest) -> str:
    parity, caution = manifest["parity"], int8_caution(manifest)
    if not parity:
        return "parity: not measured"
    rows = [("parity", "max rel. error", "against", "inputs")]
    return "\n".join(_table(rows + [(stage, f"{p['max_relative_error']:.1e}", p["against"], p["inputs"]) for stage, p in parity.items()])
                     + _overlap(manifest.get("verify")) + ([f"note: {caution}"] if caution else []))


def _overlap(verify: dict | None) -> list[str]:
    if not verify:
        return []
    cosine = "" if verify["embedding_cosine"] is None else f", cosine of the embeddings {verify['embedding_cosine']:.6f}"
    return [f"picked patches that are the same: {100 * verify['picked_overlap']:.1f} %{cosine}; on {'a frame that was given' if verify['on_a_frame'] else 'a drawn picture'}"]


def _members(bundle, manifest) -> str:
    rows = [("member", "size", "sha256")]
    for name, size in bundle.members.items():
        rows.append((name, size_text(size), manifest["members"][name]["sha256"][:16] if name in manifest["members"] else ""))
    return "\n".join(_table(rows))


def _table(rows) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
