"""The PyTorch side of bench/train.mjs: one training step for every line on standard input.

    python train_peer.py CHECKPOINT --reference DIR [--threads 2] [--dtype f32|bf16] [--device cpu|cuda] [--compile]
                         --batch JSON

Prints lines of JSON: {"ready"} with torch's version, then for each step {"seconds", "compiled"}: whether something was
compiled in it, so that it does not count.  A step is that of the reference's train.py: joint batches of drawing,
reading and editing, padded, AdamW and a moving average.  The decoder has a soft cap, so its attention is the reference's
formula; so is SigLIP's.
"""
import argparse
import functools
import json
import sys
import time
import types

import torch
import torch.nn.functional as F
from torch import nn


def factories_on(device):
    """torch, whose functions that make tensors make them on `device`: torch.set_default_device would intercept every call."""
    module = types.ModuleType("torch")
    module.__dict__.update(torch.__dict__)
    for name in ("arange", "empty", "full", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros"):
        setattr(module, name, functools.partial(getattr(torch, name), device=device))
    module.from_numpy = lambda values: torch.from_numpy(values).to(device)
    return module


def compilations():
    from torch._dynamo.utils import counters

    return sum(counters["frames"].values()) + counters["stats"]["unique_graphs"]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("checkpoint")
    p.add_argument("--reference", required=True)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--batch", type=json.loads, required=True)
    a = p.parse_args()
    sys.path.insert(0, a.reference)
    from unifluid import UniFluid

    def floats(value):                        # JavaScript writes 30.0 as 30
        real = ("rms_norm_eps", "rope_theta", "attn_logit_softcapping", "final_logit_softcapping", "layer_norm_eps")
        return {k: floats(v) if isinstance(v, dict) else float(v) if k in real else v for k, v in value.items()}

    import diffusion
    import unifluid
    read = unifluid.read_json
    unifluid.read_json = lambda path, default=None: floats(read(path, default))

    torch.set_num_threads(a.threads)
    torch.set_flush_denormal(True)
    model = UniFluid.load(a.checkpoint).train()
    model.vae = None
    model.to(a.device)
    on_device = unifluid.torch = diffusion.torch = factories_on(a.device)
    params = [w for w in model.parameters() if w.requires_grad]
    opt = torch.optim.AdamW([{"params": [w for w in params if w.dim() > 1], "weight_decay": 0.02},
                             {"params": [w for w in params if w.dim() < 2], "weight_decay": 0.0}],
                            lr=1e-4, betas=(0.9, 0.98))
    ema = [w.detach().clone() for w in params]
    b, mul = a.batch, a.batch["multiplier"]
    vocab, n, c = model.text_config.vocab_size, model.cells, model.channels
    side = model.config["vision_config"]["image_size"]
    ids = lambda rows, length: on_device.randint(4, vocab, (rows, length))
    flow = model.diffusion_head.objective == "flow"

    def image_loss(prefixes, tokens):
        lengths = [len(x) for x in prefixes]
        longest = max(lengths)
        rows = torch.stack([torch.cat([x.new_zeros(longest - len(x), x.shape[1]), x]) for x in prefixes])
        orders = torch.stack([on_device.randperm(n) for _ in prefixes])
        pads = on_device.tensor([longest - k for k in lengths])
        hidden = model.decode(torch.cat([rows, model.image_rows(tokens, orders)], 1), pads, longest)
        z = hidden[:, -n:].flatten(0, 1).repeat(mul, 1)
        target = torch.gather(tokens, 1, orders[..., None].expand_as(tokens)).flatten(0, 1).repeat(mul, 1)
        t = 1000 * torch.sigmoid(on_device.randn(len(z))) if flow else on_device.randint(0, 1000, (len(z),))
        return model.diffusion_head.loss(target, z, t, torch.randn_like(target)).mean()

    def text_loss(features, length, words):
        prefix = torch.cat([features, model.language_model.embed_tokens(ids(len(features), length))], 1)
        target = ids(len(features), words)
        rows = torch.cat([prefix, model.language_model.embed_tokens(target[:, :-1])], 1)
        hidden = model.decode(rows, on_device.zeros(len(rows), dtype=torch.long), prefix.shape[1])
        logits = model.logits(hidden[:, prefix.shape[1] - 1:])
        return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), reduction="sum"), target.numel()

    if a.compile:
        import torch._dynamo as dynamo
        # Rather an error than eager code in place of compiled.
        for name, value in dict(recompile_limit=64, cache_size_limit=64, fail_on_recompile_limit_hit=True).items():
            if hasattr(dynamo.config, name):
                setattr(dynamo.config, name, value)
        image_loss, text_loss = torch.compile(image_loss), torch.compile(text_loss)

    def step(k):
        with torch.autocast(a.device, torch.bfloat16, enabled=a.dtype == "bf16"):
            embed = model.language_model.embed_tokens
            g, cap, ans, ed = (b[t] for t in ("generate", "caption", "answer", "edit"))
            generate = image_loss(list(embed(ids(g["count"], g["prefix"]))), on_device.randn(g["count"], n, c))
            count = cap["count"] + ans["count"] + ed["count"]
            features = model.image_features(on_device.rand(count, 3, side, side) * 2 - 1)
            read, asked, source = features.split([cap["count"], ans["count"], ed["count"]])
            sums = [text_loss(read, cap["prefix"], cap["words"]), text_loss(asked, ans["prefix"], ans["words"])]
            text = sum(s[0] for s in sums) / sum(s[1] for s in sums)
            rows = model.source_rows(on_device.randn(ed["count"], n, c))
            prefixes = list(torch.cat([source, rows, embed(ids(ed["count"], ed["prefix"]))], 1))
            edit = image_loss(prefixes, on_device.randn(ed["count"], n, c))
            image = (g["count"] * generate + ed["count"] * edit) / (g["count"] + ed["count"])
            loss = image + 0.5 * text
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - min(0.998, k / (k + 10)))
        if a.device == "cuda":
            torch.cuda.synchronize()

    k = 2
    for i in range(k):
        step(i + 1)
    print(json.dumps({"ready": torch.__version__}), flush=True)
    for _ in sys.stdin:
        k += 1
        before, begin = compilations(), time.perf_counter()
        step(k)
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "compiled": compilations() > before}), flush=True)


main()
