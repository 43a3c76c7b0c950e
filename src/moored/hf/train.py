# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a causal model on rows with a plain `Trainer`, defended or not: what studies and the demo run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import get_last_checkpoint

from moored.data.chat import IGNORED, AnswerCollator, encode
from moored.data.schema import Row
from moored.defenses.base import Defense
from moored.errors import require, unknown
from moored.hf.device import DType, precision
from moored.hf.foreseen import Foreseen
from moored.hf.hooks import attention_modules, forward_takes
from moored.hf.loaders import load_model, load_serving, load_tokenizer
from moored.hf.monitor import DriftMonitor
from moored.hf.packing import SharedLines, keeps_rows_apart
from moored.memory import forget_peak, peak_bytes
from moored.progress import Pause, Progress, Words
from moored.protect import protect

ATTENTION = None if torch.cuda.is_available() else "eager"
"""On a CPU the backward pass of fused attention takes longer than plain matrix products at these lengths."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a stage trains.

    Args:
        steps: optimizer steps on the stage's own rows; None: by `epochs`. Steps that a defence adds come on top.
        epochs: passes over the rows, used if `steps` is None.
        batch: rows per micro-batch.
        accumulate: micro-batches per optimizer step.
        lr: peak learning rate.
        rank: LoRA rank; ignored if `full`.
        alpha: LoRA alpha.
        dropout: LoRA dropout, 0-1.
        targets: LoRA target modules: "all-linear", "attention" (the linear layers of self-attention) or names.
        max_length: tokens kept per row.
        schedule: of the learning rate.
        warmup: share of the steps, 0-1.
        seed: of weights, order and dropout.
        full: train all weights instead of an adapter.
        pack: put several rows into a line instead of padding each, where the model keeps them apart
            (`keeps_rows_apart`) and no defence tells rows apart; the loss is the same, short rows train faster.
        dtype: "bfloat16" keeps frozen weights and computes in bf16, trained weights stay in fp32; as a default, what
            this machine multiplies fast (`moored.hf.device.precision`).
        save_every: optimizer steps between checkpoints; 0: none.
    """

    steps: int | None = None
    epochs: float | None = None
    batch: int = 8
    accumulate: int = 1
    lr: float = 2e-4
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: Literal["all-linear", "attention"] | tuple[str, ...] = "all-linear"
    max_length: int = 256
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0
    seed: int = 0
    full: bool = False
    pack: bool = True
    dtype: DType = field(default_factory=precision)
    save_every: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "rank", "alpha", "max_length"):
            require(getattr(self, name) >= 1, "Training", name, ">= 1", getattr(self, name))
        for name in ("dropout", "warmup"):
            require(0 <= getattr(self, name) < 1, "Training", name, "in [0, 1)", getattr(self, name))
        require(self.lr > 0, "Training", "lr", "> 0", self.lr)
        require(self.save_every >= 0, "Training", "save_every", ">= 0", self.save_every)
        chosen = self.steps or self.epochs
        require(bool(chosen and chosen > 0), "Training", "steps", "> 0 (or give epochs > 0)", self.steps)

    def passes(self, rows: int) -> float:
        """Passes over so many rows."""
        steps_per_pass = math.ceil(math.ceil(rows / self.batch) / self.accumulate)
        # The trainer rounds passes * steps_per_pass up: a hair less, and 54 steps do not become 55.
        return (self.steps - 1e-6) / steps_per_pass if self.steps else float(self.epochs or 0)


