"""The PyTorch side of bench/gpu.mjs, in bfloat16, eager and with torch.compile in its default mode.

    python gpu_peer.py CASE --reference DIR [--checkpoint DIR] [--rounds N] [--warm N] [--calls N] [--batches 1,64]
                       [--ways eager,compiled] [--device cuda] [sizes ...]

CASE: generate (whole pictures), head, product, attention, vae. Runs every way and batch until nothing is compiled any
more, which takes long, and then waits to be asked by lines like "compiled 64" on standard input; who asks before need
not wait for the ways and batches behind that one. Prints lines of JSON: {"torch": version} at its beginning,
{"prepared": true} when it waits, and for each question {"way", "batch", "seconds"}, the median of the rounds after the
warm-up, or {"way", "batch", "failed"}.

Calls follow each other without waiting, as ours do: a round is --calls of them between two synchronizations. A round
in which something was compiled does not count. The modules are the reference's. What it would make again for every
token (masks, the schedule's tables) is made once here; no mode that intercepts calls is on while time is taken.
Attention is torch's scaled_dot_product_attention where the model has no soft cap, as the autoencoder's; Gemma 2's has
one, which that does not know: there it is the formula, compiled flex_attention for the one of many rows.
"""
import argparse
import functools
import json
import math
import os
import select
import statistics
import sys
import time

import torch
import torch.nn.functional as F

GUIDANCE, LIMIT = 2.5, 3.0
compiled_once = functools.cache(torch.compile)


