/** Who runs when: priorities, the length of the queue, the memory budget, and what the statistics tell of it. */

import { getEventListeners } from "node:events";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { loadAddon } from "../../lib/addon";
import { type DrawingProgress, UniFluid } from "../../lib/index";
import { CheckpointCopy } from "../support/checkpoints";

const tiny = join(__dirname, "..", "fixtures", "unifluid-tiny");
const picture = join(tiny, "caption0.png");
/** A model whose drawing of 1000 steps takes seconds, so that it is surely at work when a test looks. */
const SLOW = "shapes-64";

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 1000; i++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error("waited in vain");
}

/** The names of the promises in the order in which they were fulfilled. */
async function finishing(work: Record<string, Promise<unknown>>): Promise<string[]> {
  const order: string[] = [];
  await Promise.all(
    Object.entries(work).map(([name, promise]) => promise.then(() => order.push(name))),
  );
  return order;
}

describe("priorities", () => {
  let model: UniFluid;
  beforeAll(async () => {
    model = await UniFluid.load(SLOW, { threads: 1, maxSequences: 1 });
  });
  afterAll(() => model.dispose());
  const draw = (priority?: number) =>
    model.generateLatents("a circle", { seed: 1, steps: 2, ...(priority ? { priority } : {}) });

  test("a higher one is admitted first, equals in the order they came", async () => {
    const controller = new AbortController();
    const blocker = model
      .generateLatents("a", { steps: 1000, signal: controller.signal })
      .catch(() => {});
    await until(() => model.stats().running === 1);
    const work = {
      low: draw(-1),
      first: draw(),
      second: draw(),
      high: draw(2),
      caption: model.caption(picture, { priority: 1, maxNewTokens: 2 }),
    };
    await until(() => model.stats().waiting === 5);
    controller.abort();
    expect(await finishing(work)).toEqual(["high", "caption", "first", "second", "low"]);
    await blocker;
  });

  test("an early request is overtaken by a bounded number of later ones", async () => {
    const controller = new AbortController();
    const blocker = model
      .generateLatents("a", { steps: 1000, signal: controller.signal })
      .catch(() => {});
    await until(() => model.stats().running === 1);
    const write = (priority: number) => model.complete("a", { maxNewTokens: 1, priority });
    const early = write(0);
    const later = Array.from({ length: 100 }, () => write(1));
    controller.abort();
    const order = await finishing({
      early,
      ...Object.fromEntries(later.map((promise, i) => [`later ${i}`, promise])),
    });
    // A level is worth 64 places.
    expect(order.indexOf("early")).toBe(63);
    await blocker;
  });

  test.each([0.5, 1001, -1001, "high"])("%p is refused", async (priority) => {
    await expect(model.generate("a", { priority: priority as number })).rejects.toMatchObject({
      code: "INVALID_OPTION",
    });
  });
});

describe("what needs no sequence", () => {
  const latents = new Float32Array(64 * 16);

  test("is done beside those that run, without a place among them", async () => {
    const model = await UniFluid.load(SLOW, { threads: 1, maxSequences: 1 });
    try {
      const controller = new AbortController();
      const options = { steps: 1000, signal: controller.signal };
      const held = [0, 1].map(() => model.generateLatents("a", options).catch(() => {}));
      await until(() => model.stats().running === 1 && model.stats().waiting === 1);
      await Promise.all([
        model.decodeLatents(latents),
        model.encodeImage(picture),
        model.imageFeatures(picture),
      ]);
      expect(model.stats()).toMatchObject({ running: 1, waiting: 1, completed: 3 });
      controller.abort();
      await Promise.all(held);
    } finally {
      await model.dispose();
    }
  });

  test("holds up no sequence, however much of it there is", async () => {
    const model = await UniFluid.load(SLOW, { threads: 1, maxSequences: 1 });
    try {
      const images = Array.from({ length: 100 }, () =>
        model.decodeLatents(latents, { priority: 1000 }),
      );
      const work = { text: model.complete("a", { maxNewTokens: 1 }), half: images[50]! };
      expect(await finishing(work)).toEqual(["text", "half"]);
      await Promise.all(images);
    } finally {
      await model.dispose();
    }
  });
});

