"""How far a language model's network is from the PyTorch reference, on its own weights.

    python -m ps3_sdk.export.llm_check FOLDER      runs a large network in a process of its own, as apart.py does; see DecoderApart
"""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ps3_sdk.decode import Decoder, DecoderSpec
from ps3_sdk.errors import ExportError, RuntimeFailedError

from .apart import Placed
from .child import module

HEAD_ROWS = 4096    # of the language model's head read at a time

def read_steps(decoder: Decoder, sequence: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Hidden states (1 + steps, width) and logits (1 + steps, vocabulary) behind `rows` rows, read in two parts, and behind each
    further row of the sequence, read one by one; None where the network gives NaN."""
    try:
        state = decoder.prefill(sequence[rows // 2:rows], decoder.prefill(sequence[:rows // 2]))
        states = [state]
        for row in sequence[rows:]:
            states.append(decoder.prefill(row[None], states[-1]))
    except RuntimeFailedError:      # this precision cannot hold these weights
        return None
    return np.stack([state.hidden for state in states]), np.stack([state.logits for state in states])


class DecoderApart:
    """A decoder whose network runs in a process of its own, without PyTorch. draft: see apart.Apart."""

    def __init__(self, draft, name: str, spec: DecoderSpec):
        entry = draft.manifest["networks"][name]
        self.spec, self._folder = spec, Path(draft.path).parent
        self._request = {"path": str(draft.path), "network": name, "entry": entry, "spec": asdict(spec),
                         "places": {member: (draft.offset(member), draft.members[member]) for member in (entry["file"], entry["weights"])}}

    def read_steps(self, sequence: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray] | None:
        """As the function of this name. Raises ExportError when the process fails."""
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".ps3-export-") as place:
            folder = Path(place)
            np.save(folder / "sequence.npy", sequence)
            (folder / "request.json").write_text(json.dumps({**self._request, "rows": rows}))
            result = subprocess.run(module("ps3_sdk.export.llm_check", place), stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if result.returncode:
                why = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1][:400]
                raise ExportError(f"[check] the language model did not run: {why} Nothing was written. Free some memory; if that does not help, report it.")
            return (np.load(folder / "hidden.npy"), np.load(folder / "logits.npy")) if (folder / "hidden.npy").exists() else None


def measure_llm(decoder: Decoder | DecoderApart, reference, embed, *, rows: int = 64, steps: int = 32, seed: int = 0, streamed=None) -> dict:
    """Compare a network with the reference.

    Args:
        reference: reference.vila.llm.Decoder, f32 | embed: ids -> rows, a TokenEmbedding.
        rows, steps: random tokens that are prefilled in two parts, and that follow one by one.
        streamed: the Streamed of a reference on torch's meta device.
    Returns:
        {"hidden", "logits": largest difference over the largest value, inf where the network gave NaN; "argmax_agreement": share of
        steps with the same most probable id; "against", "inputs": in words}.
    """
    import torch

    from .check import relative_error
    spec = decoder.spec
    rows = min(rows, max(spec.context_length - 2, 1))
    steps = min(steps, max(spec.context_length - rows - 1, 1))
    ids = np.random.Generator(np.random.PCG64(seed)).integers(0, spec.vocabulary, rows + steps)
    sequence = embed(ids)
    with torch.inference_mode(), streamed.resident("model.norm.") if streamed is not None else nullcontext():
        hidden = reference(torch.from_numpy(np.array(sequence, np.float32))[None])[0][0, rows - 1:].clone()
        if streamed is None:
            logits = reference.logits(hidden)
        else:       # the head may be the largest matrix of all
            head = streamed.checkpoint.rows("lm_head.weight" if reference.lm_head is not None else "model.embed_tokens.weight", HEAD_ROWS)
            logits = torch.cat([hidden @ torch.from_numpy(piece).T for piece in head], dim=1)
        logits = logits[:, :spec.vocabulary].numpy()
    against = {"against": f"PyTorch {torch.__version__.split('+')[0]} float32", "inputs": f"{rows} random tokens in two parts, {steps} more one by one"}
    found = decoder.read_steps(sequence, rows) if isinstance(decoder, DecoderApart) else read_steps(decoder, sequence, rows)
    if found is None:
        return {"hidden": float("inf"), "logits": float("inf"), "argmax_agreement": 0.0, **against}
    return {"hidden": relative_error(found[0], hidden.numpy()), "logits": relative_error(found[1], logits),
            "argmax_agreement": float((found[1].argmax(1) == logits.argmax(1)).mean()), **against}


def main(folder: Path) -> None:
    from ps3_sdk.runtimes import ort
    request = json.loads((folder / "request.json").read_text())
    placed = Placed(Path(request["path"]), {"networks": {request["network"]: request["entry"]}}, request["places"])
    found = read_steps(Decoder(ort.load(placed, request["network"]), DecoderSpec(**request["spec"])), np.load(folder / "sequence.npy"), request["rows"])
    for name, array in zip(("logits", "hidden"), found[::-1] if found is not None else ()):
        np.save(folder / f"{name}.npy", array)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
