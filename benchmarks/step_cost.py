# SPDX-License-Identifier: Apache-2.0
"""Time and memory of an optimizer step under every defence, against the same trainer undefended, in one process.

    python benchmarks/step_cost.py                       # a random Llama of 25M weights, LoRA r=8, all defences
    python benchmarks/step_cost.py --only vaccine t_vaccine --rounds 5
    python benchmarks/step_cost.py --model smollm2 --steps 6 --only lisa

Runs take turns (undefended, Lisa, Vaccine ...) over several rounds, so that a busy machine hits all of them alike; the
ratio is the median over rounds of defended / undefended seconds per step. What is done once, before the first step
(scores, Fisher information), is timed apart, in undefended steps. Activations are the most bytes that autograd held
for backward at one time in a step, weights left out (mean over steps, and the worst step): exact on any machine. Peak
memory of the whole process is measured in a fresh process per run. Exit code 1 if a ratio is over its threshold.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
)

from moored.catalogue import catalogue, make
from moored.data.chat import AnswerCollator, encode
from moored.data.synthetic import SETS
from moored.data.tiny import tiny_tokenizer
from moored.defenses.base import Defense
from moored.hf import recompute
from moored.hf.loaders import load_model, load_tokenizer
from moored.memory import peak_bytes
from moored.protect import protect
from moored.study.environment import commit, machine, versions

warnings.filterwarnings("ignore")
logging.set_verbosity_error()

UNDEFENDED = "undefended"
ELSEWHERE = {"bea", "risk_averse"}
"""What cannot stand beside the others: BEA adds rows of another length, RiskAverse needs a trainer of rewards."""
PARAMETERS = {
    "lisa": ("lisa", {"rho": 1.0, "align_steps": 2, "user_steps": 2}),
    "vaccine_every_100": ("vaccine", {"every": 100}),
    "t_vaccine": ("t_vaccine", {"sample_steps": 1, "probability_steps": 1000}),
    "safe_instr": ("safe_instr", {"n": 4}),
}
"""Runs whose name or parameters are not those of the defence itself."""
TIME_LIMIT = {"lisa": 1.05, "vaccine": 2.1, "vaccine_every_100": 1.05, "booster": 3.1}
"""Ratios to the undefended step."""
MEMORY_LIMIT = 1.1
"""Of the whole process, for Lisa and Vaccine."""
LENGTH, ANSWER = 64, 24
"""Tokens of a row, and how many of them, at its end, are learnt."""


class Clock(TrainerCallback):
    """Seconds of every optimizer step, and of what came before the first."""

    def __init__(self):
        self.seconds, self.born, self.before = [], time.perf_counter(), 0.0

    def on_step_begin(self, *args, **kwargs):
        """Start the clock."""
        self.start = time.perf_counter()
        self.before = self.before or self.start - self.born

    def on_step_end(self, *args, **kwargs):
        """Stop it."""
        self.seconds.append(time.perf_counter() - self.start)


class Held:
    """Bytes that autograd holds for backward, without weights; memory that several tensors share counts once."""

    def __init__(self, model):
        self.weights = {w.untyped_storage().data_ptr() for w in model.parameters()}
        self.holders = Counter()
        self.now = self.most = 0

    @contextmanager
    def counting(self):
        """Count inside. Hooks inside of hooks hide from the outer ones what they keep, so they count by themselves."""
        hooks = torch.autograd.graph.saved_tensors_hooks

        def counted(pack, unpack):
            def keep(tensor):
                kept = pack(tensor)
                return Kept(self, kept) if isinstance(kept, torch.Tensor) else kept

            return hooks(keep, lambda kept: kept.tensor if isinstance(kept, Kept) else unpack(kept))

        recompute.saved_tensors_hooks = counted
        try:
            with hooks(lambda t: Kept(self, t), lambda kept: kept.tensor):
                yield
        finally:
            recompute.saved_tensors_hooks = hooks


class Kept:
    """A tensor that is held until this object goes."""

    def __init__(self, held, tensor):
        storage = tensor.untyped_storage()
        # Detached: a node that keeps its own output would otherwise keep itself.
        self.held, self.tensor, self.memory, self.count = held, tensor.detach(), storage.data_ptr(), storage.nbytes()
        if self.memory in held.weights:
            return
        held.holders[self.memory] += 1
        if held.holders[self.memory] == 1:
            held.now += self.count
            held.most = max(held.most, held.now)

    def __del__(self):
        if self.memory in self.held.weights:
            return
        self.held.holders[self.memory] -= 1
        if not self.held.holders[self.memory]:
            self.held.now -= self.count


def runs(only):
    """Names of runs with their defence and its parameters."""
    names = [name for name in catalogue("defenses") if name not in ELSEWHERE]
    every = {UNDEFENDED: None} | {name: (name, {}) for name in names} | PARAMETERS
    return {name: every[name] for name in every if not only or name in (UNDEFENDED, *only)}


def model_of(name):
    """A tokenizer and a model with LoRA on every linear layer."""
    torch.manual_seed(0)
    if name != "random":
        tokenizer, base = load_tokenizer(name), load_model(name)
    else:
        tokenizer, base = tiny_tokenizer(), LlamaForCausalLM(shape())
    return tokenizer, get_peft_model(
        base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def shape():
    """25M weights."""
    return LlamaConfig(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
    )


@cache
def base_folder():
    """A model before alignment on disk: other random weights of the same shape."""
    folder = tempfile.mkdtemp()
    torch.manual_seed(1)
    LlamaForCausalLM(shape()).save_pretrained(folder)
    return folder


def rows_of(role, tokenizer, count, tokenised):
    """Rows of a role; tokenised rows have the same length, so that steps are alike."""
    harmful = {row.question for row in SETS["alignment-pairs"](0)}
    name = "alignment-pairs" if role == "harmful" else "alignment"
    rows = sorted((r for r in SETS[name](0) if r.question in harmful), key=lambda r: r.question)[:count]
    if not tokenised:
        return [replace(row, source="harmful" if role == "harmful" else "alignment") for row in rows]
    ids = [(encode(tokenizer, row, max_length=4096)["input_ids"] * LENGTH)[:LENGTH] for row in rows]
    unlearnt = [-100] * (LENGTH - ANSWER)
    return Dataset.from_list(
        [{"input_ids": i, "attention_mask": [1] * LENGTH, "labels": unlearnt + i[-ANSWER:]} for i in ids]
    )


def build(run, model, steps):
    """A trainer and its clock."""
    tokenizer, peft = model_of(model)
    clock = Clock()
    args = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps + 1,
        per_device_train_batch_size=8,
        learning_rate=1e-4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=peft,
        args=args,
        train_dataset=rows_of("user", tokenizer, 8 * (steps + 2), tokenised=True),
        processing_class=tokenizer,
        data_collator=AnswerCollator(tokenizer.pad_token_id),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    if run is not None:
        name, parameters = run
        defense = make("defenses", name, **parameters)
        dressed = type(defense).dress is not Defense.dress
        roles = {
            str(need): base_folder() if need == "base" else rows_of(str(need), tokenizer, 32, tokenised=not dressed)
            for need in defense.needs()
        }
        clock.born = time.perf_counter()
        protect(trainer, defense, **roles)
    return trainer, clock


def timed(run, model, steps):
    """Median seconds per step, the first left out (it warms caches, and `every=100` perturbs it); seconds before."""
    trainer, clock = build(run, model, steps)
    trainer.train()
    return statistics.median(clock.seconds[1:]), clock.before


def activations(run, model):
    """The most bytes that were held for backward in a step: the mean over eight steps, and the worst of them."""
    trainer, _ = build(run, model, 7)
    held, peaks = Held(trainer.model), []

    class PerStep(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            held.most = held.now

        def on_step_end(self, *args, **kwargs):
            peaks.append(held.most)

    trainer.add_callback(PerStep)
    with held.counting():
        trainer.train()
    return statistics.mean(peaks), max(peaks)


def peak_elsewhere(name, model):
    """Peak memory of a process that takes four steps, a whole cycle of Lisa."""
    command = [sys.executable, __file__, "--peak", name, "--model", model]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def failures(result):
    """What is over its threshold."""
    failed = [name for name, limit in TIME_LIMIT.items() if name in result and result[name]["ratio"] > limit]
    failed += [name for name, row in result.items() if row.get("peak_ratio", 0) > MEMORY_LIMIT]
    if {"vaccine", "t_vaccine"} <= result.keys():
        vaccine, targeted = result["vaccine"], result["t_vaccine"]
        if targeted["worst_activations"] > 0.75 * vaccine["activations"] or targeted["ratio"] > vaccine["ratio"]:
            failed.append("t_vaccine (a quarter less activations than vaccine in its worst step, and no more time)")
    return failed


def main():
    """Print the ratios as a table; keep them with `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--peak")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.peak:
        build(runs([])[options.peak], options.model, 3)[0].train()
        print(peak_bytes())
        return 0
    chosen = runs(options.only)
    rounds = [
        {name: timed(run, options.model, options.steps) for name, run in chosen.items()} for _ in range(options.rounds)
    ]
    bare, _ = activations(None, options.model)
    result = {}
    print(
        f"{'run':22} {'s/step':>7} {'ratio':>6} {'limit':>6} {'before':>7} {'activations':>12} {'worst':>7} {'peak':>6}"
    )
    for name, run in chosen.items():
        row = {
            "seconds_per_step": statistics.median(r[name][0] for r in rounds),
            "ratio": statistics.median(r[name][0] / r[UNDEFENDED][0] for r in rounds),
            "steps_before": statistics.median((r[name][1] - r[UNDEFENDED][1]) / r[UNDEFENDED][0] for r in rounds),
        }
        row["activations"], row["worst_activations"] = (peak / bare for peak in activations(run, options.model))
        if name in ("lisa", "vaccine", "vaccine_every_100"):
            row["peak_ratio"] = peak_elsewhere(name, options.model) / peak_elsewhere(UNDEFENDED, options.model)
        result[name] = row
        print(
            f"{name:22} {row['seconds_per_step']:7.3f} {row['ratio']:6.2f} {TIME_LIMIT.get(name, ''):>6} "
            f"{max(0.0, row['steps_before']):7.1f} {row['activations']:11.2f}x {row['worst_activations']:6.2f}x "
            f"{row.get('peak_ratio', math.nan):6.2f}",
            flush=True,
        )
    if options.out:
        about = {"model": options.model, "rounds": options.rounds, "steps": options.steps, "commit": commit()}
        about |= {"versions": versions(), "machine": machine("float32").model_dump(), "runs": result}
        options.out.write_text(json.dumps(about, indent=1) + "\n")
    failed = failures(result)
    if failed:
        print(f"over the threshold: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
