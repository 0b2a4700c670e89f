// A model in a worker thread. JavaScript's own work (decoding, encoding) then has a thread to itself; the engine has
// its threads either way.
//   node examples/worker-thread.mjs "a red circle" out.png
import { writeFile } from "node:fs/promises";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { UniFluid } from "unifluid";

if (isMainThread) {
  const [prompt = "a red circle", out = "worker.png"] = process.argv.slice(2);
  const worker = new Worker(new URL(import.meta.url), { workerData: prompt });
  const png = await new Promise((resolve, reject) => {
    worker.once("message", resolve);
    worker.once("error", reject);
  });
  await writeFile(out, png);
  console.log(`${out}: ${prompt}`);
} else {
  const model = await UniFluid.load("shapes-64");
  const image = await model.generate(workerData, { seed: 7 });
  parentPort.postMessage(await image.toBuffer("png"));
  await model.dispose();
}