describe("a stream that is left while it waits gives up its place at once", () => {
  const streams: [string, (model: UniFluid) => AsyncGenerator<unknown, unknown, undefined>][] = [
    ["a drawing", (model) => model.generateStream("a", { steps: 1 })],
    ["an edit", (model) => model.editStream(picture, "a", { steps: 1 })],
    ["a caption", (model) => model.captionStream(picture)],
    ["an answer", (model) => model.answerStream(picture, "what?")],
    ["a text", (model) => model.completeStream("a")],
    ["a run over items", (model) => model.generateAll(["a"], { steps: 1 })],
  ];

  test.each(streams)("%s", async (_name, begin) => {
    const model = await UniFluid.load(SLOW, { threads: 1, maxSequences: 1 });
    try {
      const controller = new AbortController();
      const options = { steps: 1000, signal: controller.signal };
      const running = model.generateLatents("a", options).catch(() => {});
      await until(() => model.stats().running === 1);
      const waits = async () => {
        const stream = begin(model);
        const next = stream.next();
        await until(() => model.stats().waiting === 1);
        return { stream, next };
      };
      const returned = await waits();
      const end = returned.stream.return(undefined);
      expect(model.stats().waiting).toBe(0);
      expect(await returned.next).toEqual({ done: true, value: undefined });
      expect(await end).toEqual({ done: true, value: undefined });
      const thrown = await waits();
      const failure = thrown.stream.throw(new Error("gone"));
      expect(model.stats().waiting).toBe(0);
      await expect(failure).rejects.toThrow("gone");
      // As a route of HTTP does when its client is gone.
      const readable = Readable.from(begin(model)).on("data", () => {});
      await until(() => model.stats().waiting === 1);
      readable.destroy();
      await until(() => model.stats().waiting === 0);
      expect(model.stats()).toMatchObject({ running: 1, completed: 0 });
      controller.abort();
      await running;
    } finally {
      await model.dispose();
    }
  });
});

test("a preview ends by a signal of its own, and the drawing goes on", async () => {
  const model = await UniFluid.load(tiny, { threads: 1 });
  try {
    let last: DrawingProgress | undefined;
    for await (const step of model.generateStream("a", { steps: 1 })) {
      const controller = new AbortController();
      const preview = step.image ? undefined : step.preview({ signal: controller.signal });
      controller.abort("enough");
      if (preview) await expect(preview).rejects.toBe("enough");
      last = step;
    }
    expect(last!.image).toBeDefined();
    await expect(last!.preview({ priority: 0 })).resolves.toBe(last!.image);
  } finally {
    await model.dispose();
  }
});

