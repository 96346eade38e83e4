"""gather beside the reference: one 3840x2160 RGB frame to the 2559 normalised patches of one look at three scales.

    python benchmarks/gather.py --peer PYTHON_WITH_PS3_TORCH [--rounds 15] [--threads 2]

The reference's way: its image processor to a 3780 x 3780 float tensor, F.interpolate to every scale, unfold, and the picked rows.
Both get the same frame, the same ids and the same number of threads, and take turns; the patches are compared first. Also:
the same from NV12, the low-res and the 1512 px inputs in one call (ms_inputs) and in two (ms_inputs_apart), and the memory gather
takes beside frame and output.
Without --peer only ours is measured. The last line is one JSON object.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from machine import BASE_PX, HALF, buffers, frames, gather_all, machine, measure_ms, median, memory_growth_mb, picks
from ps3_sdk import _core

CONFORMANCE = Path(__file__).resolve().parent.parent / "tests" / "conformance"

THEIRS = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
folder, threads, conformance = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.path.insert(0, conformance)
import peer_torchvision
import numpy as np, torch, torch.nn.functional as F
from PIL import Image
from ps3 import PS3ImageProcessor
torch.set_num_threads(threads)
frame = Image.fromarray(np.load(folder + "/frame.npy"))
ids = {int(size): torch.from_numpy(each).long() for size, each in np.load(folder + "/ids.npz").items()}
processor = PS3ImageProcessor(3780, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")

@torch.inference_mode()
def patches():
    pixels = processor(frame)["pixel_values"][0][None]
    return {size: F.unfold(F.interpolate(pixels, size=(size, size), mode="bicubic"), 14, stride=14).transpose(1, 2)[0][each]
            for size, each in ids.items()}

np.savez(folder + "/theirs.npz", **{str(size): each.numpy() for size, each in patches().items()})
print("ready", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    patches()
    print(json.dumps(time.perf_counter() - start), flush=True)
"""


class Peer:
    """The reference in its own process; `with` ends it."""

    def __init__(self, python, folder, threads):
        self.process = subprocess.Popen([python, "-c", THEIRS, folder, str(threads), str(CONFORMANCE)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("[benchmark] the reference's process ended; its message is above. Make it with tests/conformance/install_peer.sh.")
        return line

    def round_ms(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return json.loads(self.answer()) * 1e3


def largest_difference(folder, out):
    """In units of one byte step of normalised range; and the share of equal values."""
    theirs = np.load(Path(folder) / "theirs.npz")
    gaps = np.concatenate([np.abs(out[size] - theirs[str(size)]).ravel() for size in out])
    return float(gaps.max() * 255 / 2), float((gaps <= 1e-6).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of the environment that tests/conformance/install_peer.sh makes")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    frame, ids = frames(2160, 3840), picks()
    out, threads = buffers(ids), options.threads
    low_ids, view_ids = np.arange(27 * 27, dtype=np.int32), np.arange(54 * 54, dtype=np.int32)
    low_out, view_out = np.full((27 * 27, 588), np.nan, np.float32), np.full((54 * 54, 3 * 28 * 28), np.nan, np.float32)

    parts = [(378, 14, low_ids, low_out), (1512, 28, view_ids, view_out)]

    def inputs_apart():
        for px, patch_px, each, into in parts:
            _core.gather(frame["RGB"], BASE_PX, px, patch_px, each, *HALF, threads, into)

    result = {"benchmark": "gather", "extra_mb": memory_growth_mb(lambda: gather_all(frame["RGB"], ids, out, threads))}
    ours = {"gather": lambda: gather_all(frame["RGB"], ids, out, threads), "gather_nv12": lambda: gather_all(frame["NV12"], ids, out, threads),
            "inputs": lambda: _core.gather_parts(frame["RGB"], BASE_PX, parts, *HALF, threads), "inputs_apart": inputs_apart}
    times = {name: [] for name in ours}
    theirs_ms = []

    def our_round():
        for name, call in ours.items():
            times[name] += measure_ms(call, 6)[1:]  # the first after the other's turn finds its data out of the caches

    if options.peer:
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "frame.npy", frame["pixels"])
            np.savez(Path(folder) / "ids.npz", **{str(size): each for size, each in ids.items()})
            with Peer(options.peer, folder, threads) as peer:
                steps, equal = largest_difference(folder, out)
                print(f"patches: at most {steps:.5f} byte steps apart, {100 * equal:.3f} % within 1e-6")
                result |= {"byte_steps_apart": steps, "equal": equal}
                for _ in range(options.rounds):
                    our_round()
                    theirs_ms.append(peer.round_ms())
    else:
        for _ in range(options.rounds):
            our_round()
    result |= {f"ms_{name}": median(each) for name, each in times.items()}
    print(f"{'':24}{'median ms':>10}{'min':>9}{'max':>9}")
    for name, each in times.items():
        print(f"ours, {name:18}{median(each):10.2f}{min(each):9.2f}{max(each):9.2f}")
    if theirs_ms:
        result |= {"ms_reference": median(theirs_ms), "ratio_gather": median(theirs_ms) / result["ms_gather"]}
        print(f"{'reference, gather':24}{median(theirs_ms):10.2f}{min(theirs_ms):9.2f}{max(theirs_ms):9.2f}")
        print(f"ratio {result['ratio_gather']:.0f}")
    print(f"memory beside frame and output: {result['extra_mb']} MB; {threads} threads; {machine()}")
    print(json.dumps(result | {"threads": threads, "machine": machine()}))


if __name__ == "__main__":
    main()
