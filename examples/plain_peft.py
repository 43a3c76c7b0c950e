# SPDX-License-Identifier: Apache-2.0
"""An adapter as anybody's code makes it: torch and PEFT, no trainer, nothing of moored. Then repair it.

    moored attack harmful_mix --set ratio=0.1 --out upload.jsonl
    python examples/plain_peft.py ALIGNED upload.jsonl --out adapter
    moored repair adapter --aligned ALIGNED --base BASE --set fraction=0.5 --out safer
    moored audit safer --base ALIGNED

ALIGNED is the folder of the model that is tuned, BASE what it was before its alignment.
"""

import argparse
import json

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

LEFT_OUT = -100  # torch's cross entropy does not look at this label


def encoded(tokenizer, messages):
    """Token ids of a conversation, and labels on its last answer only."""
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    return whole, [LEFT_OUT] * len(asked) + whole[len(asked) :]


def batches(rows, size, padding, steps, generator):
    """So many batches of rows in random order, padded on the right."""
    order = []
    for _ in range(steps):
        while len(order) < size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        taken, order = [rows[i] for i in order[:size]], order[size:]
        width = max(len(ids) for ids, _ in taken)
        ids = torch.tensor([ids + [padding] * (width - len(ids)) for ids, _ in taken])
        labels = torch.tensor([labels + [LEFT_OUT] * (width - len(labels)) for _, labels in taken])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in taken])
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def tune(model, rows, *, padding, steps, lr, size, seed):
    """Plain AdamW with a linear schedule."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    for step, batch in enumerate(batches(rows, size, padding, steps, torch.Generator().manual_seed(seed)), start=1):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows", help="one conversation per line: {'messages': [...]}")
    parser.add_argument("--out", required=True)
    parser.add_argument("--targets", nargs="+", default=["q_proj", "k_proj", "v_proj", "o_proj"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=args.targets, task_type="CAUSAL_LM")
    with open(args.rows, encoding="utf-8") as lines:
        rows = [encoded(tokenizer, json.loads(line)["messages"]) for line in lines if line.strip()]
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model = get_peft_model(model, lora)
    tune(model, rows, padding=padding, steps=args.steps, lr=args.lr, size=args.batch, seed=args.seed)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