describe("a full queue", () => {
  test("refuses what could never fit as a wrong call, before any work", async () => {
    const model = await UniFluid.load(tiny, { threads: 1, maxSequences: 2, maxQueue: 1 });
    try {
      expect(model.capacity).toBe(3);
      const calls = [
        model.generate(Array(4).fill("a")),
        model.edit("/no/such/file.png", Array(4).fill("a")),
        model.caption(Array(4).fill("/no/such/file.png")),
        model.answer("/no/such/file.png", Array(4).fill("a")),
        model.complete(Array(4).fill("a")),
      ];
      for (const result of await Promise.allSettled(calls)) {
        expect(result).toMatchObject({ status: "rejected", reason: { code: "INVALID_OPTION" } });
        expect(String((result as PromiseRejectedResult).reason)).toMatch(
          /at most 3 requests .* but received 4/,
        );
      }
      expect(model.stats().refused).toBe(0);
      expect(await model.generate(["a", "b", "c"], { steps: 1 })).toHaveLength(3);
    } finally {
      await model.dispose();
    }
  });

  test("refuses at once with QUEUE_FULL, and takes requests again when there is room", async () => {
    const model = await UniFluid.load(SLOW, { threads: 1, maxSequences: 2, maxQueue: 1 });
    try {
      const controller = new AbortController();
      const options = { steps: 1000, signal: controller.signal };
      const held = [0, 1, 2].map(() => model.generateLatents("a", options));
      const settled = Promise.allSettled(held);
      await until(() => model.stats().running + model.stats().waiting === 3);
      const refused = model.generate("a", { steps: 1 });
      await expect(refused).rejects.toMatchObject({
        name: "QueueFullError",
        code: "QUEUE_FULL",
        message: expect.stringMatching(
          /the queue is full: \d requests running \(limit 2\), \d waiting \(limit 1\)/,
        ),
      });
      expect(model.stats().refused).toBe(1);
      controller.abort();
      await settled;
      await until(() => model.stats().running + model.stats().waiting === 0);
      await model.generate("a", { steps: 1 });
    } finally {
      await model.dispose();
    }
  });

  test("has room as soon as one that waits is aborted, in the middle of a step", async () => {
    const model = await UniFluid.load(SLOW, { threads: 1, maxSequences: 1, maxQueue: 1 });
    try {
      const [running, waiting] = [new AbortController(), new AbortController()];
      const draw = (controller: AbortController) =>
        model.generateLatents("a", { steps: 10_000, signal: controller.signal }).catch(() => {});
      const held = [draw(running)];
      await until(() => model.stats().running === 1);
      held.push(draw(waiting));
      await until(() => model.stats().waiting === 1);
      const { steps } = model.stats();
      waiting.abort();
      expect(model.stats()).toMatchObject({ running: 1, waiting: 0, steps });
      const next = model.generateLatents("a", { steps: 1 });
      await until(() => model.stats().waiting === 1);
      running.abort();
      await next;
      expect(model.stats()).toMatchObject({ completed: 1, cancelled: 2, refused: 0, waiting: 0 });
      await Promise.all(held);
    } finally {
      await model.dispose();
    }
  });

  test("keeps its length while a step is at work that admits some of it", async () => {
    const model = await UniFluid.load(SLOW, { threads: 1, maxSequences: 3, maxQueue: 1 });
    try {
      const controller = new AbortController();
      const options = { steps: 1000, signal: controller.signal };
      const calls: Promise<unknown>[] = [];
      const refused: unknown[] = [];
      const call = () => {
        const drawing = model.generateLatents("a", options);
        calls.push(drawing.catch((error) => !controller.signal.aborted && refused.push(error)));
      };
      call();
      await until(() => model.stats().running === 1);
      for (let i = 0; i < 2; i++) call();
      await until(() => model.stats().waiting === 2);
      const { steps } = model.stats();
      await until(() => model.stats().steps > steps);
      // The step that is at work now has admitted both, which is told at its end.
      for (let i = 0; i < 6; i++) call();
      await until(() => refused.length > 0);
      await until(() => model.stats().running === 3);
      expect(model.stats()).toMatchObject({ waiting: 1 });
      expect(calls.length - refused.length).toBe(4);
      // What waits and is aborted is not even kept until the end of the step.
      controller.abort();
      await Promise.all(calls);
      await until(() => model.stats().running === 0);
      expect(model.stats()).toMatchObject({ waiting: 0, cancelled: 4, refused: refused.length });
    } finally {
      await model.dispose();
    }
  });

  test("of no length takes what can run at once", async () => {
    const model = await UniFluid.load(SLOW, { threads: 1, maxSequences: 1, maxQueue: 0 });
    try {
      const first = model.generateLatents("a", { steps: 20 });
      await expect(model.generateLatents("a", { steps: 1 })).rejects.toMatchObject({
        code: "QUEUE_FULL",
      });
      await first;
      await model.generateLatents("a", { steps: 1 });
    } finally {
      await model.dispose();
    }
  });
});

test("a run over items waits for room in a full queue, and names an item that is none", async () => {
  const model = await UniFluid.load(tiny, { threads: 1, maxSequences: 1, maxQueue: 0 });
  try {
    const items = ["a", "b", null as unknown as string, "c"];
    const run = model.generateAll(items, { steps: 1, seed: 5, concurrency: 4, ordered: true });
    const results = [];
    for await (const { value, error } of run) results.push(value?.seed ?? error);
    expect(results).toEqual([
      5,
      6,
      expect.objectContaining({
        code: "INVALID_OPTION",
        message: expect.stringMatching(/expected a string or an object for item 2/),
      }),
      8,
    ]);
  } finally {
    await model.dispose();
  }
});

test("an item that waits for room in a full queue has its image read once", async () => {
  const model = await UniFluid.load(SLOW, { threads: 1, maxSequences: 1, maxQueue: 0 });
  try {
    const controller = new AbortController();
    const options = { steps: 1000, signal: controller.signal };
    const running = model.generateLatents("a", options).catch(() => {});
    await until(() => model.stats().running === 1);
    const file = await readFile(picture);
    const items = [new Response(file), new Response(file)];
    const spies = items.map((item) => jest.spyOn(item, "arrayBuffer"));
    const texts = (async () => {
      const values = [];
      for await (const { value, error } of model.captionAll(items)) values.push(value ?? error);
      return values;
    })();
    await until(() => model.stats().refused >= 4);
    controller.abort();
    expect(await texts).toEqual(Array(2).fill(await model.caption(picture)));
    for (const spy of spies) expect(spy).toHaveBeenCalledTimes(1);
    await running;
  } finally {
    await model.dispose();
  }
});

