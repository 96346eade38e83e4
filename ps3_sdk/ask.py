"""One question about one frame or several, or several about one: what to look for, looking closely, and the answer."""
from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple, Sequence

from .answer import Answer, Timing, regions_from_map
from .encoding import Aim, block_side, look_closely, planned_blocks
from .errors import InputError
from .probability import calibrated
from .prompt import Prompt

SELECTIONS = ("top_down", "bottom_up")


def ask_together(seen: Sequence, prompt: str = "", *, prompt_embedding=None, tokens=None, looks=None, scales=None, choices=None, rule=None,
                 selection=None, smooth=False, batch=1, max_tokens=None, sampling=None, cancel=None, on_text=None) -> list[Answer]:
    """Answers in the order of `seen`, Looks of one session; arguments as in Session.ask.

    A language model reads all frames and gives one text, which every answer carries. Encoders are asked about each frame by itself.
    """
    session = seen[0].session
    if on_text is not None and not callable(on_text):
        raise InputError(f"[decode] on_text is {type(on_text).__name__}; a function that takes a piece of text is needed.")
    with session.running():
        choices = _checked(session, choices) if choices is not None else None
        timings = [Timing() for _ in seen]
        budget = session.budget(tokens, looks, scales)
        ids, query, read = look_for(seen, prompt, prompt_embedding, timings[0], selection)
        _check_room(seen, ids, budget, rule)
        encodings = look_closely([Aim(look, query) for look in seen], budget, timings, rule=rule, smooth=smooth, batch=batch)
        ranked = _ranked(session, choices, encodings, timings)
        words = Words()
        if ids is not None and choices is None:
            with timings[0].stage("decode"):
                words = _words(seen, ids, encodings, read, query, max_tokens, sampling, cancel, on_text)
        return [_answer(look, *each, query, words) for look, *each in zip(seen, encodings, ranked, timings)]


def ask_each(look, prompts: Sequence[str], *, tokens=None, looks=None, scales=None, choices=None, rule=None, selection=None, smooth=False, batch=1,
             max_tokens=None, sampling=None, cancel=None) -> list[Answer]:
    """Answers to several questions about one Look, in their order; arguments as in Look.ask_many."""
    session = look.session
    with session.running():
        if not isinstance(prompts, (list, tuple)) or not prompts:
            raise InputError(f"[ask] prompts is {type(prompts).__name__}; a list of at least one text is needed. For one question use ask().")
        choices = _checked(session, choices) if choices is not None else None
        timings, budget, asked = [Timing() for _ in prompts], session.budget(tokens, looks, scales), []
        if session.language is None and selection != "bottom_up":
            session.encode_prompts(prompts, timings)
        for prompt, timing in zip(prompts, timings):
            asked.append(look_for([look], prompt, None, timing, selection))
            _check_room([look], asked[-1][0], budget, rule)
            look.memory["read"] = asked[-1][2]
        encodings = look_closely([Aim(look, query) for _, query, _ in asked], budget, timings, rule=rule, smooth=smooth, batch=batch)
        ranked, answers = _ranked(session, choices, encodings, timings), []
        for (ids, query, read), encoding, each, timing in zip(asked, encodings, ranked, timings):
            words = Words()
            if ids is not None and choices is None:
                with timing.stage("decode"):
                    words = _words([look], ids, [encoding], read, query, max_tokens, sampling, cancel, None)
            answers.append(_answer(look, encoding, each, timing, query, words))
        return answers


def look_for(seen: Sequence, prompt: str, embedding, timing: Timing, selection: str | None = None):
    """Token ids (None without a language model), what to look for, and what the language model has read to know it."""
    session, language = seen[0].session, seen[0].session.language
    if selection is not None and selection not in SELECTIONS:
        raise InputError(f"[select] selection is {selection!r}; {' or '.join(SELECTIONS)} is needed.")
    if not isinstance(prompt, str) and (language is not None or embedding is None):
        raise InputError(f"[encode_prompt] the prompt is {type(prompt).__name__}; it must be a str. Pass vectors as prompt_embedding=.")
    by_saliency = selection == "bottom_up"
    if by_saliency and embedding is not None:
        raise InputError("[select] selection is bottom_up and prompt_embedding is given; one says to pick by saliency, the other by the prompt. Pass one of them.")
    if selection == "top_down" and embedding is None:
        _needs_prompt(session, language, prompt)
    asked = lambda: session.prior(prompt, "patches are picked bottom-up, by saliency, as asked")
    if language is None:
        return None, asked() if by_saliency else session.encode_prompt(prompt, embedding, timing), None
    known = seen[0].memory.get("read")
    with timing.stage("encode_prompt"):
        ids = language.ids([*seen, prompt])
        if embedding is not None:
            return ids, replace(session.encode_prompt(prompt, embedding), anywhere=selection is not None), known
        if by_saliency:
            return ids, asked(), known
        vector, read = language.ask(ids, [((look, "low"), look.rows) for look in seen], known)
        return ids, Prompt(prompt, vector, None, anywhere=selection is not None) if vector is not None else session.prior(prompt, "this model looks by saliency"), read


