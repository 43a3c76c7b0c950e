# SPDX-License-Identifier: Apache-2.0
"""Time and memory of an optimizer step under a defence, against the same trainer undefended, in one process.

    python benchmarks/step_cost.py                       # a random Llama of 25M weights, LoRA r=8
    python benchmarks/step_cost.py --model smollm2 --steps 6

Runs take turns (undefended, Lisa, Vaccine ...) over several rounds, so that a busy machine hits all of them alike; the
ratio is the median over rounds of defended / undefended seconds per step. Peak memory is measured in a fresh process
per run. Exit code 1 if a ratio is over its threshold.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
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

from moored.data.chat import AnswerCollator, encode
from moored.data.synthetic import SETS
from moored.data.tiny import tiny_tokenizer
from moored.defenses.lisa import Lisa
from moored.defenses.vaccine import Vaccine
from moored.hf.loaders import load_model, load_tokenizer
from moored.memory import peak_bytes
from moored.protect import protect

warnings.filterwarnings("ignore")
logging.set_verbosity_error()

RUNS = {
    "undefended": (),
    "lisa": (Lisa(rho=1.0, align_steps=2, user_steps=2),),
    "vaccine": (Vaccine(rho=2.0),),
    "vaccine_every_100": (Vaccine(rho=2.0, every=100),),
}
TIME_LIMIT = {"lisa": 1.05, "vaccine": 2.1, "vaccine_every_100": 1.05}
MEMORY_LIMIT = 1.1
LENGTH = 64


class Clock(TrainerCallback):
    """Seconds of every optimizer step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *args, **kwargs):
        """Start the clock."""
        self.start = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        """Stop it."""
        self.seconds.append(time.perf_counter() - self.start)


def build(name: str, model: str, steps: int) -> tuple[Trainer, Clock]:
    """A trainer with LoRA on every linear layer; every row has the same length, so that steps are alike."""
    torch.manual_seed(0)
    if model == "random":
        tokenizer = tiny_tokenizer()
        config = LlamaConfig(
            vocab_size=8192,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
        )
        base = LlamaForCausalLM(config)
    else:
        tokenizer, base = load_tokenizer(model), load_model(model)
    peft = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))

    def rows(source: str) -> Dataset:
        encoded = [encode(tokenizer, row, max_length=4096) for row in SETS[source](0)[: 8 * (steps + 2)]]
        return Dataset.from_list([{k: (v * LENGTH)[:LENGTH] for k, v in row.items()} for row in encoded])

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
        train_dataset=rows("utility"),
        processing_class=tokenizer,
        data_collator=AnswerCollator(tokenizer.pad_token_id),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    if RUNS[name]:
        roles = {str(need): rows("alignment") for d in RUNS[name] for need in d.needs()}
        protect(trainer, *RUNS[name], **roles)
    return trainer, clock


def seconds_per_step(name: str, model: str, steps: int) -> float:
    """Median over steps, the first left out: it warms caches, and it is the one that `every=100` perturbs."""
    trainer, clock = build(name, model, steps)
    trainer.train()
    return statistics.median(clock.seconds[1:])


def peak_elsewhere(name: str, model: str) -> int:
    """Peak memory of a process that takes four steps, a whole cycle of Lisa."""
    command = [sys.executable, __file__, "--peak", name, "--model", model]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def main() -> int:
    """Print the ratios as a table and as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.peak:
        build(options.peak, options.model, 3)[0].train()
        print(peak_bytes())
        return 0
    rounds = [
        {name: seconds_per_step(name, options.model, options.steps) for name in RUNS} for _ in range(options.rounds)
    ]
    peaks = {name: peak_elsewhere(name, options.model) for name in RUNS}
    failed = []
    result = {}
    print(f"{'run':20} {'s/step':>8} {'ratio':>7} {'limit':>6} {'peak GiB':>9} {'ratio':>6}")
    for name in RUNS:
        ratio = statistics.median(r[name] / r["undefended"] for r in rounds)
        memory = peaks[name] / peaks["undefended"]
        spent = statistics.median(r[name] for r in rounds)
        limit = TIME_LIMIT.get(name)
        result[name] = {"seconds_per_step": spent, "ratio": ratio, "peak_bytes": peaks[name], "peak_ratio": memory}
        print(f"{name:20} {spent:8.3f} {ratio:7.3f} {limit or '':>6} {peaks[name] / 2**30:9.2f} {memory:6.2f}")
        if limit and (ratio > limit or memory > MEMORY_LIMIT):
            failed.append(name)
    print(json.dumps({"model": options.model, "rounds": options.rounds, "steps": options.steps, "runs": result}))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))
    if failed:
        print(f"over the threshold: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