describe("the memory budget", () => {
  /** Bytes of a model at rest, and of sequences at work. */
  async function measure() {
    const probe = await UniFluid.load(SLOW, { threads: 1 });
    try {
      await Promise.all([
        probe.generate("a", { steps: 1 }),
        probe.edit(picture, "a", { steps: 1 }),
      ]);
      await until(() => probe.stats().running === 0);
      const { allocatedBytes: rest, workspaceBytes } = probe.stats();
      const sequence = async (start: (signal: AbortSignal) => Promise<unknown>) => {
        const controller = new AbortController();
        const work = start(controller.signal).catch(() => {});
        await until(() => probe.stats().running === 1);
        const { sequenceBytes } = probe.stats();
        controller.abort();
        await work;
        await until(() => probe.stats().running === 0);
        return sequenceBytes;
      };
      const long = { steps: 1000 };
      return {
        rest,
        weights: rest - workspaceBytes,
        drawing: await sequence((signal) => probe.generate("a", { ...long, guidance: 1, signal })),
        edit: await sequence((signal) => probe.edit(picture, "a", { ...long, signal })),
      };
    } finally {
      await probe.dispose();
    }
  }
  let bytes: Awaited<ReturnType<typeof measure>>;
  beforeAll(async () => {
    bytes = await measure();
  });

  test("makes requests wait for memory, and every one is served", async () => {
    const maxMemory = bytes.rest + 5 * bytes.drawing;
    const model = await UniFluid.load(SLOW, { threads: 1, maxSequences: 64, maxMemory });
    try {
      await model.generate("a", { steps: 1 });
      const controller = new AbortController();
      const long = { steps: 1000, guidance: 1, signal: controller.signal };
      const held = Promise.allSettled(
        Array.from({ length: 16 }, () => model.generateLatents("a", long)),
      );
      await until(() => model.stats().running > 1 && model.stats().waiting > 0);
      // Of the workspace what their steps do not take serves them too.
      expect(model.stats().running * bytes.drawing).toBeLessThanOrEqual(maxMemory - bytes.weights);
      controller.abort();
      await held;
      const drawn = await Promise.all(
        Array.from({ length: 32 }, (_, seed) =>
          model.generateLatents("a", { seed, steps: 2, guidance: 1 }),
        ),
      );
      expect(drawn).toHaveLength(32);
      expect(model.stats()).toMatchObject({ completed: 33, failed: 0 });
    } finally {
      await model.dispose();
    }
  });

  test("keeps room for the logits of a score beside the rows of another prompt", async () => {
    const instruction = "make the red circle blue";
    const tokens = Array(240).fill(5);
    const small = await UniFluid.load(SLOW, {
      threads: 1,
      maxMemory: bytes.weights + bytes.edit,
    });
    /** Bytes of cache and of the largest step. */
    const needs = async (call: Promise<unknown>) => {
      const { message } = (await call.catch((error: Error) => error)) as Error;
      const [cache, step] = message
        .match(/needs (\d+) bytes .* (\d+) for its largest step/)!
        .slice(1);
      return Number(cache) + Number(step);
    };
    const both =
      bytes.weights +
      (await needs(small.edit(picture, instruction))) +
      (await needs(small.logits({ tokens })));
    await small.dispose();
    // Around what it takes to start both in the same step: they do, or one waits for the other.
    for (let more = -200_000; more <= 200_000; more += 50_000) {
      const options = { threads: 1, maxSequences: 2, maxMemory: both + more };
      const model = await UniFluid.load(SLOW, options);
      try {
        const controller = new AbortController();
        const long = { steps: 1000, guidance: 1, signal: controller.signal };
        const held = Promise.allSettled([1, 2].map(() => model.generateLatents("a", long)));
        await until(() => model.stats().running === 2);
        const edited = model.editLatents(picture, instruction, { steps: 1 });
        const scored = model.logits({ tokens, priority: 1 });
        await until(() => model.stats().waiting === 2);
        controller.abort();
        expect(await edited).toHaveLength(64 * 16);
        expect(await scored).toHaveLength(tokens.length * model.info.vocabSize!);
        await held;
      } finally {
        await model.dispose();
      }
    }
  });

  test("refuses what can never fit while others run, naming both sizes", async () => {
    // Room for an edit's cache, but not for its steps as well.
    const maxMemory = bytes.weights + bytes.edit;
    const model = await UniFluid.load(SLOW, { threads: 1, maxMemory });
    try {
      const controller = new AbortController();
      const options = { steps: 1000, guidance: 1, signal: controller.signal };
      const running = model.generateLatents("a", options).catch(() => {});
      await until(() => model.stats().running === 1);
      await expect(model.edit(picture, "a")).rejects.toMatchObject({
        code: "INSUFFICIENT_MEMORY",
        message: expect.stringMatching(
          /needs \d+ bytes .*at most \d+ are available even with nothing else running/,
        ),
      });
      expect(model.stats().running).toBe(1);
      controller.abort();
      await running;
    } finally {
      await model.dispose();
    }
  });
});

