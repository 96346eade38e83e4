"""How many more language tokens whole blocks give than patches one by one, for the same encoding budget.

    python benchmarks/block_aligned.py [--maps 50]

VILA-HD's language tokens are complete blocks of r x r patches; what is picked beside them is encoded for nothing. Three rules on
the real geometry (27 x 27 probabilities, scales 756, 1512, 3780 px in 14 px patches, 85 + 341 + 2133 patches a look):
  topk      the best patches, ties as torch.topk leaves them on this CPU (what the public model does)
  patches   the best patches, ties to the lower id
  blocks    the best whole blocks; for r = 2 a tie rule, for r = 3 (blocks across cells of the map) a choice of its own
Maps are random: `independent` places, and `smooth` ones, blurred as neighbouring places of a photograph resemble each other.
The last line is one JSON object; counts are means over the maps.
"""
from __future__ import annotations

import argparse
import json
import statistics

import torch
import torch.nn.functional as F

from ps3_sdk.export.reference.selection import plan_looks, select
from ps3_sdk.blocks import plan_blocks
from ps3_sdk.export.reference.vila.blocks import complete_blocks, select_blocks
from ps3_sdk.measure import machine

GRIDS, PER_LOOK = (54, 108, 270), (85, 341, 2133)


def random_map(kind: str, seed: int) -> torch.Tensor:
    """(27, 27) f32 in (0, 1)"""
    noise = torch.randn(1, 1, 35, 35, generator=torch.Generator().manual_seed(seed))
    if kind == "smooth":
        noise = F.avg_pool2d(F.avg_pool2d(noise, 3, 1, 1), 3, 1, 1) * 4
    return torch.sigmoid(noise[0, 0, 4:31, 4:31])


def select_topk(prob: torch.Tensor, count: int, taken: torch.Tensor) -> torch.Tensor:
    ids = prob.flatten().masked_fill(taken, -1.0).topk(count).indices.sort().values
    taken[ids] = True
    return ids


def count(prob: torch.Tensor, rule: str, r: int, num_looks: int) -> tuple[int, int]:
    """Patches encoded, language tokens made of them."""
    capacity = [grid * grid for grid in GRIDS]
    plan = plan_looks(capacity, PER_LOOK, num_looks=num_looks)
    if rule == "blocks":
        plan = plan_blocks(plan, capacity, r * r)
    patches = tokens = 0
    for scale, grid in enumerate(GRIDS):
        fine = F.interpolate(prob[None, None], size=(grid, grid), mode="nearest")[0, 0]
        taken = torch.zeros(grid * grid, dtype=torch.bool)
        for look in plan:
            if rule == "blocks":
                select_blocks(fine, look[scale], taken, r)
            else:
                (select if rule == "patches" else select_topk)(fine, look[scale], taken)
        ids = torch.nonzero(taken)[:, 0]
        patches += len(ids)
        tokens += len(complete_blocks(ids, grid, r)[0])
    return patches, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=50)
    options = parser.parse_args()
    print(machine())
    rows = []
    for r in (2, 3):
        for kind in ("smooth", "independent"):
            for num_looks in (1, 3):
                row = {"r": r, "maps": kind, "looks": num_looks}
                for rule in ("topk", "patches", "blocks"):
                    patches, tokens = zip(*(count(random_map(kind, seed), rule, r, num_looks) for seed in range(options.maps)))
                    row[rule] = {"patches": statistics.mean(patches), "tokens": statistics.mean(tokens)}
                best = row["topk"]["tokens"]
                row["more_than_topk_percent"] = round(100 * (row["blocks"]["tokens"] / best - 1), 2)
                row["more_than_patches_percent"] = round(100 * (row["blocks"]["tokens"] / row["patches"]["tokens"] - 1), 2)
                rows.append(row)
                print(f"r {r}, {kind:11} maps, {num_looks} look{'s' if num_looks > 1 else ' '}: " + ", ".join(
                    f"{rule} {row[rule]['tokens']:.1f} of {row[rule]['patches']:.0f} patches" for rule in ("topk", "patches", "blocks"))
                    + f"; blocks +{row['more_than_topk_percent']} % over topk, +{row['more_than_patches_percent']} % over patches", flush=True)
    print(json.dumps({"maps": options.maps, "per_look": PER_LOOK, "rows": rows}))


if __name__ == "__main__":
    main()
