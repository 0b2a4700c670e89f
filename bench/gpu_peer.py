"""The PyTorch side of bench/gpu.mjs, in bfloat16, eager and with torch.compile.

    python gpu_peer.py CASE --reference DIR --checkpoint DIR [--rounds N] [--warm N] [--ways eager,compiled]
                       [--device cuda] [sizes ...]

Prints a line for each way: "eager SECONDS" and "compiled SECONDS", the median of the rounds after the warm-up.
CASE: generate (whole pictures), head, product, attention, vae.
"""
import argparse
import os
import statistics
import sys
import time

import torch


def generate(a, compiled):
    """As UniFluid.draw of the reference and its VAE, with noise of PyTorch's own generator, which stays on the device."""
    from unifluid import Stream, UniFluid, unpatchify

    model = UniFluid.load(a.checkpoint).to(a.device, torch.bfloat16)
    sample = model.diffusion_head.sample
    if compiled:
        model.language_model = torch.compile(model.language_model, dynamic=True)
        model.diffusion_head.forward = torch.compile(model.diffusion_head.forward)
        model.vae.decode = torch.compile(model.vae.decode)
    prefixes = [model.prefix("generate", "a red circle")] * a.batch
    empties = [model.prefix("generate", "")] * a.batch

    def noise(s=None):
        return torch.randn(a.batch, model.channels)

    def run():
        orders = torch.stack([torch.randperm(model.cells) for _ in range(a.batch)])
        streams = [Stream(model, p) for p in (prefixes, empties)]
        row = model.image_begin.expand(a.batch, -1)
        tokens = torch.zeros(a.batch, model.cells, model.channels, dtype=torch.bfloat16)
        for k in range(model.cells):
            cell = orders[:, k]
            row = row + model.image_next_position(cell)
            z = [s.push(row[:, None])[:, -1] for s in streams]
            x = sample(z[0], z[1], 2.5, noise(), noise, a.steps, 1.0, 3.0)
            tokens[torch.arange(a.batch), cell] = x.to(tokens.dtype)
            row = model.image_in(x) + model.image_position(cell)
        model.vae.decode(unpatchify(tokens, model.patch)).float().cpu()

    return run


def head(a, compiled):
    from diffusion import DiffusionHead

    network = DiffusionHead(a.channels, a.condition, a.width, a.depth).to(a.device, torch.bfloat16)
    if compiled:
        network.forward = torch.compile(network.forward)
    z = torch.randn(a.tokens, a.condition)

    def noise(s=None):
        return torch.randn(a.tokens, a.channels)

    return lambda: network.sample(z, z, 2.5, noise(), noise, a.steps, 1.0, 3.0)


def product(a, compiled):
    x, w = (torch.randn(a.size, a.size, device=a.device, dtype=torch.bfloat16) for _ in range(2))
    run = torch.compile(torch.nn.functional.linear) if compiled else torch.nn.functional.linear
    return lambda: run(x, w)


def attention(a, compiled):
    """Soft-capped attention of rows that all see each other: the formula, and flex_attention compiled."""
    q = torch.randn(1, a.heads, a.rows, a.head_dim, dtype=torch.bfloat16)
    k, v = (torch.randn(1, a.kv_heads, a.rows, a.head_dim, dtype=torch.bfloat16) for _ in range(2))
    scale = a.head_dim ** -0.5
    if compiled:
        from torch.nn.attention.flex_attention import flex_attention

        def capped(score, *_):
            return a.soft_cap * torch.tanh(score / a.soft_cap)

        fused = torch.compile(flex_attention)
        return lambda: fused(q, k, v, score_mod=capped, scale=scale, enable_gqa=True)
    group = a.heads // a.kv_heads

    def formula():
        keys, values = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = a.soft_cap * torch.tanh(q @ keys.transpose(2, 3) * scale / a.soft_cap)
        return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ values

    return formula


def vae(a, compiled):
    from vae import AutoencoderKL

    model = AutoencoderKL.load(os.path.join(a.checkpoint, "vae")).to(a.device, torch.bfloat16)
    decode = torch.compile(model.decode) if compiled else model.decode
    latents = torch.randn(1, model.config["latent_channels"], 64, 64, device=a.device, dtype=torch.bfloat16)
    return lambda: decode(latents)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("case", choices=["generate", "head", "product", "attention", "vae"])
    p.add_argument("--reference", required=True)
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--device", default="cuda")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--warm", type=int, default=2)
    p.add_argument("--ways", default="eager,compiled")
    p.add_argument("--soft-cap", dest="soft_cap", type=float, default=50.0)
    for name, default in dict(batch=1, steps=100, channels=16, condition=2304, width=1280, depth=8, tokens=1,
                              size=4096, rows=2048, heads=8, kv_heads=4, head_dim=256).items():
        p.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    a = p.parse_args()
    sys.path.insert(0, a.reference)
    wait = torch.cuda.synchronize if a.device == "cuda" else (lambda: None)
    for way in a.ways.split(","):
        try:
            torch.set_default_device(a.device)
            with torch.inference_mode(), torch.autocast(a.device, torch.bfloat16):
                run = globals()[a.case](a, way == "compiled")
                taken = []
                for i in range(a.rounds + a.warm):
                    wait()
                    begin = time.perf_counter()
                    run()
                    wait()
                    if i >= a.warm:
                        taken.append(time.perf_counter() - begin)
                print(way, statistics.median(taken), flush=True)
        except Exception as error:  # the other way may still run
            print(f"{a.case}, {way}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
