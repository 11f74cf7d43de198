"""Train the small model: from the weights of a folder, on one CPU thread; it can be interrupted.

    python assets/tiny-moe/training/train.py --corpus DIR --start DIR --state DIR --out DIR

A step reads 12 rows of 256 tokens of generated chats (loss on the answers only) and 2 rows of 512
tokens of natural text. The data of step n depends on n alone, so a run that is started again with
the same --state goes on where it stopped. --out receives the checkpoint in fp16 at the end.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from corpus import documents, split
from data import CHAT_CONTEXT, CHAT_ROWS, TEXT_CONTEXT, TEXT_ROWS, Text, batches, words_of
from transformers import AutoTokenizer, MixtralForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

BALANCE = 0.02  # weight of the load-balancing loss (Switch Transformers, section 2.2), per layer
RATE, WARMUP, LAST_RATE = 1e-3, 100, 0.02  # learning rate: constant, then linear from half the run
SAVE_SECONDS = 240


def sorted_experts(
    self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Hidden states [t, h], top-k experts and weights [t, k] -> [t, h]. Tokens are sorted by
    expert, so that each expert is one product in bf16."""
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=self.num_experts).tolist()
    # unbind: one gradient for all experts instead of one of full size per expert
    up, down = self.gate_up_proj.bfloat16().unbind(0), self.down_proj.bfloat16().unbind(0)
    outs = []
    for expert, rows in enumerate(x.bfloat16()[order // index.shape[1]].split(counts)):
        gate, value = F.linear(rows, up[expert]).chunk(2, -1)
        outs.append(F.linear(F.silu(gate) * value, down[expert]))
    y = torch.cat(outs) * weights.reshape(-1)[order][:, None].bfloat16()
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return y[back].view(*index.shape, -1).sum(1)


class Balance:
    """The load-balancing loss of the forwards since the last call."""

    def __init__(self, model):
        self.experts, self.top_k = model.config.num_local_experts, model.config.num_experts_per_tok
        self.logits: list[torch.Tensor] = []
        for layer in model.model.layers:
            layer.mlp.gate.register_forward_hook(
                lambda module, args, out: self.logits.append(out[0])
            )

    def __call__(self) -> torch.Tensor:
        losses = []
        for logits in self.logits:
            probabilities = logits.float().softmax(-1)
            chosen = F.one_hot(logits.topk(self.top_k, -1).indices, self.experts).float()
            share = chosen.sum(1).mean(0) / self.top_k
            losses.append(self.experts * (share * probabilities.mean(0)).sum())
        self.logits.clear()
        return torch.stack(losses).mean()


def rate(step: int, steps: int) -> float:
    left = 2 * (1 - step / steps)
    return RATE * min(1, (step + 1) / WARMUP, max(LAST_RATE, left))


def losses(model, balance: Balance, parts) -> Iterator[tuple[torch.Tensor, float]]:
    """(loss to differentiate, mean loss per token) of each part; the parts' losses sum up to the
    mean over all tokens that have one."""
    total = sum(int((labels[:, 1:] >= 0).sum()) for _, labels in parts)
    for ids, labels in parts:
        wanted = labels[:, 1:] >= 0
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(ids[:, :-1]).last_hidden_state
            logits = model.lm_head(hidden[wanted])  # the head only where there is a loss
        loss = F.cross_entropy(logits.float(), labels[:, 1:][wanted], reduction="sum")
        yield loss / total + BALANCE * balance() / len(parts), loss.item() / int(wanted.sum())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="a folder of .txt files")
    parser.add_argument("--state", type=Path, required=True, help="a folder for the state")
    parser.add_argument(
        "--start", type=Path, required=True, help="a checkpoint: first weights, tokenizer"
    )
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes of one thread; they share the rows of a step",
    )
    parser.add_argument("--out", type=Path, help="the folder of the checkpoint")
    return parser.parse_args()


def average_gradients(model, workers: int) -> None:
    """The gradients' mean over all workers, in place."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    parts = (flat / workers).split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def work(worker: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.workers > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{args.state.resolve()}/meeting",
            rank=worker,
            world_size=args.workers,
        )
    saved_at = args.state / "state.pt"
    tokenizer = AutoTokenizer.from_pretrained(args.start)
    train, _ = split(documents(args.corpus))
    words, text = words_of(train), Text(train, tokenizer)
    ALL_EXPERTS_FUNCTIONS.register("sorted", sorted_experts)
    model = MixtralForCausalLM.from_pretrained(
        args.start,
        dtype=torch.float32,
        attn_implementation="eager",  # the fastest on a CPU at 256 tokens
    )
    model.set_experts_implementation("sorted")
    model.train()
    balance = Balance(model)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)
    first = 0
    if saved_at.exists():
        state = torch.load(saved_at)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    def save(step: int) -> None:
        part = saved_at.with_suffix(".part")
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, part
        )
        os.replace(part, saved_at)

    begin = last_save = time.monotonic()
    means: list[float] = [0.0, 0.0]
    for step, parts in enumerate(batches(words, text, tokenizer, first, args.steps), first):
        parts = [
            (ids[worker :: args.workers], labels[worker :: args.workers]) for ids, labels in parts
        ]
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.steps)
        optimizer.zero_grad()
        for at, (loss, mean) in enumerate(losses(model, balance, parts)):
            loss.backward()
            means[at] = mean if step == first else 0.95 * means[at] + 0.05 * mean
        if args.workers > 1:
            average_gradients(model, args.workers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if worker > 0:
            continue
        if step % 20 == 0:
            spent = time.monotonic() - begin
            tokens = (step - first + 1) * (CHAT_ROWS * CHAT_CONTEXT + TEXT_ROWS * TEXT_CONTEXT)
            print(
                f"step {step}: {spent:.0f} s, {tokens / spent:.0f} tokens/s, "
                f"loss of answers {means[0]:.3f}, of text {means[1]:.3f}",
                flush=True,
            )
        if time.monotonic() - last_save > SAVE_SECONDS:
            save(step + 1)
            last_save = time.monotonic()
    if worker == 0:
        save(args.steps)
        if args.out:
            model.half().save_pretrained(args.out)
            tokenizer.save_pretrained(args.out)


def main() -> None:
    args = parse()
    args.state.mkdir(parents=True, exist_ok=True)
    (args.state / "meeting").unlink(missing_ok=True)
    if args.workers == 1:
        work(0, args)
    else:
        torch.multiprocessing.spawn(work, (args,), nprocs=args.workers)


if __name__ == "__main__":
    main()
