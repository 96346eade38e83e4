"""One question about one frame or several: what to look for, looking closely at each frame, and the answer."""
from __future__ import annotations

from typing import Sequence

from .answer import Answer, Timing, regions_from_map
from .errors import InputError
from .prompt import Prompt


def ask_together(seen: Sequence, prompt: str = "", *, prompt_embedding=None, tokens=None, looks=None, scales=None, choices=None, rule=None,
                 max_tokens=None, sampling=None, cancel=None, on_text=None) -> list[Answer]:
    """Answers in the order of `seen`, Looks of one session; arguments as in Session.ask.

    A language model reads all frames and gives one text, which every answer carries. Encoders are asked about each frame by itself.
    """
    session = seen[0].session
    session._open()
    choices = _checked(choices) if choices is not None else None
    timings = [look.timing + Timing() for look in seen]
    budget = session.budget(tokens, looks, scales)
    ids, query, read = look_for(seen, prompt, prompt_embedding, timings[0])
    encodings, ranked, text, notes = [], [[] for _ in seen], None, ()
    for i, look in enumerate(seen):
        own = Timing()
        encodings.append(look.encode_for(query, budget, own, rule))
        if choices is not None:
            ranked[i] = session.rank(choices, encodings[i], own)
        timings[i] += own
    if ids is not None and choices is None:
        with timings[0].stage("decode"):
            text, notes = _words(seen, ids, encodings, read, max_tokens, sampling, cancel, on_text)
    return [_answer(*each, query, text, notes) for each in zip(seen, encodings, ranked, timings)]


def look_for(seen: Sequence, prompt: str, embedding, timing: Timing):
    """Token ids (None without a language model), what to look for, and what the language model has read to know it."""
    session, language = seen[0].session, seen[0].session.language
    if language is None:
        return None, session.encode_prompt(prompt, embedding, timing), None
    if not isinstance(prompt, str):
        raise InputError(f"[encode_prompt] the prompt is {type(prompt).__name__}; it must be a str.")
    known = seen[0].memory.get("read")
    with timing.stage("encode_prompt"):
        ids = language.ids([*seen, prompt])
        if embedding is not None:
            return ids, session.encode_prompt(prompt, embedding), known
        vector, read = language.ask(ids, [((look, "low"), look.rows) for look in seen], known)
        return ids, Prompt(prompt, vector, None) if vector is not None else session.prior(prompt, "this model looks by saliency"), read


def _words(seen, ids: list[int], encodings, read, max_tokens, sampling, cancel, on_text) -> tuple[str, tuple[str, ...]]:
    """The language model's answer. What it read is kept: the next question shares the system text and the low-res rows."""
    language, frames = seen[0].session.language, []
    for look, encoding in zip(seen, encodings):
        high = language.high_rows(encoding.high_tokens, encoding.picked)
        high = high if len(high) else look.rows[:1]             # the public model's stand-in where no block is complete
        frames.append([((look, "low"), look.rows), (object(), high)])
    read = language.read(language.assemble(ids, frames), read)
    seen[0].memory["read"] = read
    stream, generation = language.stream(), language.answer(read, max_tokens=max_tokens, sampling=sampling, cancel=cancel)

    def say(piece: str) -> None:
        if piece and on_text is not None:
            on_text(piece)

    for token in generation:
        say(stream.push(token.id))
    say(stream.finish())
    notes = generation.notes + ((f"the answer ended by {generation.stopped}",) if generation.stopped != "stop id" else ())
    return stream.text.strip(), notes


def _answer(look, encoding, ranked, timing: Timing, query: Prompt, text: str | None, notes: tuple[str, ...]) -> Answer:
    size = (look.frame.height, look.frame.width)
    return Answer(
        prompt=query.text, text=ranked[0].text if ranked else text, choices=ranked,
        regions=regions_from_map(encoding.prob, encoding.picked, size, patch_px=encoding.patch_px), picked=encoding.picked, prob=encoding.prob,
        timing=timing, frame_size=size, notes=encoding.notes + notes + look.session.notes, patch_px=encoding.patch_px, frame=look.frame)


def _checked(choices) -> list[str]:
    if not isinstance(choices, (list, tuple)) or not choices or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise InputError(f"[decode] choices is {choices!r}; it must be a list of texts, at least one and none empty. Pass choices=[\"red\", \"green\"].")
    return list(choices)
