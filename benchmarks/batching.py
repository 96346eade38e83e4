"""What several frames, texts or questions in one run of a network gain over one by one, on this machine's CPU.

    python benchmarks/batching.py [--bundle PLAN] [--repeat 7]

Without --bundle: a seeded encoder (width 48) and one of random weights, width 384, 12 blocks, as large as a ViT-S (both need ps3_sdk[export]).
Each line is milliseconds for one frame, text or question, the median over rounds in which the batch sizes take turns, and how many times
faster than one by one. The last line is one JSON object.
"""
from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine, median

import ps3_sdk

BATCHES = (1, 2, 4)


def seeded(folder: Path) -> Path:
    from ps3_sdk.export.seeded_bundle import write_seeded
    write_seeded(folder / "seeded.plan")
    return folder / "seeded.plan"


def mid_size(folder: Path) -> Path:
    from ps3_sdk.export.seeded_bundle import byte_tokenizer
    from ps3_sdk.export.make_bundle import Prepared, write
    from ps3_sdk.export.random_checkpoint import RandomCheckpoint
    from ps3_sdk.export.reference.config import Ps3Config
    config = Ps3Config.from_dict({
        "model_type": "ps3",
        "vision_config": {
            "model_type": "ps3_vision_model", "model_name": "random_vit_s", "hidden_size": 384, "pool": "map", "ps3_scales": [378, 756, 1512],
            "golden_trunk": {"patch_size": 14, "embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_ratio": 4.0, "pos_embed_grid": 27},
            "select_based_on_layer": [0, 4, 8, 11], "max_select_num": 2560, "highres_selection_module_hidden_dim": 128,
            "highres_selection_module_out_dim": 128, "highres_selection_module_depth": 3},
        "text_config": {"width": 384, "heads": 6, "layers": 12, "mlp_ratio": 4.0, "vocab_size": 320, "context_length": 64, "output_dim": 384,
                        "prompt_proj_dim": 384, "pool_type": "last", "no_causal_mask": True, "proj_bias": True}})
    plan = folder / "mid.plan"
    write(RandomCheckpoint(config), Prepared(config, "random-vit-s", "none", (0.5,) * 3, (0.5,) * 3, tokenizer=byte_tokenizer(), weights="random"), plan)
    return plan


def measure(plan, repeat: int) -> dict:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (1080, 1920, 3), np.uint8) for _ in range(4)]
    counter = iter(range(10 ** 9))
    with ps3_sdk.Session(plan) as session:
        look = session.look(frames[0])
        texts = lambda num: [f"thing number {next(counter)}" for _ in range(num)]       # never read before
        jobs = {
            "frame, low-res pass": lambda batch: session.look_many(frames, batch=batch),
            "text": lambda batch: [session.encode_prompts(texts(batch)) for _ in range(4 // batch)],
            "question, 640 patches": lambda batch: look.ask_many(["a", "b", "c", "d"], tokens=640, batch=batch)}
        rows = {}
        for what, job in jobs.items():
            times = {batch: [] for batch in BATCHES}
            for turn in range(repeat + 1):
                for batch in BATCHES:
                    start = time.perf_counter()
                    job(batch)
                    if turn:        # the first warms up
                        times[batch].append((time.perf_counter() - start) * 1e3 / 4)
            rows[what] = {f"batch {batch}": {"ms": round(median(each), 2), "faster": round(median(times[1]) / median(each), 2)} for batch, each in times.items()}
            print(f"{session.bundle.manifest['model']['name']:<16} {what:<24}" + "   ".join(f"{name}: {cell['ms']:8.2f} ms x{cell['faster']:.2f}" for name, cell in rows[what].items()), flush=True)
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle")
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        plans = [Path(options.bundle)] if options.bundle else [seeded(Path(folder)), mid_size(Path(folder))]
        found = {plan.name: measure(plan, options.repeat) for plan in plans}
    print(json.dumps({"machine": machine(), "ms_each": found}))


if __name__ == "__main__":
    main()
