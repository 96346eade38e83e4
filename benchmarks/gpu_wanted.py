"""What a GPU's acceptance (gpu.py) wants of its figures, and what they miss."""
from __future__ import annotations

GATHER = "gather 2559 patches, 2160 rows NV12, float32"
GATHER_MS, OVERLAP, ERROR, REST, TIMES = 0.1, 0.99, 5e-3, 0.10, 3.0


def missed(result: dict) -> list[str]:
    """One line for each figure of gpu.py's JSON that is not as wanted, or that was not taken."""
    found = []
    if result["checked"] is None:
        found.append("ops were not compared with the processor's")
    if result["sanitizer"] != "nothing found":
        found.append(f"compute-sanitizer: {result['sanitizer']}")
    gather = result["rows"].get(GATHER)
    if gather is None or not gather["ms"] <= GATHER_MS:
        took = "not timed" if gather is None else f"{gather['ms']:.4f} ms"
        found.append(f"{GATHER}: {took}, wanted at most {GATHER_MS}")
    if not result["encodes"]:
        found.append("no whole encode ran on the GPU")
    for name, each in result["encodes"].items():
        if not each["overlap"] >= OVERLAP:
            found.append(f"{name}: {100 * each['overlap']:.1f} % of the same patches, wanted {100 * OVERLAP:.0f}")
        if not each["error"] <= ERROR:
            found.append(f"{name}: tokens off by {each['error']:.1e}, wanted at most {ERROR:.0e}")
        if not each["rest_share"] <= REST:
            found.append(f"{name}: {100 * each['rest_share']:.0f} % beside the networks, wanted at most {100 * REST:.0f}")
    full = result["full_size"]
    if full is None:
        return [*found, "full size beside ps3-torch was not run (--peer)"]
    for key, ratio in full.items():
        name = key.removeprefix("ratio_time_")
        if name != key:
            if not ratio >= TIMES:
                found.append(f"{name} at full size: {ratio:.1f} times ps3-torch's speed, wanted {TIMES:.0f}")
            if not full[f"percent_beside_networks_{name}"] <= 100 * REST:
                found.append(f"{name} at full size: {full[f'percent_beside_networks_{name}']:.0f} % beside the networks, wanted at most {100 * REST:.0f}")
    return found
