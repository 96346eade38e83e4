"""VILA-HD, random weights: our bundle beside the public code, each in its own process, turn by turn, on a 3840x2160 frame.

    python benchmarks/vila.py --peer PYTHON_WITH_PS3_TORCH [--size tiny mid] [--rounds 3] [--max-tokens 32] [--llm-precision fp32 int4] [--precision fp32]

The public code is ps3-torch's tower and transformers' Qwen2, joined as VILA joins them (vila_public.py). Each round asks a first
question about the frame and a second one; the public code knows no difference. Measured are the time to the first token, the tokens
per second after it and the whole ask. Both are asked for the same number of tokens and looks; ours selects whole blocks of patches,
by which it reads more rows. Once, both select by the same rule, ties to the lower id, and the tokens are compared: fp32 must say
the same up to the first step whose two best logits are within 1e-3. The last line is one JSON object.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZES = {
    "tiny": (dict(embed_dim=96, depth=4, num_heads=3), dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2), 4000),
    "mid": (dict(embed_dim=576, depth=12, num_heads=8),     # the language model has Qwen2-0.5B's shapes
            dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2), 151651)}
QUESTIONS = ("What is written on the largest boat?", "How many people stand on the quay?")
NEAR_TIE = 1e-3


def write_checkpoint(folder: Path, size: str) -> None:
    from ps3_sdk.export.random_vila import write_random_vila
    trunk, llm, num_ids = SIZES[size]
    width, depth = trunk["embed_dim"], trunk["depth"]
    vision = dict(model_name=f"vit_bench_{size}", hidden_size=width, golden_trunk=dict(trunk, patch_size=14, mlp_ratio=3.7362, pos_embed_grid=27),
                  select_based_on_layer=[0, depth // 3, 2 * depth // 3, depth - 1])
    if size == "tiny":
        vision |= dict(highres_selection_module_hidden_dim=64, highres_selection_module_out_dim=48, highres_selection_module_depth=2)
    write_random_vila(folder, vision, dict(llm, vocab_size=num_ids + 285, tie_word_embeddings=True), num_ids=num_ids)


class Worker:
    """A process that answers one JSON line with another."""

    def __init__(self, *command):
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True)
        self.ready = self._answer()

    def ask(self, **request) -> dict:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            raise SystemExit(f"{self._process.args[0]} failed:\n{self._said.read()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def ours(plan: str, frame_file: str, threads: str) -> None:
    """The worker of our side. A request with `first` looks at the frame anew."""
    import ps3_sdk
    answers, sys.stdout = sys.stdout, sys.stderr
    frame, start = np.load(frame_file), time.perf_counter()
    session = ps3_sdk.Session(plan, threads=int(threads), verify=False)
    language = session.language
    given, made, look = language.answer, [], None
    language.answer = lambda read, **options: made.append((len(read.names), given(read, **options))) or made[-1][1]
    room, spent = language.decoder._room, []     # where the language model's keys and values are copied, if they are

    def timed_room(*args):
        start = time.perf_counter()
        try:
            return room(*args)
        finally:
            spent.append((time.perf_counter() - start) * 1e3)

    language.decoder._room = timed_room
    print(json.dumps({"open_s": time.perf_counter() - start, "peak_gb": peak_gb()}), file=answers, flush=True)
    for line in sys.stdin:
        request, times = json.loads(line), []
        if "describe" in request:
            found = {"asks": [dict(ids=language.ids([None, question]), prompt_end=language.prompt_end(language.ids([None, question]))) for question in QUESTIONS],
                     "image_id": language.spec["image_id"], "newline_ids": language.spec["newline_ids"], "stop_ids": sorted(language.stop_ids), "num_ids": language.spec["vocabulary"]}
        elif "kv" in request:
            arrays, start = list(look.kv.values()), time.perf_counter()
            copies = [array.copy() for array in arrays]
            found = {"mb": sum(array.nbytes for array in copies) / 1e6, "copy_ms": (time.perf_counter() - start) * 1e3}
        else:
            spent.clear()
            start = time.perf_counter()
            look = session.look(frame) if request["first"] else look
            # `cancel` is asked before every token: times[0] is when the first one can be chosen
            answer = look.ask(request["question"], looks=request["looks"], rule=request["rule"], max_tokens=request["max_tokens"],
                              cancel=lambda: times.append(time.perf_counter()) or False)
            done = time.perf_counter()
            stages = dict(answer.timing.stages_ms)
            if not request["first"]:
                stages.pop("encode_low")        # the look's own, of the first question
            rows, generation = made.pop()
            found = {"s": done - start, "first_s": times[0] - start, "last_s": times[-1] - start, "num": len(generation.ids), "tokens": generation.ids, "rows": rows, "stages_ms": stages, "room_ms": sum(spent)}
        print(json.dumps({**found, "peak_gb": peak_gb()}), file=answers, flush=True)


def peak_gb() -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


def rate(run: dict) -> float:
    """Tokens per second behind the first. The public code's last clock is at its last token, ours one step later at the end of the answer."""
    return (run["num"] - 1) / (run["last_s"] - run["first_s"]) if run["num"] > 1 else float("nan")


