import { readFileSync } from "node:fs";
import { join } from "node:path";
import { checkImageAgainstVae, parseModelConfig } from "../../lib/checkpoint/config";
import { Fields } from "../../lib/checkpoint/fields";
import { parseVaeConfig, vaeFactor } from "../../lib/checkpoint/vae-config";
import { setField } from "../support/checkpoints";
import { FIXTURES } from "../support/fixtures";

const readConfig = (path: string) => JSON.parse(readFileSync(join(FIXTURES, path), "utf8"));
const parse = (json: unknown) => parseModelConfig(Fields.of(json, "config.json"));

/** A fixture's configuration with fields set. */
function changed(fixture: string, fields: Record<string, unknown>) {
  const json = readConfig(`${fixture}/config.json`);
  for (const [path, value] of Object.entries(fields)) setField(json, path, value);
  return json;
}

describe("absent fields have the defaults of transformers", () => {
  test("Gemma", () => {
    expect(parse({ model_type: "gemma" })).toMatchObject({
      kind: "gemma",
      bosToken: 2,
      eosTokens: [1],
      text: {
        gemma2: false,
        vocabSize: 256000,
        hiddenSize: 3072,
        intermediateSize: 24576,
        layers: 28,
        heads: 16,
        kvHeads: 16,
        headDim: 256,
        rmsNormEps: 1e-6,
        ropeTheta: 10000,
        attentionScale: 1 / 16,
        attentionSoftCap: 0,
        logitSoftCap: 0,
        windows: new Array(28).fill(0),
        activation: "gelu_tanh",
        firstPosition: 0,
        bidirectionalPrefix: false,
        maxPositions: 8192,
      },
    });
  });

  test("Gemma 2", () => {
    const { text } = parse({ model_type: "gemma2" });
    expect(text).toMatchObject({
      gemma2: true,
      hiddenSize: 2304,
      intermediateSize: 9216,
      layers: 26,
      heads: 8,
      kvHeads: 4,
      headDim: 256,
      attentionScale: 1 / 16,
      attentionSoftCap: 50,
      logitSoftCap: 30,
    });
    expect(text.windows.slice(0, 4)).toEqual([4096, 0, 4096, 0]);
  });

  test("PaliGemma, with nothing said and as published", () => {
    expect(parse({ model_type: "paligemma" })).toMatchObject({
      text: { vocabSize: 257152, hiddenSize: 2048, layers: 18, heads: 8, kvHeads: 1, headDim: 256 },
      vision: {
        hiddenSize: 1152,
        intermediateSize: 4096,
        layers: 27,
        imageSize: 224,
        patchSize: 14,
      },
    });
    const published = {
      model_type: "paligemma",
      bos_token_id: 2,
      eos_token_id: 1,
      projection_dim: 2048,
      text_config: {
        hidden_size: 2048,
        intermediate_size: 16384,
        num_attention_heads: 8,
        num_hidden_layers: 18,
        num_image_tokens: 256,
        num_key_value_heads: 1,
        vocab_size: 257216,
      },
      vision_config: {
        hidden_size: 1152,
        intermediate_size: 4304,
        model_type: "siglip_vision_model",
        num_attention_heads: 16,
        num_hidden_layers: 27,
        patch_size: 14,
        projector_hidden_act: "gelu_fast",
        vision_use_head: false,
      },
    };
    expect(parse(published)).toMatchObject({
      text: {
        gemma2: false,
        intermediateSize: 16384,
        firstPosition: 1,
        bidirectionalPrefix: true,
        activation: "gelu_tanh",
      },
      vision: {
        intermediateSize: 4304,
        imageSize: 224,
        layerNormEps: 1e-6,
        activation: "gelu_tanh",
      },
    });
  });

  test("SigLIP", () => {
    const { vision } = parse(changed("unifluid-tiny", { vision_config: {} }));
    expect(vision).toEqual({
      hiddenSize: 768,
      intermediateSize: 3072,
      layers: 12,
      heads: 12,
      imageSize: 224,
      patchSize: 16,
      layerNormEps: 1e-6,
      activation: "gelu_tanh",
    });
  });

  test("AutoencoderKL", () => {
    expect(parseVaeConfig(Fields.of({ shift_factor: null }, "vae"))).toEqual({
      inChannels: 3,
      outChannels: 3,
      blockOutChannels: [64],
      layersPerBlock: 1,
      latentChannels: 4,
      normGroups: 32,
      scalingFactor: 0.18215,
      shiftFactor: 0,
      downAttention: [false],
      upAttention: [false],
      midBlockAttention: true,
      quantConv: true,
      postQuantConv: true,
    });
  });

  test("UniFluid", () => {
    const json = changed("unifluid-tiny", {
      prompts: undefined,
      edit_source_latents: undefined,
      prefix_attention: undefined,
      "diffusion_head.timesteps": undefined,
      vision_config: undefined,
    });
    const config = parse(json);
    expect(config.vision).toBeUndefined();
    expect(config.text.bidirectionalPrefix).toBe(true);
    expect(config.image).toMatchObject({ timesteps: 1000, flow: false, editSourceLatents: true });
    expect(config.templates.edit).toBe("edit {instruction}\n");
  });
});

