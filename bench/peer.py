"""The PyTorch side of bench/run.mjs: loads once, then runs once for every line on standard input.

    python peer.py CASE CHECKPOINT --threads 2 [--reference DIR] [--batch N]

Prints {"ready": true}, then {"seconds"} of each run. CASE: generate (needs --reference, the folder of the
PyTorch reference implementation), prefill, vision, vae (needs --reference).
"""
import argparse
import json
import os
import sys
import time

import torch


def generate(a):
    sys.path.insert(0, a.reference)
    from unifluid import UniFluid

    model = UniFluid.load(a.checkpoint)
    prompts = ["a red circle left of a blue square"] * a.batch
    return lambda: model.vae.decode(model.generate(prompts, seed=7, steps=a.steps))


def prefill(a):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    with open(os.path.join(a.checkpoint, "config.json")) as f:
        fields = json.load(f)
    fields.pop("model_type")
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "rope_theta"):
        fields[name] = float(fields[name])                  # JavaScript writes 30.0 as 30
    model = Gemma2ForCausalLM(Gemma2Config(**fields, attn_implementation="eager")).eval()
    ids = torch.arange(a.rows)[None] % 500 + 4
    return lambda: model(ids, use_cache=False)


def vision(a):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    with open(os.path.join(a.checkpoint, "config.json")) as f:
        fields = json.load(f)["vision_config"]
    fields.pop("model_type")
    model = SiglipVisionModel(SiglipVisionConfig(**fields)).eval()
    pixels = torch.rand(1, 3, fields["image_size"], fields["image_size"]) * 2 - 1
    return lambda: model(pixel_values=pixels)


def vae(a):
    sys.path.insert(0, a.reference)
    from vae import AutoencoderKL

    model = AutoencoderKL.load(os.path.join(a.checkpoint, "vae"))
    latents = torch.randn(1, model.config["latent_channels"], 32, 32)
    return lambda: model.decode(latents)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("case", choices=["generate", "prefill", "vision", "vae"])
    p.add_argument("checkpoint")
    p.add_argument("--reference", default="")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--steps", type=int, default=25)
    p.add_argument("--rows", type=int, default=256)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    with torch.inference_mode():
        run = globals()[a.case](a)
        run()
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            begin = time.perf_counter()
            run()
            print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)


if __name__ == "__main__":
    main()