def _check_room(seen: Sequence, ids, budget, rule) -> None:
    """Before patches are encoded: whether the language model's context holds a row for each block of them."""
    session = seen[0].session
    r = block_side(session, rule)
    if ids is not None and r > 1:
        high = max(1, sum(map(sum, planned_blocks(session, budget, r))) // r ** 2)
        session.language.check_room(len(ids) + sum(len(look.rows) + high + len(session.language.spec["newline_ids"]) - 1 for look in seen) + 1)


def _needs_prompt(session, language, prompt: str) -> None:
    if language is None and not prompt.strip():
        raise InputError("[select] selection is top_down and the prompt is empty; there is nothing to look for. Pass a prompt, or leave selection out.")
    if language is not None and not language.looks_by_prompt:
        raise InputError(f"[select] selection is top_down; {session.bundle.path} was trained to look by saliency (look_close_mode after_image) and has no "
                         "top_down_prompt_head. Leave selection out.")


def _ranked(session, choices, encodings, timings) -> list[list]:
    return [session.rank(choices, encoding, timing) if choices is not None else [] for encoding, timing in zip(encodings, timings)]


class Words(NamedTuple):
    """What a language model said; see Answer."""
    text: str | None = None
    notes: tuple[str, ...] = ()
    confidence: float | None = None
    found: bool = True


def _words(seen, ids: list[int], encodings, read, query: Prompt, max_tokens, sampling, cancel, on_text) -> Words:
    """The language model's answer. What it read is kept: the next question shares the system text and the low-res rows."""
    language, frames = seen[0].session.language, []
    for look, encoding in zip(seen, encodings):
        high = language.high_rows(encoding.high_tokens, encoding.picked, encoding.prob)
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
    text, notes = stream.text.strip(), tuple(generation.notes)
    if generation.stopped != "stop id":
        notes += (f"the answer ended by {generation.stopped}",)
    elif not text:
        notes += ("the answer is empty: the model ended it before a word",)
    logprob, found = getattr(generation, "logprob", None), text != language.spec.get("not_seen")    # a user's own language model may have none
    if generation.stopped != "stop id" or not text:     # of words that may go on, or of none, the model told nothing
        logprob = None
    confidence = None if logprob is None else math.exp(logprob) if found else 1 - math.exp(logprob)
    if confidence is not None and found and "confidence" in language.spec and not query.anywhere:
        confidence = calibrated(confidence, max(float(encoding.prob.max()) for encoding in encodings), language.spec["confidence"])
    return Words(text, notes, confidence, found)


def _answer(look, encoding, ranked, timing: Timing, query: Prompt, words: Words) -> Answer:
    size = (look.frame.height, look.frame.width)
    return Answer(
        prompt=query.text, text=ranked[0].text if ranked else words.text, choices=ranked,
        confidence=ranked[0].prob if ranked else words.confidence, found=words.found,
        regions=regions_from_map(encoding.prob, encoding.picked, size, patch_px=encoding.patch_px), picked=encoding.picked, prob=encoding.prob,
        timing=look.timing + timing, frame_size=size, notes=encoding.notes + words.notes + look.session.notes, patch_px=encoding.patch_px, frame=look.frame)


def _checked(session, choices) -> list[str]:
    if not isinstance(choices, (list, tuple)) or not choices or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise InputError(f"[decode] choices is {choices!r}; it must be a list of texts, at least one and none empty. Pass choices=[\"red\", \"green\"].")
    session.needs_text_tower("choices cannot be compared")
    return list(choices)