describe("what configurations may say", () => {
  test.each([
    [{ hidden_activation: null, hidden_act: "gelu" }, "gelu_tanh"],
    [{ hidden_activation: null, hidden_act: "gelu_pytorch_tanh" }, "gelu_tanh"],
    [{ hidden_activation: "gelu_pytorch_tanh" }, "gelu_tanh"],
    [{ hidden_activation: null }, "gelu_tanh"],
    [{ hidden_act: "silu", hidden_activation: undefined }, "silu"],
  ])("Gemma's activation in %j", (fields, activation) => {
    expect(parse(changed("gemma-tiny", fields)).text.activation).toBe(activation);
  });

  test("Gemma 2 without caps and windows, or with layer types", () => {
    const none = {
      attn_logit_softcapping: null,
      final_logit_softcapping: null,
      sliding_window: null,
    };
    expect(parse(changed("gemma2-tiny", none)).text).toMatchObject({
      attentionSoftCap: 0,
      logitSoftCap: 0,
      windows: [0, 0, 0, 0],
    });
    const [full, sliding] = ["full_attention", "sliding_attention"];
    const types = changed("gemma2-tiny", { layer_types: [full, full, sliding, full] });
    expect(parse(types).text.windows).toEqual([0, 0, 6, 0]);
  });

  test("rope_theta in its newer place", () => {
    const rope = { rope_type: "default", rope_theta: 5e5 };
    const json = changed("gemma-tiny", { rope_parameters: rope, rope_theta: undefined });
    expect(parse(json).text.ropeTheta).toBe(5e5);
  });

  test("several end tokens; ids at the top of a PaliGemma configuration", () => {
    expect(parse(changed("gemma-tiny", { eos_token_id: [1, 107] })).eosTokens).toEqual([1, 107]);
    const top = changed("paligemma-tiny", {
      bos_token_id: 7,
      eos_token_id: 8,
      "text_config.bos_token_id": undefined,
      "text_config.eos_token_id": undefined,
    });
    expect(parse(top)).toMatchObject({ bosToken: 7, eosTokens: [8] });
  });

  test("a causal prefix", () => {
    const json = changed("unifluid-tiny", { prefix_attention: "causal" });
    expect(parse(json).text.bidirectionalPrefix).toBe(false);
  });
});

