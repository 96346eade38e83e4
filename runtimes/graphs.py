"""Runs of equal sizes at equal addresses, captured once as a CUDA graph and launched from then on.

A graph is of the state that its execution context had, and means nothing once the context is told other sizes or addresses. So each has a context of
its own, which is told once: the second run goes plainly through it, as the vendor wants before a capture, the third is captured and launched.
Source: NVIDIA TensorRT, "CUDA Graphs": one context per captured graph, memory shared between them.
"""
from __future__ import annotations

import gc
from collections import OrderedDict
from typing import Callable, Hashable

from .cuda_driver import CudaError

KEPT = 8         # of sizes and addresses; a camera loop needs two or three


class Kept:
    """context: what only this graph's runs go through, None where there is none | graph: the driver's handle, 0: it cannot be captured, None: not yet tried."""

    def __init__(self, context, graph: int | None = None):
        self.context, self.graph = context, graph


class Graphs:
    """new_context(index): of a profile, None where there is no memory for one | enqueue(context): one plain run, on the stream that run() gets."""

    def __init__(self, driver, new_context: Callable, enqueue: Callable):
        self._driver, self._new_context, self._enqueue = driver, new_context, enqueue
        self._stream = driver.new_stream()      # nobody else's work may come into a capture
        self._kept: OrderedDict[Hashable, Kept | None] = OrderedDict()

    def run(self, key: Hashable, index: int, usual, tell: Callable, stream: int) -> None:
        """One run on `stream`. key: its sizes and addresses | index: of the profile | usual: the context for what was not run before | tell(context): what the key stands for."""
        if key not in self._kept:
            tell(usual)
            self._enqueue(usual, stream)
            self._kept[key] = None
            while len(self._kept) > KEPT:
                self._let_go(self._kept.popitem(last=False)[1])
            return None
        self._kept.move_to_end(key)
        kept = self._kept[key]
        if kept is not None and kept.graph is None:
            kept.graph = self._captured(kept.context)
        if kept is not None and kept.graph:
            return self._driver.launch(kept.graph, stream)
        if kept is None:
            context = self._new_context(index)
            tell(context or usual)
            self._enqueue(context or usual, stream)
            self._kept[key] = Kept(context, None if context is not None else 0)
            return None
        if kept.context is None:
            tell(usual)
        return self._enqueue(kept.context or usual, stream)

    def _captured(self, context) -> int:
        """A graph of one run, 0 where there can be none."""
        driver, stream = self._driver, self._stream
        if not getattr(context.vendor, "is_stream_capturable", lambda stream: True)(stream):
            return 0
        try:
            driver.begin_capture(stream)
        except CudaError as error:
            if error.lost:
                raise
            return 0
        worked, graph, collects = False, 0, gc.isenabled()
        gc.disable()        # an array that is forgotten meanwhile would be freed, which no capture survives
        try:
            worked = context.vendor.execute_async_v3(stream)
        finally:
            graph = driver.end_capture(stream)
            if collects:
                gc.enable()
            if graph and not worked:
                driver.destroy_graph(graph)
        return graph if worked else 0

    def _let_go(self, kept: Kept | None) -> None:
        if kept is not None and kept.graph:
            self._driver.destroy_graph(kept.graph)

    def close(self) -> None:
        while self._kept:
            self._let_go(self._kept.popitem()[1])
        self._driver.destroy_stream(self._stream)
