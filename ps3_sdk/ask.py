"""One question about one frame or several, or several about one: what to look for, looking closely, and the answer."""
from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple, Sequence

import numpy as np

from . import again
from .answer import Answer, Timing, regions_from_map
from .decode import cancelled
from .encoding import Aim, block_side, look_closely, planned_blocks
from .errors import InputError, RuntimeFailedError
from .probability import calibrated
from .prompt import Prompt

SELECTIONS = ("top_down", "bottom_up")
ENDED = {"cancelled": "the answer was cancelled", "max tokens": "the answer was cut at max_tokens", "context length": "the answer was cut where the language model's context ends",
         "failed": "the language model failed before the answer ended"}
BESIDE = ("rule", "smooth", "batch", "max_tokens", "sampling", "cancel")       # options that look_closely or the language model takes


class Asked(NamedTuple):
    """A question about some Looks of one session. ids: its tokens, None without a language model | query: what to look for | read: what the language model
    has read to know it | timings: one for each look."""
    seen: Sequence
    ids: list[int] | None
    query: Prompt
    read: object
    timings: list[Timing]


def ask_together(seen: Sequence, prompt: str = "", *, look_again=None, on_text=None, **options) -> list[Answer]:
    """Answers in the order of `seen`, Looks of one session; arguments as in Session.ask.

    A language model reads all frames and gives one text, which every answer carries. Encoders are asked about each frame by itself. An answer about one
    frame that is not sure is looked for again; see again.py.
    """
    if on_text is not None and not callable(on_text):
        raise InputError(f"[decode] on_text is {type(on_text).__name__}; a function that takes a piece of text is needed.")
    least = again.threshold(seen[0].session, look_again, _is_plain(options))
    if len(seen) > 1 or not least:
        return _ask_together(seen, prompt, on_text=on_text, **options)
    held = [again.Held(on_text), again.Held(on_text)]
    answer = _ask_together(seen, prompt, on_text=held[0], **options)[0]
    answer = _again(seen[0], [answer], least, options, lambda look, _: _ask_together([look], prompt, on_text=held[1], **options))[0]
    held[answer.part_px is not None].release()
    return [answer]


def _ask_together(seen: Sequence, prompt: str, *, prompt_embedding=None, tokens=None, looks=None, scales=None, choices=None, selection=None, on_text=None,
                  **options) -> list[Answer]:
    session = seen[0].session
    _check_names(options)
    with session.running():
        choices = _checked(session, choices) if choices is not None else None
        timings = [Timing() for _ in seen]
        budget = session.budget(tokens, looks, scales)
        asked = Asked(seen, *look_for(seen, prompt, prompt_embedding, timings[0], selection), timings)
        return _answered([asked], budget, choices, on_text=on_text, **options)[0]


def ask_each(look, prompts: Sequence[str], *, look_again=None, **options) -> list[Answer]:
    """Answers to several questions about one Look, in their order; arguments as in Look.ask_many."""
    least = again.threshold(look.session, look_again, _is_plain(options))
    answers = _ask_each(look, prompts, **options)
    return _again(look, answers, least, options, lambda other, due: _ask_each(other, [prompts[n] for n in due], **options))


def _again(look, answers: list[Answer], least: float, options: dict, ask) -> list[Answer]:
    """Answers about one Look, those that are not sure looked for again. ask(look, which of them) -> answers about another look. Where that fails, what was answered stands."""
    due: dict[object, list[int]] = {}
    for n, answer in enumerate(answers):
        if again.is_due(answer, least) and not cancelled(options.get("cancel"))():
            due.setdefault(again.edges_of(look, answer), []).append(n)
    due.pop(None, None)
    for edges, which in due.items():
        try:
            other = again.beside(look, edges)
            for n, second in zip(which, ask(other.look, which)):
                answers[n] = again.better(answers[n], second, other.part_px)
        except (RuntimeFailedError, MemoryError) as error:      # the memory of a GPU that is full, say
            for n in which:
                answers[n] = replace(answers[n], notes=answers[n].notes + (f"was not looked at again: {error or 'memory is full'}",))
    return answers


