"""A camera loop: frames arrive as NV12, 30 a second; always ask about the freshest one.

    python examples/camera_loop.py [--seconds 3] [--tokens 512]        # Ctrl-C ends it sooner; --seconds inf: alone

The camera here is a thread that moves over a picture. With a real one, replace Camera.newest() by your driver's call that
gives the newest Y and UV planes. They are read in place, at any row pitch, more than once: a buffer that the driver fills again
meanwhile must be held until the answer is there, or copied, as planes.copy() does in about 2 ms.
"""
import argparse
import signal
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

import ps3_sdk

HEIGHT, WIDTH = 2160, 3840


class Camera(threading.Thread):
    """30 frames a second of NV12; keeps the newest, counts those nobody took."""

    def __init__(self):
        super().__init__(daemon=True)
        picture = Image.open(Path(__file__).parent / "frames" / "panel_4k.jpg").convert("YCbCr")
        y, cb, cr = (np.asarray(plane) for plane in picture.split())
        self.luma, self.chroma = y, np.stack([cb[::2, ::2], cr[::2, ::2]], axis=-1).reshape(HEIGHT // 2, WIDTH)
        self.lock, self.fresh, self.num_frames, self.num_dropped = threading.Condition(), None, 0, 0

    def run(self):
        while True:
            shift = 2 * self.num_frames % WIDTH
            planes = np.roll(self.luma, -shift, axis=1), np.roll(self.chroma, -shift, axis=1)
            with self.lock:
                self.num_dropped += self.fresh is not None
                self.fresh = (planes, time.perf_counter())
                self.num_frames += 1
                self.lock.notify()
            time.sleep(1 / 30)

    def newest(self, timeout_s=2):
        with self.lock:
            if not self.lock.wait_for(lambda: self.fresh is not None, timeout_s):
                raise SystemExit(f"no frame for {timeout_s} s; is the camera there?")
            fresh, self.fresh = self.fresh, None
            return fresh


options = argparse.ArgumentParser()
options.add_argument("--seconds", type=float, default=3, help="how long, inf: until Ctrl-C (default: %(default)g)")
options.add_argument("--tokens", type=int, default=512)
options = options.parse_args()

timings, ages_ms, stop = ps3_sdk.Timings(), [], threading.Event()
signal.signal(signal.SIGINT, lambda *_: stop.set())         # as a camera loop ends: the frame at hand is the last
camera = Camera()
camera.start()
with ps3_sdk.Session() as session:
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end and not stop.is_set():
        (luma, chroma), taken_at = camera.newest()
        frame = ps3_sdk.Frame.of((luma, chroma), format="NV12", matrix="bt601", full_range=True)
        answer = session.ask(frame, "what is the word on the purple bar chart?", tokens=options.tokens)
        ages_ms.append((time.perf_counter() - taken_at) * 1e3)
        timings += answer.timing
        if timings.num_runs == 1:
            print(answer.headline(), flush=True)
if ages_ms:
    print(timings)
    print(f"{camera.num_frames} frames, {len(ages_ms)} asked about, {camera.num_dropped} skipped; age of a frame when it is answered: median {np.median(ages_ms):.0f} ms, worst {max(ages_ms):.0f} ms")