const refused: [fixture: string, fields: Record<string, unknown>, message: RegExp][] = [
  ["gemma-tiny", { model_type: "llama" }, /"unifluid" or .* for model_type but found "llama"/],
  ["gemma-tiny", { model_type: undefined }, /for model_type but found nothing/],
  ["gemma-tiny", { num_hidden_layers: 0 }, /integer from 1 to 1024 for num_hidden_layers.*found 0/],
  ["gemma-tiny", { num_hidden_layers: "3" }, /num_hidden_layers but found "3"/],
  ["gemma-tiny", { num_hidden_layers: 2.5 }, /num_hidden_layers but found 2.5/],
  ["gemma-tiny", { hidden_size: -1 }, /hidden_size/],
  ["gemma-tiny", { hidden_size: 1e12 }, /hidden_size/],
  ["gemma-tiny", { vocab_size: [] }, /vocab_size/],
  ["gemma-tiny", { num_key_value_heads: 3 }, /divisor of num_attention_heads \(4\)/],
  ["gemma-tiny", { head_dim: 7 }, /an even number/],
  ["gemma-tiny", { rms_norm_eps: -1 }, /rms_norm_eps/],
  ["gemma-tiny", { rms_norm_eps: true }, /rms_norm_eps/],
  ["gemma-tiny", { rope_theta: 0 }, /rope_theta/],
  [
    "gemma-tiny",
    { rope_scaling: { type: "linear", factor: 2 } },
    /rope_scaling: expected "default"/,
  ],
  ["gemma-tiny", { rope_parameters: { rope_type: "yarn" } }, /rope_type.*found "yarn"/],
  ["gemma-tiny", { hidden_act: "quick_gelu" }, /hidden_act but found "quick_gelu"/],
  ["gemma-tiny", { attention_bias: true }, /false .* for attention_bias but found true/],
  ["gemma-tiny", { use_bidirectional_attention: true }, /use_bidirectional_attention/],
  ["gemma-tiny", { bos_token_id: 352 }, /from 0 to 351 for bos_token_id/],
  ["gemma-tiny", { eos_token_id: [] }, /eos_token_id/],
  ["gemma-tiny", { eos_token_id: [1, -1] }, /eos_token_id/],
  ["gemma2-tiny", { query_pre_attn_scalar: 0 }, /query_pre_attn_scalar/],
  ["gemma2-tiny", { sliding_window: 0 }, /sliding_window/],
  ["gemma2-tiny", { attn_logit_softcapping: -1 }, /attn_logit_softcapping/],
  ["gemma2-tiny", { layer_types: ["full_attention"] }, /a list of 4/],
  ["gemma2-tiny", { layer_types: new Array(4).fill("x") }, /layer_types but found "x"/],
  ["paligemma-tiny", { "text_config.model_type": "llama" }, /text_config: expected "gemma" or/],
  ["paligemma-tiny", { "text_config.use_bidirectional_attention": false }, /use_bidirectional/],
  ["paligemma-tiny", { "vision_config.patch_size": 33 }, /at least patch_size \(33\).*found 32/],
  ["paligemma-tiny", { "vision_config.num_attention_heads": 5 }, /divisor of hidden_size \(24\)/],
  ["paligemma-tiny", { "vision_config.num_channels": 1 }, /num_channels/],
  ["paligemma-tiny", { "vision_config.model_type": "clip_vision_model" }, /siglip_vision_model/],
  ["paligemma-tiny", { vision_config: "x" }, /an object for vision_config/],
  ["unifluid-tiny", { text_config: undefined }, /an object for text_config but found nothing/],
  ["unifluid-tiny", { "text_config.model_type": undefined }, /model_type/],
  ["unifluid-tiny", { image_generation: undefined }, /an object for image_generation/],
  ["unifluid-tiny", { diffusion_head: 3 }, /an object for diffusion_head/],
  ["unifluid-tiny", { "image_generation.grid": 0 }, /grid/],
  [
    "unifluid-tiny",
    { "image_generation.image_size": 999 },
    /a multiple of grid \* latent_patch \(8\).* for image_size but found 999/,
  ],
  [
    "unifluid-tiny",
    { "image_generation.latent_patch": 3, "image_generation.image_size": 48 },
    /a multiple of latent_patch\^2 \(9\) for token_channels but found 16/,
  ],
  ["unifluid-tiny", { "diffusion_head.noise_schedule": "linear" }, /"cosine".*noise_schedule/],
  ["unifluid-tiny", { "diffusion_head.objective": "score" }, /"ddpm" or "flow" for objective/],
  ["unifluid-tiny", { "diffusion_head.timesteps": 1 }, /timesteps/],
  ["unifluid-tiny", { "diffusion_head.timesteps": 10_001 }, /timesteps/],
  ["unifluid-tiny", { prefix_attention: "both" }, /prefix_attention/],
  ["unifluid-tiny", { edit_source_latents: "yes" }, /edit_source_latents/],
  ["unifluid-tiny", { "prompts.generate": "draw" }, /holds {prompt} once for generate/],
  ["unifluid-tiny", { "prompts.answer": "{question} {question}" }, /holds {question} once/],
  ["unifluid-tiny", { "prompts.caption": 1 }, /caption/],
];

