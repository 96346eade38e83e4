"""First own model: a PS3 checkpoint folder becomes an engine.plan, and the plan is asked. Needs ps3_sdk[export].

    python examples/own_model.py [CHECKPOINT] [-o PLAN]

CHECKPOINT is a folder or a hub id such as nvidia/PS3-4K-SigLIP2. Without one, a small checkpoint with random weights is
written first, in the same layout. PLAN is kept; without -o it goes with the example. The command line does the same:
ps3 export CHECKPOINT -o engine.plan
"""
import argparse
import json
import tempfile
from pathlib import Path

import ps3_sdk
from ps3_sdk.export.seeded_bundle import CONFIG, byte_tokenizer
from ps3_sdk.export.make_bundle import make_bundle


def write_small_checkpoint(folder: Path) -> None:
    """config.json, preprocessor_config.json, tokenizer files and model.safetensors, as on the hub."""
    from safetensors.torch import save_file
    from ps3_sdk.export.random_checkpoint import RandomCheckpoint
    from ps3_sdk.export.reference.config import Ps3Config
    weights = RandomCheckpoint(Ps3Config.from_dict(CONFIG), seed=11)
    save_file({key: weights.tensor(key).contiguous() for key in weights.keys()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_size": [3780, 3780], "mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_name": "bytes", "context_length": 64, "clean": "canonicalize"}))
    (folder / "tokenizer.json").write_bytes(byte_tokenizer())


options = argparse.ArgumentParser()
options.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="folder or hub id (default: a small one of random weights)")
options.add_argument("-o", "--output", metavar="PLAN", help="where the plan is kept (default: nowhere)")
options = options.parse_args()

with tempfile.TemporaryDirectory() as folder:
    checkpoint, plan = options.checkpoint or folder, options.output or str(Path(folder) / "engine.plan")
    if checkpoint == folder:
        write_small_checkpoint(Path(folder))
    make_bundle(checkpoint, plan, progress=print)
    with ps3_sdk.Session(plan) as session:
        print(session.ask(Path(__file__).parent / "frames" / "boats_4k.jpg", "a boat", choices=["a boat", "a car"]))
    if options.output:
        print(f"kept: {plan}")
    if checkpoint == folder:
        print("The small checkpoint's weights are random, so this answer means nothing; its path from folder to answer is what a real one takes.")
