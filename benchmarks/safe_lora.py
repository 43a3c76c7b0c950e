# SPDX-License-Identifier: Apache-2.0
"""Safe LoRA on one weight: `SafeLoRA.score` against the formula written with dense matrices, in one run.

    python benchmarks/safe_lora.py [--size 4096] [--rank 8] [--repeats 9]

Prints times, ratios, extra memory and errors against fp64; exits 1 when a threshold is missed. The two are timed in
turn; ratios are of the fastest runs and, beside them, the median over the pairs. Needs as many idle cores as threads.
"""

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import torch

from moored.memory import forget_peak, peak_bytes
from moored.repairs.base import Delta, Layer
from moored.repairs.safe_lora import SafeLoRA

FASTER = 30.0
LEANER = 20.0
EXACT = 1e-6


@dataclass(frozen=True)
class Loaded:
    """A weight that is in memory already, so that no disk is timed."""

    tensor: torch.Tensor
    key: str = "weight"

    def read(self):
        """The tensor."""
        return self.tensor


def problem(size, rank):
    """Weights with the spread of a 7B model, V about 3 % of them, of which a part is low-rank as alignment is."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    base = 0.02 * draw(size, size)
    aligned = base + 0.0005 * draw(size, size) + 0.0005 * draw(size, 16) @ draw(16, size) / 4
    return aligned, base, 0.01 * draw(size, rank), draw(rank, size) / size**0.5


def dense(aligned, base, b, a):
    """C B and the cosine, as the formula reads."""
    v = aligned - base
    operator = v @ v.T / v.norm()
    projected = operator @ b
    moved, update = (projected @ a).flatten(), (b @ a).flatten()
    return projected, float(torch.nn.functional.cosine_similarity(moved, update, dim=0))


def streamed(aligned, base, b, a):
    """The same, with null and signed cosine on top."""
    layer = Layer(module="one", delta=Delta(b=b, a=a), aligned=Loaded(aligned), base=Loaded(base))
    score = SafeLoRA().score(layer)
    return score.candidate.b, score.cosine


METHODS = {"dense": dense, "streamed": streamed}


def timed(function, inputs):
    start = time.perf_counter()
    function(*inputs)
    return time.perf_counter() - start


def peak(name, size, rank):
    """Peak resident memory above the inputs, in a process that has run nothing of that size before [bytes]."""
    METHODS[name](*problem(64, rank))
    inputs = problem(size, rank)
    forget_peak()
    before = peak_bytes()
    METHODS[name](*inputs)
    return peak_bytes() - before


def peak_elsewhere(name, options):
    command = [sys.executable, __file__, "--size", str(options.size), "--rank", str(options.rank), "--peak", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapter")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of runs")
    parser.add_argument("--peak", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak, options.size, options.rank))
        return 0

    inputs = problem(options.size, options.rank)
    exact, exact_angle = dense(*[tensor.double() for tensor in inputs])
    errors = {}
    for name, function in METHODS.items():
        projected, angle = function(*inputs)
        errors[name] = abs(angle - exact_angle), float((projected - exact).norm() / exact.norm())
    seconds = {name: [] for name in METHODS}
    for _ in range(options.repeats):
        for name, function in METHODS.items():
            seconds[name].append(timed(function, inputs))
    memory = {name: peak_elsewhere(name, options) for name in METHODS}

    print(f"one {options.size} x {options.size} weight, r = {options.rank}, {torch.get_num_threads()} threads")
    for name in METHODS:
        best, middle = min(seconds[name]) * 1e3, statistics.median(seconds[name]) * 1e3
        angle, projected = errors[name]
        print(
            f"{name:9s} best {best:8.1f} ms  median {middle:8.1f} ms  extra memory {memory[name] / 2**20:7.1f} MiB"
            f"  cosine off by {angle:.1e}  C B off by {projected:.1e}"
        )
    faster = min(seconds["dense"]) / min(seconds["streamed"])
    pairs = statistics.median(d / s for d, s in zip(*seconds.values(), strict=True))
    leaner = memory["dense"] / max(1, memory["streamed"])
    checks = {
        f"{faster:.1f}x faster (median of pairs {pairs:.1f}x), at least {FASTER:g}x": faster >= FASTER,
        f"{leaner:.1f}x less extra memory, at least {LEANER:g}x": leaner >= LEANER,
        f"cosine within {errors['streamed'][0]:.1e} of fp64, at most {EXACT:g}": errors["streamed"][0] <= EXACT,
    }
    for text, ok in checks.items():
        print("ok    " if ok else "MISSED", text)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