@dataclass(kw_only=True)
class TrainingReport:
    """What a training stage did.

    Args:
        seconds: wall time of training, loading left out.
        steps: optimizer steps, those that a defence added included.
        passes_per_step: forward passes with gradient per optimizer step and micro-batch, counted.
        peak_bytes: peak resident memory of the process while it loaded and trained.
        rows: rows given.
        packed: whether rows shared lines instead of being padded.
        trainable: trainable weights.
        fired: what each defence did (`trainer.moored_report`).
        log: the trainer's log lines.
        drift: measurements of `DriftMonitor`.
    """

    seconds: float
    steps: int
    passes_per_step: float
    peak_bytes: int
    rows: int
    packed: bool
    trainable: int
    fired: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    drift: list[dict[str, Any]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def fine_tune(
    model: str | Path,
    rows: Sequence[Row],
    out: Path,
    *,
    training: Training,
    defenses: Sequence[Defense] = (),
    roles: Mapping[str, Sequence[Row] | str | Path] | None = None,
    probe: Sequence[Row] = (),
    merge: bool = False,
    progress: Progress | None = None,
) -> TrainingReport:
    """Train on `rows` and save to `out`: a PEFT adapter, or with `merge` (and with `training.full`) a whole model.

    What the result must be served with lies beside it (`load_serving`): what the defences say, before what the start
    had to be served with already. Checkpoints inside `out` are resumed from, so a killed stage goes on where it was.

    Args:
        model: where the weights are; see `resolve_model`.
        rows: chats with answers.
        out: folder for the result.
        training: how.
        defenses: see `protect`.
        roles: rows for the defences by role; for a role that is a model, its folder or hub id.
        probe: rows on which the drift of hidden embeddings is watched.
        merge: add the adapter to fp32 weights and save the model with its tokenizer.
        progress: called with (steps done, steps in all, the last loss in words, "" before the first).

    Raises:
        Pause: `progress` did; a checkpoint of the step that it was told of is in `out`.
    """
    forget_peak()
    tokenizer = load_tokenizer(model)
    torch.manual_seed(training.seed)
    trained = trainable(model, training)
    monitor = DriftMonitor(list(probe), tokenizer, every=10, max_length=training.max_length) if probe else None
    follower = Follower(progress)
    packed = training.pack and not any(d.tells_rows_apart() for d in defenses) and keeps_rows_apart(trained)
    collator = (SharedLines if packed else AnswerCollator)(tokenizer.pad_token_id)
    trainer = _trainer(trained, tokenizer, rows, out, training, collator, [c for c in (monitor, follower) if c])
    trainer = protected(trainer, defenses, roles or {}, rows=len(rows), training=training)
    report = run(trainer, out, follower, rows=len(rows), packed=packed)
    report.drift = monitor.history if monitor else []
    save(trainer, trained, tokenizer, model, out, merge=merge, full=training.full)
    return report


def protected(
    trainer: Trainer, defenses: Sequence[Defense], roles: Mapping[str, Any], *, rows: int, training: Training
) -> Trainer:
    """The trainer with its defences, if there are any, and with what they read of the roles.

    Args:
        trainer: built.
        defenses: see `protect`.
        roles: data by role.
        rows: given to the trainer.
        training: whose length is kept.
    """
    if not defenses:
        return trainer
    trainer = protect(trainer, *defenses, **{name: data for name, data in roles.items() if _reads(defenses, name)})
    # Rows that a defence leaves out do not shorten a training of so many steps; rows that it adds come on top.
    kept: Any = trainer.train_dataset
    trainer.args.num_train_epochs = training.passes(min(rows, len(kept)))
    return trainer


def run(trainer: Trainer, out: Path, follower: Follower, *, rows: int, packed: bool) -> TrainingReport:
    """Train, from the last checkpoint in `out` if there is one.

    Args:
        trainer: built and protected.
        out: the trainer's folder.
        follower: one of the trainer's callbacks.
        rows: given to the trainer.
        packed: see `TrainingReport`.
    """
    trained: Any = trainer.model
    forwards = _Forwards(trained)
    begin = time.perf_counter()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(out) if out.is_dir() else None)
    seconds = time.perf_counter() - begin
    forwards.stop()
    if follower.pause is not None:
        raise follower.pause
    return TrainingReport(
        seconds=seconds,
        steps=trainer.state.global_step,
        passes_per_step=forwards.count / max(1, follower.micro_batches),
        peak_bytes=peak_bytes(),
        rows=rows,
        packed=packed,
        trainable=sum(p.numel() for p in trained.parameters() if p.requires_grad),
        fired=getattr(trainer, "moored_report", {}),
        log=[dict(line) for line in trainer.state.log_history],
    )