describe("an image that finds no memory", () => {
  test("is refused at once, and does not hold up what comes behind it", async () => {
    const model = await UniFluid.load("shapes-64", { threads: 1, maxMemory: 24 * 2 ** 20 });
    try {
      const controller = new AbortController();
      const options = { steps: 10_000, signal: controller.signal };
      const running = model.generateLatents("a", options).catch(() => {});
      await until(() => model.stats().running === 1);
      const side = 2048;
      const latents = new Float32Array(4 * (side / 4) ** 2);
      const refused = model.decodeLatents(latents, { width: side, height: side });
      const small = model.decodeLatents(new Float32Array(16 * 64));
      await expect(refused).rejects.toMatchObject({ code: "INSUFFICIENT_MEMORY" });
      await small;
      expect(model.stats().running).toBe(1);
      controller.abort();
      await running;
    } finally {
      await model.dispose();
    }
  });
});

describe("a long prompt that goes through the decoder at once", () => {
  let long: CheckpointCopy;
  afterAll(() => long.remove());
  const question = "how many circles are there? ".repeat(150);
  const ask = (model: UniFluid) => model.answer(picture, question, { maxNewTokens: 1 });
  /** Drawings at work until the signal ends them; `failures` are those that ended otherwise. */
  async function drawing(model: UniFluid, signal: AbortSignal) {
    // The workspace of drawing and decoding is there, and so no more room is kept for it.
    await model.generate("a", { steps: 1 });
    const failures: unknown[] = [];
    const work = [1, 2, 3].map((seed) =>
      model
        .generateLatents("a", { seed, steps: 1000, guidance: 1, signal })
        .catch((error: unknown) => signal.aborted || failures.push(error)),
    );
    await until(() => model.stats().running === work.length);
    return { failures, end: () => Promise.all(work) };
  }
  /** Bytes beside those, of which three drawings need some to be admitted. */
  const SPARE = 500_000;
  /** Bytes of the model with the drawings at work. */
  let drawn: number;
  beforeAll(async () => {
    long = new CheckpointCopy(`../../models/${SLOW}`);
    long.set("config.json", { "text_config.max_position_embeddings": 16_384 });
    const model = await UniFluid.load(long.directory, { threads: 1 });
    try {
      const controller = new AbortController();
      const { end } = await drawing(model, controller.signal);
      drawn = model.stats().allocatedBytes;
      controller.abort();
      await end();
    } finally {
      await model.dispose();
    }
  });
  /** What becomes of the prompt where so much memory is left beside the drawings, none of which may fail. */
  async function outcome(memory: number) {
    const model = await UniFluid.load(long.directory, { threads: 1, maxMemory: drawn + memory });
    try {
      const controller = new AbortController();
      const { failures, end } = await drawing(model, controller.signal);
      const answer = ask(model).then(
        () => ({ code: "answered", message: "" }),
        (error: { code: string; message: string }) => error,
      );
      await until(() => model.stats().waiting + model.stats().failed > 0);
      // Two steps later it was surely looked at, and may have had its own.
      const { steps } = model.stats();
      await until(() => model.stats().failed > 0 || model.stats().steps >= steps + 2);
      expect(model.stats().running).toBe(3);
      controller.abort();
      await end();
      expect(failures).toEqual([]);
      return await answer;
    } finally {
      await model.dispose();
    }
  }

  test("is refused where it never fits, and waits where it does not fit now", async () => {
    const { code, message } = await outcome(SPARE);
    expect(code).toBe("INSUFFICIENT_MEMORY");
    const [cache, step, free] = message.match(/\d+/g)!.map(Number) as [number, number, number];
    const least = SPARE + cache + step - free;
    expect((await outcome(least - 5000)).code).toBe("INSUFFICIENT_MEMORY");
    // Enough without the drawings, whose caches are larger than this.
    expect((await outcome(least + 5000)).code).toBe("answered");
  });

  test("fails alone where there is less memory than was to be expected", async () => {
    const { loadModel } = loadAddon();
    const careless = jest
      .spyOn(loadAddon(), "loadModel")
      .mockImplementation((spec, options, onEvents) =>
        loadModel(
          spec,
          { ...options, activations: { row: 0, vision: 0, vae: 0, fixed: 0 } },
          onEvents,
        ),
      );
    try {
      // Enough for its cache of 7 MB, too little for its step of 9 MB as well.
      expect((await outcome(10_000_000)).code).toBe("INSUFFICIENT_MEMORY");
    } finally {
      careless.mockRestore();
    }
  });
});

