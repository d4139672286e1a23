"""Train a tiny GPT-2 in a loop with Accelerate, with a snapshot of the job at every step.

    pip install 'ckptd[accelerate]' transformers
    python -m ckptd.examples.train_accelerate --steps 100

Kill it at any moment and start the same command again: it goes on from the last snapshot, bit for bit as if nothing
had happened. `main` is the whole story.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ckptd import Checkpointer
from ckptd.accelerate import Batches
from ckptd.examples.gpt2 import tiny_gpt2
from ckptd.examples.tokens import Options, Report, Tokens, parse


def main(options: Options) -> None:
    torch.set_num_threads(1)
    report = Report(options)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = tiny_gpt2(options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    loader = DataLoader(Tokens(60, options.seed), batch_size=4, shuffle=True)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

    batches = Batches(accelerator, loader)
    ck = Checkpointer(model=model, optimizer=optimizer, scheduler=scheduler, batches=batches)
    step = ck.restore()
    report.begins(step)
    for batch in batches.epochs(options.steps):
        if step == options.steps:
            break
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            step += 1
            ck.step(step)
            report.step(step, loss.item())
    ck.close()
    report.done(step, [], accelerator.unwrap_model(model), optimizer)


if __name__ == "__main__":
    main(parse("Train a tiny GPT-2 in a loop with Accelerate and ckptd."))
