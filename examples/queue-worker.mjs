// Jobs of a BullMQ queue of your own, done by a model; `unifluid worker` is the ready-made one.
//   REDIS_URL=redis://127.0.0.1:6379 node examples/queue-worker.mjs
import { Queue, QueueEvents, Worker } from "bullmq";
import { Redis } from "ioredis";
import { UniFluid } from "unifluid";

const connection = new Redis(process.env.REDIS_URL ?? "redis://127.0.0.1:6379", {
  maxRetriesPerRequest: null,
});
const model = await UniFluid.load("shapes-64");

const worker = new Worker(
  "pictures",
  async ({ id, data }) => {
    const image = await model.generate(data.prompt, { seed: data.seed });
    await image.save(`picture-${id}.png`);
    return `picture-${id}.png`;
  },
  // As many as the engine runs at once: it works on them together.
  { connection, concurrency: 16 },
);

const queue = new Queue("pictures", { connection });
const events = new QueueEvents("pictures", { connection });
await events.waitUntilReady();
const jobs = await queue.addBulk(
  ["a red circle", "two green stars"].map((prompt, seed) => ({
    name: "draw",
    data: { prompt, seed },
  })),
);
for (const job of jobs) console.log(await job.waitUntilFinished(events));

await Promise.all([worker.close(), events.close(), queue.close()]);
await connection.quit();
await model.dispose();