def _is_plain(options: dict) -> bool:
    """Whether nothing is said of where and how much to look, no choices are given, and no chance is asked for."""
    return all(options.get(name) is None for name in ("tokens", "looks", "scales", "selection", "choices", "sampling"))


def _unused(session, options: dict, choices) -> tuple[str, ...]:
    """A note where options of answers in words are given and none comes."""
    given = [name for name in ("max_tokens", "sampling", "cancel", "on_text") if options.get(name) is not None]
    if not given or session.language is not None and choices is None:
        return ()
    return (f"{', '.join(given)}: for answers in words; here " + ("none comes, this bundle has no language model" if session.language is None else "choices are ranked"),)


def _ask_each(look, prompts: Sequence[str], *, tokens=None, looks=None, scales=None, choices=None, selection=None, **options) -> list[Answer]:
    session = look.session
    _check_names(options)
    with session.running():
        if not isinstance(prompts, (list, tuple)) or not prompts:
            raise InputError(f"[ask] prompts is {type(prompts).__name__}; a list of at least one text is needed. For one question use ask().")
        choices = _checked(session, choices) if choices is not None else None
        timings, budget, asked = [Timing() for _ in prompts], session.budget(tokens, looks, scales), []
        if session.language is None and selection != "bottom_up":
            session.encode_prompts(prompts, timings)
        for prompt, timing in zip(prompts, timings):
            asked.append(Asked([look], *look_for([look], prompt, None, timing, selection), [timing]))
            look.memory["read"] = asked[-1].read
        return [answers[0] for answers in _answered(asked, budget, choices, **options)]


def _answered(asked: Sequence[Asked], budget, choices, *, rule=None, smooth=False, batch=1, max_tokens=None, sampling=None, cancel=None, on_text=None) -> list[list[Answer]]:
    """Per question an answer for each of its looks. Where a budget is several glances, those that found nothing look again, elsewhere."""
    session, stop = asked[0].seen[0].session, cancelled(cancel)
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise InputError(f"[decode] max_tokens is {max_tokens!r}; a whole number of at least 1 is needed.")
    if choices is not None:
        session.check_pooled(budget.num_patches)        # before anything is encoded
    glances = [budget] if smooth is not False else session.glances(budget, asked[0].query.anywhere)
    for each in asked:
        _check_room(each.seen, each.ids, glances[0], rule)
    waiting, kept, looked = list(range(len(asked))), {}, {}
    for n, part in enumerate(glances):
        aims, timings = zip(*((Aim(look, asked[i].query, passed=n), timing) for i in waiting for look, timing in zip(asked[i].seen, asked[i].timings)))
        encodings = iter(look_closely(aims, replace(part, looks=[]) if stop() else part, timings, rule=rule, smooth=smooth, batch=batch))
        for i in waiting:
            own, each = [next(encodings) for _ in asked[i].seen], asked[i]
            looked.setdefault(i, []).append(own)
            words, ranked = Words(), _ranked(session, choices, own, each.timings)
            if each.ids is not None and choices is None:
                with each.timings[0].stage("decode"):
                    words = _words(each.seen, each.ids, own, each.read, each.query, max_tokens, sampling, cancel, on_text, more=n + 1 < len(glances))
            if n == 0 or words.found:
                kept[i] = own, ranked, words
            elif not words.whole:                   # cancelled while it looked elsewhere: what it said before stands
                kept[i] = *kept[i][:2], kept[i][2]._replace(notes=kept[i][2].notes + words.notes, whole=False)
            elif words.confidence is not None:      # that it is there after all: as sure as the glance that was surest of it
                kept[i] = *kept[i][:2], kept[i][2]._replace(confidence=max(kept[i][2].confidence, words.confidence))
        waiting = [i for i in waiting if not kept[i][2].found and kept[i][2].whole]
        if not waiting:
            break
    unused = _unused(session, {"max_tokens": max_tokens, "sampling": sampling, "cancel": cancel, "on_text": on_text}, choices)
    return [_answers(each, *kept[i], looked[i], unused) for i, each in enumerate(asked)]


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
        vector, read = language.ask(ids, [(look.name, look.rows) for look in seen], known)
        return ids, Prompt(prompt, vector, None, anywhere=selection is not None) if vector is not None else session.prior(prompt, "this model looks by saliency"), read