def compare(mine: dict, theirs: dict) -> str:
    same = next((i for i, (a, b) in enumerate(zip(mine["tokens"], theirs["tokens"])) if a != b), min(len(mine["tokens"]), len(theirs["tokens"])))
    if same == len(mine["tokens"]) == len(theirs["tokens"]):
        return f"all {same} tokens equal, {mine['rows']} rows read by both" if mine["rows"] == theirs["rows"] else f"tokens equal, but {mine['rows']} and {theirs['rows']} rows"
    gap = theirs["gaps"][same] if same < len(theirs["gaps"]) else 0.0
    return f"first {same} tokens equal, then the public code's two best logits are {gap:.1e} apart" + (": a near-tie" if gap < NEAR_TIE else "")


def measure(size: str, options, folder: Path) -> dict:
    from ps3_sdk.export.make_vlm import make_vlm
    checkpoint, frame = folder / size, folder / "frame.npy"
    write_checkpoint(checkpoint, size)
    np.save(frame, picture())
    plans = {name: folder / f"{size}-{name}.plan" for name in options.llm_precision}
    for name, plan in plans.items():
        make_vlm(str(checkpoint), plan, precision=options.precision, llm_precision=name, work_dir=folder / "work")
    workers = {name: Worker(sys.executable, __file__, "--as-ours", plan, frame, options.threads) for name, plan in plans.items()}
    workers["public"] = Worker(options.peer, Path(__file__).with_name("vila_public.py"), checkpoint, frame, options.threads)
    about = next(iter(workers.values())).ask(describe=True)
    shared = dict(looks=1, max_tokens=options.max_tokens)
    public = lambda i, **more: workers["public"].ask(**shared, **about["asks"][i], **{key: about[key] for key in ("image_id", "newline_ids", "stop_ids", "num_ids")},
                                                     **{"lower_id": False, "gaps": False, **more})
    mine = lambda name, i, rule=None: workers[name].ask(**shared, question=QUESTIONS[i], first=i == 0, rule=rule)
    truth, equal = [public(i, lower_id=True, gaps=True) for i in (0, 1)], {}
    for name in plans:      # also warms up
        equal[name] = [compare(mine(name, i, "patches"), truth[i]) for i in (0, 1)]
        print(f"{size}, {name} against the public code, question 1: {equal[name][0]}; question 2: {equal[name][1]}", flush=True)
    runs: dict[str, list[list[dict]]] = {name: [[], []] for name in workers}
    for i in range(options.rounds):
        for name in workers:
            for question in (0, 1):
                runs[name][question].append(public(question) if name == "public" else mine(name, question))
        print(f"  round {i + 1}, load {os.getloadavg()[0]:.1f}: " + " | ".join(f"{name} {of[0][-1]['s']:.2f} and {of[1][-1]['s']:.2f} s" for name, of in runs.items()), flush=True)
    copies = {name: workers[name].ask(kv=True) for name in plans}
    for worker in workers.values():
        worker.close()
    return summary(size, runs, copies, {name: all("equal, " in text and "all" in text or "near-tie" in text for text in texts) for name, texts in equal.items()}, checkpoint, plans)