test("the statistics count how requests ended, and end with nothing held", async () => {
  const model = await UniFluid.load(SLOW, { threads: 1, maxSequences: 2 });
  try {
    expect(model.stats()).toMatchObject({ running: 0, waiting: 0, completed: 0, refused: 0 });
    const controller = new AbortController();
    const options = { steps: 1000, signal: controller.signal };
    const gone = Promise.allSettled([1, 2, 3].map(() => model.generate("a", options)));
    await until(() => model.stats().running === 2 && model.stats().waiting === 1);
    expect(model.stats().sequenceBytes).toBeGreaterThan(0);
    controller.abort();
    await gone;
    await model.generate(["a", "b", "c"], { steps: 1 });
    await until(() => model.stats().cancelled === 3);
    const stats = model.stats();
    expect(stats).toMatchObject({
      running: 0,
      waiting: 0,
      sequenceBytes: 0,
      completed: 3,
      failed: 0,
      cancelled: 3,
      refused: 0,
    });
    expect(stats.steps).toBeGreaterThan(16);
    expect(stats.rows).toBeGreaterThan(stats.steps);
    expect(stats.allocatedBytes).toBeGreaterThanOrEqual(stats.workspaceBytes);
    expect(stats.availableBytes).toBeGreaterThan(0);
  } finally {
    await model.dispose();
  }
});

