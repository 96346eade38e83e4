"""How a training uses its machine: one process per core or GPU whose gradients are averaged, short products."""
from __future__ import annotations

import argparse
import atexit
import cProfile
import ctypes
import os
import pstats
import signal
import sys
import tempfile
from contextlib import contextmanager
from typing import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ps3_sdk.errors import Ps3Error
from ps3_sdk.export.stop import ended_by_sigterm

PR_SET_PDEATHSIG = 1        # of Linux's prctl
ENDING = 20                 # seconds that a process gets to end by itself


def command(main: Callable[[], None]) -> None:
    """main() of a step: by Ctrl-C or SIGTERM it ends without a word, and what is raised on purpose is one line."""
    try:
        with ended_by_sigterm():
            main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Ps3Error as error:
        sys.exit(str(error))


def as_child(work: Callable, *arguments) -> None:
    """work(*arguments) in a process of its own."""
    ended_by_parent()
    work(*arguments)


def ended_by_parent() -> None:
    """At the start of a process: Ctrl-C is for its parent, whose SIGTERM ends it at once, as does the parent's own end, on Linux."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="each takes its own batch; on CPUs take one per core")
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster on CPUs, after a minute")
    parser.add_argument("--seed", type=int, default=0)


def launch(work: Callable[[argparse.Namespace, int], None], options: argparse.Namespace) -> None:
    """work(options, rank) in options.processes processes; the first failure ends all of them, as does whatever ends this one."""
    if options.processes == 1:
        _prepare(options)
        return work(options, 0)
    with tempfile.TemporaryDirectory() as folder:
        together = torch.multiprocessing.spawn(_one, (work, options, f"file://{folder}/meeting"), nprocs=options.processes, join=False)
        try:
            while not together.join():
                pass
        finally:
            end(together.processes)


def end(processes) -> None:
    """Ends those that have not ended; each ends its own."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(ENDING)
        process.kill()


def _one(rank: int, work, options: argparse.Namespace, meeting: str) -> None:
    ended_by_parent()
    code = 1
    try:
        with ended_by_sigterm():        # what work() began ends with it
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.processes))
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.processes)
            _prepare(options)
            work(options, rank)
            dist.destroy_process_group()
        code = 0
    finally:
        atexit.register(os._exit, code)     # all is closed then but gloo's own thread, which now and then is not done when its object goes, and that aborts the process


def _prepare(options: argparse.Namespace) -> None:
    torch.set_float32_matmul_precision("high")      # on GPUs; networks this small wait for their kernels to be launched, and bfloat16 needs more of them


def average(parameters: list[Tensor]) -> None:
    """Gradients become their means over all processes."""
    if not dist.is_initialized():
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = mean.view_as(parameter)


@torch.no_grad()
def as_the_first(parameters: list[Tensor]) -> None:
    """Parameters become the first process's, in all of them: averaged gradients are worth nothing where weights differ."""
    if dist.is_initialized():
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)


def agreed(value: float) -> float:
    """The first process's value, in all of them."""
    if not dist.is_initialized():
        return value
    value = torch.tensor([value])
    dist.broadcast(value, 0)
    return float(value)


def shared(stack: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
    """work(stack), which keeps shapes and takes each entry by itself; processes that hold the same stack do a share of it each."""
    if not dist.is_initialized():
        return work(stack)
    count, rank, out = dist.get_world_size(), dist.get_rank(), torch.zeros_like(stack)
    if len(stack) > rank:
        out[rank::count] = work(stack[rank::count])
    dist.all_reduce(out)
    return out


class WholeAttention(TorchFunctionMode):
    """Attention in float32. On CPUs the fused one is faster so than products of matrices in bfloat16, and its own backward pass in bfloat16 is slower than either (torch 2.13)."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return function(*(part.float() for part in args), **(kwargs or {}))


@contextmanager
def half(options: argparse.Namespace):
    """Matrix products in bfloat16 where the processor multiplies them faster than float32."""
    if torch.device(options.device).type == "cpu" and multiplies_bfloat16("cpu"):
        with torch.autocast("cpu", torch.bfloat16), WholeAttention():
            yield
    else:
        yield


def multiplies_bfloat16(device: str | torch.device) -> bool:
    return torch.device(device).type != "cpu" or torch.cpu._is_avx512_bf16_supported()


def compiled(function: Callable, options: argparse.Namespace) -> Callable:
    return torch.compile(function, dynamic=False) if options.compile else function


class Profile:
    """Where the time of `count` steps goes, after `skipped` others: printed once, first what the host's functions took in the last `count` of these others
    (what waits for data or for the GPU shows there), then every operator, the GPU's time first where there is one."""

    def __init__(self, skipped: int, count: int):
        from torch.profiler import ProfilerActivity, profile, schedule
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._at, self._from, self._skipped, self._end, self._host = 0, max(1, skipped - count), skipped, skipped + count + 1, cProfile.Profile()
        self._profile = profile(activities=activities, schedule=schedule(wait=skipped, warmup=1, active=count, repeat=1), on_trace_ready=self._print)
        self._profile.start()

    def _print(self, profile) -> None:
        sort = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=sort, row_limit=25, max_name_column_width=60), flush=True)

    def step(self) -> None:
        """After each step."""
        if self._at == self._end:
            return
        self._at += 1
        if self._at == self._skipped:
            self._host.disable()
            for order in ("tottime", "cumulative"):
                pstats.Stats(self._host).strip_dirs().sort_stats(order).print_stats(25)
        self._profile.step()
        if self._at == self._from:
            self._host.enable()
        if self._at == self._end:
            self._profile.stop()