def _check_names(options: dict) -> None:
    for name in options:
        if name not in BESIDE:
            raise TypeError(f"ask() got an unexpected keyword argument {name!r}; Session.ask says which there are")


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
    """What a language model said; see Answer. whole: it ended by itself."""
    text: str | None = None
    notes: tuple[str, ...] = ()
    confidence: float | None = None
    found: bool = True
    whole: bool = True


def _words(seen, ids: list[int], encodings, read, query: Prompt, max_tokens, sampling, cancel, on_text, more: bool) -> Words:
    """The language model's answer. What it read is kept: the next question shares the system text and the low-res rows. more: if it found nothing, this is not the last."""
    language, frames = seen[0].session.language, []
    if cancelled(cancel)():     # before the language model reads, which takes longer than all else
        return Words("", (ENDED["cancelled"],), None, language.spec.get("not_seen") is None, whole=False)
    for look, encoding in zip(seen, encodings):
        high = language.high_rows(encoding.high_tokens, encoding.picked, encoding.prob)
        high = high if len(high) else look.rows[:1]             # the public model's stand-in where no block is complete
        frames.append([(look.name, look.rows), (object(), high)])
    read = language.read(language.assemble(ids, frames), read)
    seen[0].memory["read"] = read
    stream, generation = language.stream(), language.answer(read, max_tokens=max_tokens, sampling=sampling, cancel=cancel)

    def say(piece: str) -> None:
        if piece and on_text is not None:
            on_text(piece)

    pieces: list[str] = []
    tell = pieces.append if more else say

    for token in generation:
        tell(stream.push(token.id))
    tell(stream.finish())
    text, notes = stream.text.strip(), tuple(generation.notes)
    if generation.stopped != "stop id":
        notes += (ENDED.get(generation.stopped, f"the answer ended: {generation.stopped}"),)
    elif not text:
        notes += ("the answer is empty: the model ended it before a word",)
    logprob, whole, not_seen = getattr(generation, "logprob", None), generation.stopped == "stop id", language.spec.get("not_seen")   # a user's own language model may have none
    found = text != not_seen if whole else not_seen is None or not not_seen.startswith(text)        # what was cut may have become that
    if found:
        say("".join(pieces))
    if not whole or not text:     # of words that may go on, or of none, the model told nothing
        logprob = None
    confidence = None if logprob is None else math.exp(logprob) if found else 1 - math.exp(logprob)
    if confidence is not None and found and "confidence" in language.spec and not query.anywhere:
        confidence = calibrated(confidence, max(encoding.best_seen for encoding in encodings), language.spec["confidence"])
    return Words(text, notes, confidence, found, whole)


def _answers(asked: Asked, encodings, ranked, words: Words, looked: list[list], notes: tuple[str, ...]) -> list[Answer]:
    """looked: the encodings of every glance, those of the one that was answered among them | notes: of every answer."""
    notes += words.notes if len(looked) == 1 else words.notes + (f"looked at {len(looked)} places one after another, the most probable first",)
    answers = []
    for n, (look, encoding, choices, timing) in enumerate(zip(asked.seen, encodings, ranked, asked.timings)):
        size = (look.frame.height, look.frame.width)
        picked = {px: np.unique(np.concatenate([glance[n].picked[px] for glance in looked])) for px in encoding.picked} if len(looked) > 1 else encoding.picked
        answers.append(Answer(
            prompt=asked.query.text, text=choices[0].text if choices else words.text, choices=choices,
            confidence=choices[0].prob if choices else words.confidence, found=words.found,
            regions=regions_from_map(encoding.prob, encoding.picked, size, patch_px=encoding.patch_px), picked=picked, prob=encoding.prob,
            timing=look.timing + timing, frame_size=size, notes=encoding.notes + notes + look.session.notes, patch_px=encoding.patch_px, frame=look.frame))
    return answers


def _checked(session, choices) -> list[str]:
    if not isinstance(choices, (list, tuple)) or not choices or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise InputError(f"[decode] choices is {choices!r}; it must be a list of texts, at least one and none empty. Pass choices=[\"red\", \"green\"].")
    session.needs_text_tower("choices cannot be compared")
    return list(choices)