def summary(size, runs, copies, equal, checkpoint, plans) -> dict:
    middle = lambda values: statistics.median(values)
    result = {"size": size, "checkpoint_mb": round(sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) / 1e6)}
    for name, of in runs.items():
        figures = {}
        for number, each in enumerate(of, 1):
            figures |= {f"first_token_s_{number}": middle(run["first_s"] for run in each), f"tokens_per_s_{number}": middle(map(rate, each)),
                        f"ask_s_{number}": middle(run["s"] for run in each)}
        last = of[0][-1]
        figures |= {"rows": last["rows"], "tokens": last["num"], "peak_gb": max(run["peak_gb"] for each in of for run in each)}
        if name != "public":
            ratio = lambda key, q: middle(theirs[key] / mine[key] for mine, theirs in zip(of[q], runs["public"][q]))
            figures |= {"ratio_first_token_1": ratio("first_s", 0), "ratio_first_token_2": ratio("first_s", 1), "ratio_ask_1": ratio("s", 0), "ratio_ask_2": ratio("s", 1),
                        "ratio_tokens_per_s": middle(rate(mine) / rate(theirs) for mine, theirs in zip(of[0], runs["public"][0])),
                        "second_saves_to_first_token": 1 - middle(b["first_s"] / a["first_s"] for a, b in zip(*of)), "second_saves": 1 - middle(b["s"] / a["s"] for a, b in zip(*of)),
                        "kv_mb": copies[name]["mb"], "kv_copy_ms": copies[name]["copy_ms"],
                        "kv_room_ms": middle(run["room_ms"] for run in of[0]), "kv_share": (copies[name]["copy_ms"] + middle(run["room_ms"] for run in of[0])) / 1e3 / figures["ask_s_1"], "equal": equal[name], "plan_mb": plans[name].stat().st_size / 1e6}
            stages = {stage: middle(run["stages_ms"].get(stage, 0.0) for run in of[0]) for stage in last["stages_ms"]}
            print(f"{size}, {name}, median ms per stage, question 1: " + ", ".join(f"{stage} {ms:.0f}" for stage, ms in stages.items()))
        else:
            print(f"{size}, public, median s per step: " + ", ".join(f"{step} {middle(run['steps_s'][step] for run in of[0]):.2f}" for step in last["steps_s"]))
        result[name] = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    for name in plans:
        f, p = result[name], result["public"]
        print(f"{size}, {name}: first token after {f['first_token_s_1']:.2f} s (public {p['first_token_s_1']:.2f} s, {f['ratio_first_token_1']:.1f} times), "
              f"{f['tokens_per_s_1']:.1f} tokens/s (public {p['tokens_per_s_1']:.1f}), ask {f['ask_s_1']:.2f} s ({p['ask_s_1']:.2f} s, {f['ratio_ask_1']:.1f} times), "
              f"{f['rows']} rows ({p['rows']}), peak {f['peak_gb']:.2f} GB ({p['peak_gb']:.2f} GB)")
        print(f"{size}, {name}: second question: first token after {f['first_token_s_2']:.2f} s ({100 * f['second_saves_to_first_token']:.0f} % sooner than of the first question; "
              f"public {p['first_token_s_2']:.2f} s), ask {f['ask_s_2']:.2f} s ({100 * f['second_saves']:.0f} % cheaper; public {p['ask_s_2']:.2f} s)")
        print(f"{size}, {name}: keys and values: {f['kv_mb']:.1f} MB from encode_low to encode_high, by address; one copy of them would take {f['kv_copy_ms']:.1f} ms; "
              f"the language model's arrays are made and filled in {f['kv_room_ms']:.1f} ms; together {100 * f['kv_share']:.2f} % of an ask")
    return result


def picture() -> np.ndarray:
    """(2160, 3840, 3) uint8, shapes and print, the same on every machine."""
    from ps3_sdk.export.check import sample_picture
    return sample_picture(2160, 3840)


def main() -> None:
    if sys.argv[1:2] == ["--as-ours"]:
        return ours(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="python of the environment that `make peer` makes")
    parser.add_argument("--size", nargs="+", default=["tiny", "mid"], choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "int8"], help="of the vision encoder")
    parser.add_argument("--llm-precision", nargs="+", default=["fp32", "int4"], choices=["fp32", "int4"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    from ps3_sdk.measure import machine
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(size, options, Path(folder)) for size in options.size]
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
