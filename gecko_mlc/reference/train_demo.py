"""Train the demo model: `python -m gecko_mlc.reference.train_demo --texts DIR --output DIR --minutes 60`.

Streams of text are read in order with the state carried from step to step, so the model learns with the
window and the working memory it will run with. The result is a folder with `config.json`,
`tokenizer.json` and `model.safetensors.xz`, as they are shipped.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save as serialize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gecko_mlc.config import GeckoConfig, preset
from gecko_mlc.formats.files import atomic_write
from gecko_mlc.reference.demo_texts import read_documents
from gecko_mlc.reference.gecko import Gecko
from gecko_mlc.reference.init_weights import initial_value

END_OF_TEXT = "<|endoftext|>"
STREAMS, CHUNKS_PER_STEP = 8, 4


def train_tokenizer(documents: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` tokens; token 0 ends a document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def streams(documents: list[str], tokenizer: Tokenizer, seed: int) -> torch.Tensor:
    """All documents, shuffled and ended, as [STREAMS, tokens]."""
    order = np.random.default_rng(seed).permutation(len(documents))
    ids = [i for d in order for i in (*tokenizer.encode(documents[d]).ids, 0)]
    length = len(ids) // STREAMS
    return torch.tensor(ids[: length * STREAMS]).reshape(STREAMS, length)


def new_model(config: GeckoConfig, seed: int) -> Gecko:
    """A randomly initialised model."""
    model = Gecko(config)
    values = {p.name: torch.from_numpy(initial_value(config, p, seed)) for p in config.parameters()}
    model.load_state_dict(values)
    return model


def save(model: Gecko, output: Path) -> None:
    """Write `model.safetensors.xz`: matrices in bf16, everything else in fp32."""
    state = model.state_dict()
    tensors = {
        p.name: state[p.name].to(torch.bfloat16 if p.matrix else torch.float32).contiguous()
        for p in model.config.parameters()
    }
    # lp=1 tells the two bytes of a bf16 apart: exponents compress, mantissas do not.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 3, "lp": 1, "pb": 1}]
    with atomic_write(output / "model.safetensors.xz", "wb") as file:
        file.write(lzma.compress(serialize(tensors), filters=filters))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="folder with the three packages")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    config = preset("gecko-demo")
    documents = read_documents(arguments.texts)
    tokenizer = train_tokenizer(documents, config.vocab_size)
    tokenizer.save(str(arguments.output / "tokenizer.json"))
    fields = {**config.model_dump(), "eos_token_id": 0}
    (arguments.output / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    data = streams(documents, tokenizer, arguments.seed)
    print(f"{data.numel():,} tokens from {sum(map(len, documents)):,} characters", flush=True)

    model = new_model(config, arguments.seed)
    matrices = [p for p in model.parameters() if p.dim() == 2 and p.shape[1] > config.cema_ndim]
    others = [p for p in model.parameters() if p.dim() != 2 or p.shape[1] <= config.cema_ndim]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=0.0,
        betas=(0.9, 0.95),
    )
    length = CHUNKS_PER_STEP * config.chunk_size
    steps_per_epoch = (data.shape[1] - 1) // length
    state, begun, step, average = None, time.monotonic(), 0, math.log(config.vocab_size)
    while (progress := (time.monotonic() - begun) / 60 / arguments.minutes) < 1.0:
        if step % steps_per_epoch == 0:
            state = None
        at = (step % steps_per_epoch) * length
        piece = data[:, at : at + length + 1]
        rate = 3e-3 * min(1.0, (step + 1) / 50) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = model(piece[:, :-1], state)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), piece[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.detach()
        step += 1
        average += (loss.item() - average) * max(0.02, 1 / step)
        if step % 20 == 0:
            spent = time.monotonic() - begun
            seen = step * STREAMS * length
            print(f"{spent:6.0f} s  step {step}  loss {average:.3f}  {seen / spent:.0f} tokens/s", flush=True)
        if step % 200 == 0:
            save(model, arguments.output)
    save(model, arguments.output)
    print(f"{step * STREAMS * length:,} tokens seen, loss {average:.3f}")


if __name__ == "__main__":
    main()