test.each(refused)("%s with %j is refused", (fixture, fields, message) => {
  const json = changed(fixture, fields);
  expect(() => parse(json)).toThrow(message);
  expect(() => parse(json)).toThrow(expect.objectContaining({ code: "INVALID_CONFIG" }));
});

test("a field nested deeper than the stack is refused like any other", () => {
  const bias = JSON.parse("[".repeat(200_000) + "]".repeat(200_000));
  const json = { ...readConfig("gemma-tiny/config.json"), attention_bias: bias };
  expect(() => parse(json)).toThrow(/false .* for attention_bias/);
  expect(() => parse(json)).toThrow(expect.objectContaining({ code: "INVALID_CONFIG" }));
});

test.each([[null], [[]], ["gemma"], [3]])("a configuration that is %j is refused", (json) => {
  expect(() => parse(json)).toThrow(expect.objectContaining({ code: "INVALID_CONFIG" }));
});

describe("the autoencoder", () => {
  const vae = readConfig("vae-tiny/vae/config.json");

  test.each<[Record<string, unknown>, RegExp]>([
    [{ act_fn: "relu" }, /"silu" or "swish".*act_fn but found "relu"/],
    [{ in_channels: 1 }, /in_channels/],
    [{ block_out_channels: [] }, /block_out_channels/],
    [{ block_out_channels: [8, 10] }, /divisor of every block's channels \(10\)/],
    [{ down_block_types: ["AttnDownBlock2D", "x", "y"] }, /3 times "DownEncoderBlock2D"/],
    [{ up_block_types: ["UpDecoderBlock2D"] }, /3 times "UpDecoderBlock2D"/],
    [{ scaling_factor: 0 }, /scaling_factor/],
    [{ shift_factor: "0.1" }, /shift_factor/],
    [{ latents_mean: [1, 2] }, /latents_mean/],
    [{ mid_block_add_attention: 1 }, /mid_block_add_attention/],
    [{ _class_name: "AsymmetricAutoencoderKL" }, /AutoencoderKL/],
  ])("with %j is refused", (fields, message) => {
    expect(() => parseVaeConfig(Fields.of({ ...vae, ...fields }, "vae"))).toThrow(message);
  });

  test("may attend in any block", () => {
    const parsed = parseVaeConfig(
      Fields.of(
        {
          ...vae,
          down_block_types: ["DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        },
        "vae",
      ),
    );
    expect(parsed.downAttention).toEqual([false, false, true]);
    expect(parsed.upAttention).toEqual([false, false, false]);
  });

  test("must agree with the image part", () => {
    const { image } = parse(readConfig("unifluid-tiny/config.json"));
    const parsed = parseVaeConfig(Fields.of(vae, "vae"));
    expect(vaeFactor(parsed)).toBe(4);
    expect(() => checkImageAgainstVae(image!, parsed, "c")).not.toThrow();
    const wrong = (change: object) => () =>
      checkImageAgainstVae({ ...image!, ...change }, parsed, "c");
    expect(wrong({ grid: 5 })).toThrow("32 / 4 / 2 = 4 for image_generation.grid but found 5");
    expect(wrong({ tokenChannels: 8 })).toThrow(
      /= 16 for image_generation.token_channels but found 8/,
    );
  });
});