def save(
    trainer: Trainer,
    trained: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    start: str | Path,
    out: Path,
    *,
    merge: bool,
    full: bool,
) -> None:
    """Write what was trained, and beside it what it must be served with.

    Args:
        trainer: after training.
        trained: its model.
        tokenizer: the model's.
        start: where training started from.
        out: the folder.
        merge: see `fine_tune`.
        full: see `Training`.
    """
    _save(trained, tokenizer, start, out, merge=merge, full=full)
    own, before = getattr(trainer, "moored_serving", None), load_serving(start)
    if serving := own.before(before) if own else before:
        serving.save(out)


def _reads(defenses: Sequence[Defense], role: str) -> bool:
    return any(role in d.info.needs for d in defenses)


def trainable(where: str | Path, training: Training) -> nn.Module:
    """The model to train: frozen weights in `dtype` with an fp32 adapter, or all weights in fp32.

    Args:
        where: see `resolve_model`.
        training: how.
    """
    if training.full:
        return load_model(where, dtype="float32", attention=ATTENTION)
    from peft import LoraConfig, get_peft_model

    model = load_model(where, dtype=training.dtype, attention=ATTENTION)
    config = LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,
        lora_dropout=training.dropout,
        target_modules=_targets(model, training.targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _targets(model: nn.Module, wanted: str | tuple[str, ...]) -> str | list[str]:
    """What PEFT is to put adapters on.

    Raises:
        ConfigError: a name that no module of the model ends in.
    """
    if wanted == "attention":
        # "self_attn.q_proj", not "q_proj" alone: GPT-2 calls a layer of its attention and one of its MLP `c_proj`.
        attention = {f"{name.rpartition('.')[2]}.": module for name, module in attention_modules(model).items()}
        parts = [(head + name, part) for head, module in attention.items() for name, part in module.named_modules()]
        return sorted(name for name, part in parts if isinstance(part, (nn.Linear, Conv1D)))
    if isinstance(wanted, str):
        return wanted
    last_names = {last for name, _ in model.named_modules() if not (last := name.rpartition(".")[2]).isdigit()}
    for name in wanted:
        if name.rpartition(".")[2] not in last_names:
            raise unknown("LoRA target", name, last_names)
    return list(wanted)


def arguments(out: Path, rows: int, training: Training) -> dict[str, Any]:
    """What `TrainingArguments` and its subclasses are told.

    Args:
        out: the trainer's folder.
        rows: to train on.
        training: how.
    """
    return {
        "output_dir": str(out),
        "num_train_epochs": training.passes(rows),
        "per_device_train_batch_size": training.batch,
        "gradient_accumulation_steps": training.accumulate,
        "learning_rate": training.lr,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": training.warmup,
        "seed": training.seed,
        "bf16": training.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 5,
        "save_strategy": "steps" if training.save_every else "no",
        "save_steps": training.save_every or 500,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def _trainer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    out: Path,
    training: Training,
    collator: AnswerCollator | SharedLines,
    callbacks: list[TrainerCallback],
) -> Trainer:
    args = TrainingArguments(**arguments(out, len(rows), training))
    # Defences that choose among the rows see what kind each is of; a collator never gets that column.
    data = datasets.Dataset.from_list(
        [encode(tokenizer, row, max_length=training.max_length) | {"category": row.category} for row in rows]
    )
    trainer = AnswerTrainer(
        model=model,
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=collator,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _save(
    model: Any, tokenizer: PreTrainedTokenizerBase, start: str | Path, out: Path, *, merge: bool, full: bool
) -> None:
    """Write the result; a merge is done on fp32 weights, whatever the run computed in."""
    if full:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    elif merge:
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

        state = get_peft_model_state_dict(model)
        exact = get_peft_model(load_model(start, dtype="float32"), model.peft_config["default"])
        set_peft_model_state_dict(exact, state)
        exact.merge_and_unload().save_pretrained(out)
        tokenizer.save_pretrained(out)
    else:
        model.save_pretrained(out)


class AnswerTrainer(Trainer):
    """A `Trainer` whose loss computes logits only where an answer token is predicted.

    The loss is the same mean cross-entropy over answer tokens. With short answers behind long prompts, and a
    vocabulary wider than the model, it saves a fifth of the step on a CPU and most of the memory of the logits.
    """

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy over the answer tokens of the optimizer step."""
        if return_outputs or not self._spares_logits:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            self._look(outputs.logits[:, :-1], inputs["labels"][:, 1:])
            return (loss, outputs) if return_outputs else loss
        labels = inputs["labels"]
        targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        kept = (targets != IGNORED).any(dim=0).nonzero().squeeze(-1)
        others = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**others, use_cache=False, logits_to_keep=kept).logits
        self._look(logits, targets[:, kept])
        total = functional.cross_entropy(
            logits.float().flatten(0, 1), targets[:, kept].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total / (num_items_in_batch if num_items_in_batch is not None else (targets != IGNORED).sum())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's own line, and the share of answer tokens that the model foresaw since the line before."""
        accuracy = self._foreseen.take() if "loss" in logs else None
        super().log(logs if accuracy is None else {**logs, "mean_token_accuracy": accuracy}, *args, **kwargs)

    def _look(self, logits: Tensor, targets: Tensor) -> None:
        """Count in a pass that is learnt from; a defence's own passes do not count."""
        context = getattr(self, "moored", None)
        if context is None or context.is_learning:
            self._foreseen.look(logits, targets)

    @cached_property
    def _foreseen(self) -> Foreseen:
        made = Foreseen()
        self.add_callback(made)
        return made

    @cached_property
    def _spares_logits(self) -> bool:
        return forward_takes(self.accelerator.unwrap_model(self.model), "logits_to_keep")


LOGGED = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "accuracy",
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
}
"""What the trainer's log says, and what `Words.numbers` call it."""


class Follower(TrainerCallback):
    """Counts micro-batches and passes the trainer's progress on.

    Args:
        progress: see `fine_tune`.
    """

    def __init__(self, progress: Progress | None):
        self.progress, self.said, self.micro_batches = progress, Words("", {}), 0
        self.told = self.said
        self.pause: Pause | None = None

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the last numbers; there are none before the first line of the log."""
        logs = kwargs["logs"]
        if "loss" in logs:
            numbers = {said: logs[name] for name, said in LOGGED.items() if name in logs}
            self.said = Words(f"loss {logs['loss']:.3f}", {"step": state.global_step, **numbers})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint is whole."""
        self._tell(state, control, Words(self.said, {**self.said.numbers, "saved": state.global_step}))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What was logged at the last step was not told yet."""
        if self.said is not self.told:
            self._tell(state, control, self.said)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A micro-batch that did not end its optimizer step."""
        self.micro_batches += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A micro-batch that did."""
        self.micro_batches += 1
        self._tell(state, control, self.said)

    def _tell(self, state: Any, control: Any, said: Words) -> None:
        if self.progress is None or self.pause is not None:
            return
        self.told = self.said
        try:
            self.progress(state.global_step, state.max_steps, said)
        except Pause as pause:
            if state.global_step < state.max_steps:  # at the last step there is nothing left to go on with
                self.pause = pause
                control.should_save = said.numbers.get("saved") != state.global_step
                control.should_training_stop = True


class _Forwards:
    """Counts forward passes that build a graph."""

    def __init__(self, model: nn.Module):
        self.count = 0
        self.hook = model.register_forward_pre_hook(self._see)

    def _see(self, *_: Any) -> None:
        self.count += torch.is_grad_enabled()

    def stop(self) -> None:
        """Remove the hook."""
        self.hook.remove()
