/** What requests hold of JavaScript's memory while they wait. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { UniFluid } from "../../lib/index";
import { type RunningServer, startServer } from "../support/server";

const MIB = 2 ** 20;
const photo = readFileSync(join(__dirname, "../fixtures/shapes-64/expected/caption0.png"));
/** An image of 4 MiB; what is behind its end counts as much as pixels. */
const large = Buffer.concat([photo, Buffer.alloc(4 * MIB)]);
const url = `data:image/png;base64,${large.toString("base64")}`;
const REQUESTS = 8;

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

let model: UniFluid;
let server: RunningServer;
beforeAll(async () => {
  model = await UniFluid.load("shapes-64", { threads: 1 });
  server = await startServer(model);
});
afterAll(async () => {
  await server.app.close();
  await model.dispose();
});
afterEach(() => jest.restoreAllMocks());

const content = [
  { type: "text", text: "what is it?" },
  { type: "image_url", image_url: { url } },
];
const asked = { messages: [{ role: "user", content }] };
const edited = { prompt: "make it blue", images: [{ image_url: url }] };

test.each<[string, string, object]>([
  ["questions", "/v1/chat/completions", asked],
  ["streamed questions", "/v1/chat/completions", { ...asked, stream: true }],
  ["edits", "/v1/images/edits", edited],
  ["streamed edits", "/v1/images/edits", { ...edited, stream: true }],
])(
  "%s that wait hold the bytes of their images, not the text of them",
  async (_name, path, body) => {
    const held: Uint8Array[] = [];
    let go = () => {};
    const gate = new Promise<void>((resolve) => {
      go = resolve;
    });
    const wait = async (image: unknown): Promise<never> => {
      held.push(image as Uint8Array);
      await gate;
      throw new Error("enough");
    };
    jest.spyOn(model, "edit").mockImplementation(wait as never);
    async function* waiting(image: unknown) {
      yield await wait(image);
    }
    for (const name of ["answerStream", "editStream"] as const) {
      jest.spyOn(model, name).mockImplementation(waiting as never);
    }
    const payload = Buffer.from(JSON.stringify(body));
    collect();
    const before = process.memoryUsage().heapUsed;
    const headers = { "content-type": "application/json" };
    const answers = Array.from({ length: REQUESTS }, () =>
      fetch(server.url + path, { method: "POST", headers, body: payload }),
    );
    try {
      while (held.length < REQUESTS) await new Promise((resolve) => setTimeout(resolve, 20));
      collect();
      const grown = process.memoryUsage().heapUsed - before;
      for (const image of held) expect(Buffer.compare(image, large)).toBe(0);
      expect(grown).toBeLessThan(REQUESTS * MIB);
    } finally {
      go();
      for (const answer of await Promise.all(answers)) await answer.text();
    }
  },
);
