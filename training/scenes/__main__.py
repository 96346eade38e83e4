"""python -m training.scenes sheet | rate | fonts"""
from __future__ import annotations

import argparse
import time
from pathlib import Path

from .fonts import FACES_LIST
from .list_faces import list_faces
from .scenes import Scenes
from .sheet import draw_sheet


def rate(scenes, frames: int) -> str:
    """Frames and dense characters a second, one process."""
    scenes[0]
    start = time.perf_counter()
    for i in range(frames):
        scenes[i]
    per_frame = (time.perf_counter() - start) / frames
    start, characters = time.perf_counter(), 0
    for i in range(4 * frames):
        characters += len(scenes.dense(i)[1])
    return f"{1 / per_frame:.1f} frames/s of {scenes.frame_px}, {characters / (time.perf_counter() - start):.0f} dense characters/s"


def main():
    parser = argparse.ArgumentParser(prog="python -m training.scenes", description="Look at the data.")
    parser.add_argument("what", choices=("sheet", "rate", "fonts"), help="sheet: a picture of 12 samples; rate: how fast; fonts: make faces.txt anew from what is installed")
    parser.add_argument("-o", "--output", type=Path, default=Path("scenes.jpg"))
    parser.add_argument("--split", default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="frame to begin with")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--photos", action="store_true", help="sheet: photographs as backgrounds too (their licences then apply to the picture)")
    args = parser.parse_args()
    if args.what == "fonts":
        rows = list_faces()
        FACES_LIST.write_text("".join("\t".join(row) + "\n" for row in rows))
        print(f"{FACES_LIST}: {len(rows)} faces, {len({row[1] for row in rows})} families, {len({row[0] for row in rows})} groups")
        return
    scenes = Scenes(args.split, args.seed)
    if args.what == "rate":
        print(rate(scenes, args.frames))
        return
    if not args.photos:
        scenes.canvases.photos = []
    draw_sheet(scenes, args.first).save(args.output, quality=80)
    print(f"{args.output}: {args.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