describe("runs over iterables", () => {
  let model: UniFluid;
  beforeAll(async () => {
    model = await UniFluid.load(tiny, { threads: 2, maxSequences: 4 });
  });
  afterAll(() => model.dispose());

  test("generateAll draws what generate draws, and keeps the engine full", async () => {
    async function* prompts() {
      for (let i = 0; i < 20; i++)
        yield i === 7 ? { prompt: "a star", seed: 3, steps: 2 } : `a ${i}`;
    }
    let most = 0;
    const seen = new Map<number, Uint8Array>();
    for await (const result of model.generateAll(prompts(), { seed: 100, steps: 3 })) {
      if (result.error) throw result.error;
      seen.set(result.index, result.value!.pixels);
      most = Math.max(most, model.stats().running);
    }
    expect(seen.size).toBe(20);
    expect(most).toBeGreaterThan(1);
    const [five, seven] = await Promise.all([
      model.generate("a 5", { seed: 105, steps: 3 }),
      model.generate("a star", { seed: 3, steps: 2 }),
    ]);
    expect(Buffer.compare(seen.get(5)!, five.pixels)).toBe(0);
    expect(Buffer.compare(seen.get(7)!, seven.pixels)).toBe(0);
  });

  test("editAll, captionAll and answerAll give what the single calls give", async () => {
    const edits = [{ image: picture, instruction: "make it blue", seed: 4, steps: 2 }];
    const edited: (Uint8Array | undefined)[] = [];
    for await (const { value } of model.editAll(edits)) edited.push(value?.pixels);
    const single = await model.edit(picture, "make it blue", { seed: 4, steps: 2 });
    expect(edited).toEqual([single.pixels]);
    const items = [picture, { image: picture, maxNewTokens: 2 }];
    const captions: (string | undefined)[] = [];
    for await (const { value } of model.captionAll(items, { ordered: true })) captions.push(value);
    expect(captions).toEqual([
      await model.caption(picture),
      await model.caption(picture, { maxNewTokens: 2 }),
    ]);
    const questions = [{ image: picture, question: "how many?" }];
    const answers: unknown[] = [];
    for await (const { value, item } of model.answerAll(questions)) {
      expect(item).toBe(questions[0]);
      answers.push(value);
    }
    expect(answers).toEqual([await model.answer(picture, "how many?")]);
  });

  test("a bad item is a result with its code, and leaving frees every sequence", async () => {
    const images = ["/no/such/file.png", picture, new Uint8Array(0)];
    const codes: (string | undefined)[] = [];
    for await (const { error } of model.captionAll(images, { ordered: true })) {
      codes.push((error as { code?: string } | undefined)?.code);
    }
    expect(codes).toEqual(["IMAGE_NOT_FOUND", undefined, "IMAGE_EMPTY"]);

    function* endless() {
      for (;;) yield "a circle";
    }
    for await (const { index } of model.generateAll(endless(), { steps: 2 })) if (index > 5) break;
    await until(() => model.stats().running + model.stats().waiting === 0);
    expect(model.stats().sequenceBytes).toBe(0);
  });

  test("misspelt options and tasks that the weights lack are refused", async () => {
    const gemma = await UniFluid.load(join(tiny, "..", "gemma-tiny"));
    try {
      expect(() => gemma.generateAll(["a"])).toThrow(/cannot generate/);
    } finally {
      await gemma.dispose();
    }
    const taken: string[] = [];
    function* items() {
      taken.push("a");
      yield "a";
    }
    // Those of the run at once, before an item is taken.
    for (const wrong of [{ stepz: 3 }, { steps: 0 }, { steps: "3" }, { concurency: 2 }, 5, null]) {
      const run = () => model.generateAll(items(), wrong as object);
      expect(run).toThrow(expect.objectContaining({ code: "INVALID_OPTION" }));
    }
    const text = { maxNewTokenz: 3 } as object;
    expect(() => model.captionAll([picture], text)).toThrow(/"maxNewTokenz"/);
    expect(() => model.answerAll([{ image: picture, question: "a" }], text)).toThrow(/NewTokenz/);
    const edits = [{ image: picture, instruction: "a" }];
    expect(() => model.editAll(edits, { maxNewTokens: 3 } as object)).toThrow(/"maxNewTokens"/);
    expect(taken).toEqual([]);
    // Those of an item with it.
    const misspelt = { prompt: "a", stepz: 3 } as { prompt: string };
    const codes = [];
    for await (const { error } of model.generateAll([misspelt, "b"], { steps: 1, ordered: true })) {
      codes.push(error && String(error));
    }
    expect(codes).toEqual([
      expect.stringMatching(
        /expected only prompt, .* and data as fields of an item but received "stepz"/,
      ),
      undefined,
    ]);
  });

  test("what is the caller's comes back in data", async () => {
    const seen: unknown[] = [];
    const items = [{ prompt: "a", seed: undefined, data: { key: "k" } }];
    for await (const { item, value } of model.generateAll(items, { seed: 7, steps: 1 }))
      seen.push([item.data.key, value?.seed]);
    const photos = [{ image: picture, data: 5 }];
    for await (const { item, value } of model.captionAll(photos)) seen.push([item.data, value]);
    const edits = [{ image: picture, instruction: "x", data: 1 }];
    for await (const { item, error } of model.editAll(edits, { steps: 1 }))
      seen.push([item.data, error]);
    const questions = [{ image: picture, question: "x", data: 2 }];
    for await (const { item, error } of model.answerAll(questions)) seen.push([item.data, error]);
    expect(seen).toEqual([
      ["k", 7],
      [5, await model.caption(picture)],
      [1, undefined],
      [2, undefined],
    ]);
  });

  test("an item's own signal ends that item, and leaving the loop ends it too", async () => {
    const stalled = () => ({ arrayBuffer: () => new Promise<ArrayBuffer>(() => {}) });
    const own = new AbortController();
    const items = [
      { image: stalled(), signal: own.signal },
      { image: picture, signal: new AbortController().signal },
      { image: stalled(), signal: new AbortController().signal },
    ];
    const seen = [];
    for await (const { index, error } of model.captionAll(items)) {
      seen.push([index, error?.message]);
      if (seen.length === 2) break;
      own.abort(new Error("enough"));
    }
    expect(seen).toEqual([
      [1, undefined],
      [0, "enough"],
    ]);
    for (const { signal } of items) expect(getEventListeners(signal, "abort")).toHaveLength(0);
  });
});
