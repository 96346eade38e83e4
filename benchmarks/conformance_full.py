"""SO400M 4K at full size: the reference model beside ps3-torch, same random weights, f32, one look of 2559 patches.

    python benchmarks/conformance_full.py --peer PYTHON_WITH_PS3_TORCH [--work FOLDER]

ps3-torch runs first, in its own process, and leaves its checkpoint (2.3 GB) and answers in a temporary folder (inside --work);
then our model loads that checkpoint and is fed the same picture and the reference's maps. An error is the largest difference
over the largest value. Needs 6 GB of memory and 3 GB of disk; some minutes on two cores. The last line is one JSON object.
"""
from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFORMANCE = Path(__file__).resolve().parent.parent / "tests" / "conformance"
sys.path.insert(0, str(CONFORMANCE))
VISION = dict(model_name="vit_so400m_patch14_siglip_384", hidden_size=1152, pool="map", ps3_scales=[378, 756, 1512, 3780],
              select_based_on_layer=[0, 9, 18, 26], max_select_num=2560)
CASE = ("so400m-4k", "one", {"prompt": True})
BOUND = 1e-5


def inputs():
    import cases
    import torch
    return torch.from_numpy(cases.pixels(*CASE, VISION["ps3_scales"][-1])), torch.from_numpy(cases.prompt(*CASE, VISION["hidden_size"]))


def run_theirs(out: Path) -> None:
    """In the reference's environment: make, save, ask, record."""
    import run_peer
    import torch
    from safetensors.torch import save_file
    torch.manual_seed(0)
    model = run_peer.PS3VisionModel(run_peer.PS3VisionConfig(**VISION)).eval()
    run_peer.randomise(model)
    model.save_pretrained(out / "checkpoint")
    vision = model.vision_model
    vision.num_hidden_layers_to_return = 1
    pixels, prompt = inputs()
    with torch.inference_mode():
        low = run_peer.encode_low(vision, pixels)
        result = vision(pixels, prompt=prompt, num_look_close=1, output_hidden_states=True)
    found = {f"low.{key}": low[key] for key in ("kv", "features", "score_features", "view_features", "pooled")}
    found |= {f"prob{i}": p for i, p in enumerate(result.selection_probs)} | {f"map{i}": m.to(torch.uint8) for i, m in enumerate(result.selection_maps)}
    save_file({key: value.clone().contiguous() for key, value in (found | {"tokens": result.last_hidden_state}).items()}, out / "answers.safetensors")


def run_ours(out: Path) -> dict[str, float]:
    """Errors by name."""
    import torch
    from ps3_sdk.export.reference.model import Ps3Model
    from safetensors.torch import load_file
    found = load_file(out / "answers.safetensors")
    model = Ps3Model.from_checkpoint(out / "checkpoint")
    pixels, prompt = inputs()
    maps = [found[f"map{i}"] for i in range(len(VISION["ps3_scales"]) - 1)]
    with torch.inference_mode():
        low = model.encode_low(pixels)
        low_pooled = model.pool(low.tokens)
        result = model(pixels, prompt=prompt, looks=[maps], low=low)
        picked = model.select(result.probs)[0]
    error = lambda got, want: ((got - want).abs().max() / want.abs().max()).item()
    grid = low.tokens.shape[1]
    errors = {"low_tokens": error(result.tokens[:, :grid], found["tokens"][:, :grid]), "high_tokens": error(result.tokens[:, grid:], found["tokens"][:, grid:]),
              "kv": max(error(torch.stack(pair), found["low.kv"][i]) for i, pair in enumerate(low.kv)), "selection_features": error(low.features, found["low.features"]),
              "score_features": error(low.score_features, found["low.score_features"]), "view_features": error(low.view_features, found["low.view_features"]),
              "probabilities": max(error(p, found[f"prob{i}"]) for i, p in enumerate(result.probs)), "low_pooled": error(low_pooled, found["low.pooled"])}
    for i, (ids, theirs) in enumerate(zip(picked, maps)):
        if len(ids[0]) != int(theirs.sum()):
            raise SystemExit(f"high-res scale {i}: {len(ids[0])} patches picked, the reference picks {int(theirs.sum())}")
        ours = result.probs[i][0].flatten()[ids[0]].sort().values
        errors["picked_probabilities"] = max(errors.get("picked_probabilities", 0.0), error(ours, found[f"prob{i}"][theirs.bool()].sort().values))
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="python of the environment that tests/conformance/install_peer.sh makes")
    parser.add_argument("--work", help="where the temporary folder goes")
    parser.add_argument("--as-peer", metavar="OUT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_peer:
        run_theirs(Path(options.as_peer))
        return
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        start = time.perf_counter()
        subprocess.run([options.peer, "-W", "ignore", __file__, "--peer", options.peer, "--as-peer", folder], check=True)
        theirs_s = time.perf_counter() - start
        print(f"ps3-torch: made, saved and asked in {theirs_s:.0f} s", flush=True)
        start = time.perf_counter()
        errors = run_ours(Path(folder))
        ours_s = time.perf_counter() - start
    for name, error in errors.items():
        print(f"{name:22} {error:.1e}")
    worst = max(errors.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"benchmark": "conformance_full", "errors": errors, "worst": worst, "bound": BOUND, "within": worst <= BOUND, "theirs_s": theirs_s, "ours_s": ours_s, "ours_peak_gb": peak}))
    sys.exit(worst > BOUND)


if __name__ == "__main__":
    main()