def time_features(t, width=256):
    """As the reference's, made where `t` is and in the type of the weights."""
    f = torch.exp(-math.log(10000) * torch.arange(width // 2, device=t.device, dtype=torch.float32) / (width // 2))
    angle = t.float()[:, None] * f
    return torch.cat([angle.cos(), angle.sin()], -1).to(torch.bfloat16)


def sampler(a, network, compiled):
    """DiffusionHead.sample of the reference for pairs of guided rows z; all that a step does is one function."""
    import diffusion

    diffusion.time_features = time_features
    schedule = diffusion.Schedule(network.timesteps, a.steps)
    tables = [schedule.recip, schedule.recipm1, schedule.coef_x0, schedule.coef_x, schedule.log_beta, schedule.log_tilde]
    coefficients = torch.tensor(list(zip(*tables)), device=a.device, dtype=torch.float32)
    times = torch.tensor(schedule.times, device=a.device)

    def step(x, noise, z, t, c):
        eps, v = network(torch.cat([x, x]).to(z.dtype), t.expand(len(z)), z)
        eps, eps_empty = eps.float().chunk(2)
        eps = eps_empty + GUIDANCE * (eps - eps_empty)
        x0 = (c[0] * x - c[1] * eps).clamp(-LIMIT, LIMIT)
        share = (v.float().chunk(2)[0] + 1) / 2
        return c[2] * x0 + c[3] * x + (0.5 * (share * c[4] + (1 - share) * c[5])).exp() * noise

    run = torch.compile(step) if compiled else step
    draw = functools.partial(torch.randn, device=a.device)
    channels = network.input_proj.in_features

    def sample(z):
        x = draw(len(z) // 2, channels)
        for i in reversed(range(a.steps)):
            noise = draw(x.shape) if i else torch.zeros_like(x)
            x = run(x, noise, z, times[i], coefficients[i])
        return x

    return sample


def attend(self, x):
    """vae.Attention.forward with the fused attention."""
    b, c, h, w = x.shape
    y = self.group_norm(x).flatten(2).transpose(1, 2)
    q, k, v = (f(y)[:, None] for f in (self.to_q, self.to_k, self.to_v))
    y = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
    return x + y.transpose(1, 2).reshape(b, c, h, w)


def to_pixels(x):
    """On the host, as ours end."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


@functools.cache
def load(checkpoint, device):
    from unifluid import UniFluid

    with torch.device(device):                          # billions of random numbers would take the host a minute
        model = UniFluid.load(checkpoint)
    model.to(device, torch.bfloat16)
    model.vae.to(device, torch.bfloat16)                # it is not among the model's modules
    return model


def generate(a, compiled):
    """Pictures as UniFluid.draw of the reference makes them, with guidance's rows in the same batch. Of the cells only
    --cells are drawn, in the middle of a picture, and count for all of them."""
    from unifluid import Stream, unpatchify

    model, on_device = load(a.checkpoint, a.device), torch.device(a.device)
    decoder, decode = model.language_model, model.vae.decode
    if compiled:
        decoder, decode = compiled_once(decoder, dynamic=True), compiled_once(decode)
    sample, b, now = sampler(a, model.diffusion_head, compiled), a.batch, {}
    first = (model.cells - a.cells) // 2

    def prefix():
        with on_device:
            prefixes = [model.prefix("generate", "a red circle")] * b + [model.prefix("generate", "")] * b
            now["stream"] = Stream(model, prefixes)

    def before():
        """Puts rows into the cache for the cells before; makes the masks of those to come."""
        stream = now["stream"]
        with on_device:
            stream.push(torch.randn(2 * b, first, model.text_config.hidden_size, dtype=torch.bfloat16))
            now["end"] = end = stream.rows.shape[1]
            masks = model.mask(stream.pads, stream.end, end + a.cells - 1, end + a.cells)
            masks = masks if isinstance(masks, dict) else {"full_attention": masks}
            now["masks"] = {k: m.to(torch.bfloat16) for k, m in masks.items()}
            now["orders"] = torch.stack([torch.randperm(model.cells) for _ in range(b)])
            now["everything"] = torch.arange(b)
            now["tokens"] = torch.zeros(b, model.cells, model.channels, dtype=torch.bfloat16)

    def cells():
        stream, orders, end, tokens = now["stream"], now["orders"], now["end"], now["tokens"]
        row = model.image_begin.expand(b, -1)
        for k in range(a.cells):
            cell = orders[:, first + k]
            row = row + model.image_next_position(cell)
            masks = {name: m[..., :end + k + 1] for name, m in now["masks"].items()}
            position = end + k - stream.pads[:, None] + model.first_position
            out = decoder(inputs_embeds=torch.cat([row, row])[:, None], attention_mask=masks, position_ids=position,
                          past_key_values=stream.cache, use_cache=True)
            x = sample(out.last_hidden_state[:, -1]).to(torch.bfloat16)
            tokens[now["everything"], cell] = x
            row = model.image_in(x) + model.image_position(cell)

    def picture():
        to_pixels(decode(unpatchify(now["tokens"], model.patch)))
        now.clear()                                     # the cache of a large batch is not kept for the others

    return [(prefix, 1), (before, 0), (cells, model.cells / a.cells), (picture, 1)]


def head(a, compiled):
    from diffusion import DiffusionHead

    network = DiffusionHead(a.channels, a.condition, a.width, a.depth).to(a.device, torch.bfloat16)
    sample = sampler(a, network, compiled)
    z = torch.randn(2 * a.tokens, a.condition, device=a.device, dtype=torch.bfloat16)
    return [(lambda: sample(z), 1)]


def product(a, compiled):
    x, w = (torch.randn(a.size, a.size, device=a.device, dtype=torch.bfloat16) for _ in range(2))
    run = torch.compile(F.linear) if compiled else F.linear
    return [(lambda: run(x, w), 1)]


def attention(a, compiled):
    """Of rows that all see each other. With a soft cap: the formula, and flex_attention compiled."""
    draw = functools.partial(torch.randn, device=a.device, dtype=torch.bfloat16)
    q, k, v = (draw(1, n, a.rows, a.head_dim) for n in (a.heads, a.kv_heads, a.kv_heads))
    scale, cap = a.head_dim ** -0.5, a.soft_cap
    if not cap:
        fused = functools.partial(F.scaled_dot_product_attention, scale=scale, enable_gqa=True)
    elif compiled:
        from torch.nn.attention.flex_attention import flex_attention

        def capped(score, *_):
            return cap * torch.tanh(score / cap)

        fused = functools.partial(flex_attention, score_mod=capped, scale=scale, enable_gqa=True)
    else:
        def fused(q, k, v):
            keys, values = (x.repeat_interleave(a.heads // a.kv_heads, 1) for x in (k, v))
            scores = cap * torch.tanh(q @ keys.transpose(2, 3) * scale / cap)
            return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ values
    run = torch.compile(fused) if compiled else fused
    return [(lambda: run(q, k, v), 1)]


def vae(a, compiled):
    from vae import AutoencoderKL

    model = AutoencoderKL.load(os.path.join(a.checkpoint, "vae")).to(a.device, torch.bfloat16)
    decode = torch.compile(model.decode) if compiled else model.decode
    latents = torch.randn(1, model.config["latent_channels"], a.side, a.side, device=a.device, dtype=torch.bfloat16)
    return [(lambda: to_pixels(decode(latents)), 1)]


def compilations():
    from torch._dynamo.utils import counters

    return sum(counters["frames"].values()) + counters["stats"]["unique_graphs"]


def once(a, parts, calls):
    """Seconds of a round: the sum of its parts times how often they count."""
    wait = torch.cuda.synchronize if a.device == "cuda" else (lambda: None)
    total = 0.0
    for run, share in parts:
        wait()
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        wait()
        total += share * (time.perf_counter() - begin) / calls
    return total


def prepare(a, way, batch):
    """The parts of a round, compiled and run."""
    a.batch = batch
    parts = globals()[a.case](a, way == "compiled")
    for _ in range(4):
        before = compilations()
        once(a, parts, 1)
        if compilations() == before:
            break
    if a.device == "cuda":
        torch.cuda.empty_cache()                # others want memory meanwhile
    return parts


def measure(a, parts):
    """Seconds: the median of the rounds."""
    for _ in range(a.warm):
        once(a, parts, a.calls)
    taken = []
    for _ in range(2 * a.rounds + 2):
        before = compilations()
        seconds = once(a, parts, a.calls)
        if compilations() == before:
            taken.append(seconds)
        if len(taken) == a.rounds:
            return statistics.median(taken)
    raise RuntimeError(f"expected {a.rounds} rounds in which nothing is compiled but had {len(taken)}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("case", choices=["generate", "head", "product", "attention", "vae"])
    p.add_argument("--reference", required=True)
    p.add_argument("--checkpoint", default="")
    p.add_argument("--device", default="cuda")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--warm", type=int, default=2)
    p.add_argument("--calls", type=int, default=1)
    p.add_argument("--ways", default="eager,compiled")
    p.add_argument("--batches", default="1")
    p.add_argument("--soft-cap", dest="soft_cap", type=float, default=50.0)
    for name, default in dict(cells=16, steps=100, channels=16, condition=2304, width=1280, depth=8, tokens=1,
                              size=4096, rows=2048, heads=8, kv_heads=4, head_dim=256, side=64).items():
        p.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    a = p.parse_args()
    sys.path.insert(0, a.reference)
    try:
        import vae
        vae.Attention.forward = attend
    except ImportError:
        pass                                    # the product and the attention need no reference
    import torch._dynamo as dynamo
    # Rather an error than eager code in place of compiled.
    for name, value in dict(recompile_limit=64, cache_size_limit=64, fail_on_recompile_limit_hit=True).items():
        if hasattr(dynamo.config, name):
            setattr(dynamo.config, name, value)
    say = lambda **answer: print(json.dumps(answer), flush=True)
    say(torch=torch.__version__)
    def attempt(run, *args):
        """What it returns, and why it failed."""
        try:
            with torch.inference_mode():
                return run(*args), None
        except Exception as error:              # the others may still run
            return None, f"{type(error).__name__}: {error}"

    pairs = [(way, int(batch)) for way in a.ways.split(",") for batch in a.batches.split(",")]
    prepared = {}

    def parts_of(pair):
        """Of all before it too: their order is always the same, and with it what is compiled."""
        while pair not in prepared:
            following = pairs[len(prepared)]
            prepared[following] = attempt(prepare, a, *following)
        return prepared[pair]

    for pair in pairs:
        if select.select([sys.stdin], [], [], 0)[0]:
            break                               # a question, or the end
        parts_of(pair)
    say(prepared=True)
    for line in sys.stdin:
        way, batch = line.split()
        batch = int(batch)
        parts, failed = parts_of((way, batch))
        if not failed:
            a.batch = batch
            seconds, failed = attempt(measure, a, parts)
        say(way=way, batch=batch, **({"failed": failed} if failed else {"seconds": seconds}))


if __name__ == "__main__":
    main()
