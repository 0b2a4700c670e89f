// A load of mixed requests on a server of the loopback: good clients, and bad ones of many kinds. Checked are
// that no answer is wrong (each picture is that of its seed, byte for byte, each text that of the library), that
// no status is 500 or above but the announced 503 when the server ends, that every sequence is freed, and that
// the server's memory does not grow after a warm-up.
//
//   npm run bench:load -- [--requests N] [--seconds S] [--concurrency C] [--seed N]
//                         [--growth PERCENT] [--write]
//
// It ends at the first of the two limits, 600 seconds at most. --growth 0 leaves the memory unchecked, for runs
// that are too short for it. --write keeps the table in bench/results/load.md. Ends with 1 where a check failed.
import { writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { commit, median } from "./figures.mjs";
import { MIX, makeClients, randomness } from "./load/clients.mjs";
import { makeReferences } from "./load/references.mjs";
import { heldBy, KEY, startService } from "./load/service.mjs";

const { UniFluid } = await import("../dist/index.mjs");

const { values } = parseArgs({
  options: {
    requests: { type: "string", default: "5000" },
    seconds: { type: "string", default: "480" },
    concurrency: { type: "string", default: "24" },
    seed: { type: "string", default: "1" },
    growth: { type: "string", default: "3" },
    write: { type: "boolean", default: false },
  },
});
const number = (name, max) => {
  const value = Number(values[name]);
  if (values[name] !== "" && value >= 0 && value <= max) return value;
  console.error(`load: expected 0 to ${max} for --${name} but received ${values[name]}`);
  process.exit(2);
};
const requests = number("requests", 1e6);
const seconds = number("seconds", 600);
const concurrency = number("concurrency", 512);
const allowedGrowth = number("growth", 100);
const random = randomness(number("seed", 2 ** 32));

/** A queue that is too short for the load, so that it is full now and then. */
const FLAGS = ["--max-sequences", "16", "--max-queue", "16", "--max-body", "1"];

const MIB = 2 ** 20;
const problems = [];
const report = (problem) => {
  problems.push(problem);
  if (problems.length <= 20) console.error(`load: ${problem}`);
};

const model = await UniFluid.load("shapes-64");
const references = await makeReferences(model);
await model.dispose();
const service = await startService(FLAGS);
const clients = makeClients({ url: service.url, references, random });
const bag = Object.entries(MIX).flatMap(([kind, parts]) => Array(parts).fill(kind));

/** How often each kind went how. */
const tally = Object.fromEntries(Object.keys(MIX).map((kind) => [kind, {}]));
const count = (kind, outcome) => {
  tally[kind][outcome] = (tally[kind][outcome] ?? 0) + 1;
};

// ---- the load ----

const started = performance.now();
const elapsed = () => (performance.now() - started) / 1000;
let sent = 0;
const samples = [];

async function client() {
  while (sent < requests && elapsed() < seconds) {
    sent++;
    const kind = random.pick(bag);
    try {
      const outcome = await clients[kind]();
      count(kind, outcome);
      // The server has asked for patience.
      if (outcome === "refused") await sleep(200 + random.below(800));
    } catch (error) {
      count(kind, "wrong");
      report(`${kind}: ${error.message}${error.cause ? ` (${error.cause.message})` : ""}`);
    }
  }
}

let sampling = true;
async function watch() {
  while (sampling) {
    const { process_resident_memory_bytes: bytes } = await service.figures();
    samples.push({ sent, bytes });
    await sleep(250);
  }
}

const watching = watch();
await Promise.all(Array.from({ length: concurrency }, client));
sampling = false;
await watching;
const took = elapsed();

// ---- afterwards ----

const figures = await service.idle();
const held = heldBy(figures);
if (held.some((value) => value !== 0)) {
  report(`after the load ${held[0]} sequences run, ${held[1]} wait, of ${held[2]} bytes`);
}

/** Memory after the first third of the requests, which is the warm-up, and at the end. */
const between = (from, to) =>
  samples.filter((s) => s.sent >= from * sent && s.sent <= to * sent).map((s) => s.bytes);
const [early, late] = [median(between(1 / 3, 1 / 2)), median(between(5 / 6, 1))];
const growth = 100 * (late / early - 1);
if (allowedGrowth > 0 && !(growth < allowedGrowth)) {
  report(`memory grew by ${growth.toFixed(1)} % after the warm-up`);
}

// ---- the end, under load ----

const ending = { right: 0, announced: 0, "connection refused": 0 };
const { body, images } = references.draws[0];
const headers = { authorization: `Bearer ${KEY}`, "content-type": "application/json" };
const last = Array.from({ length: 24 }, async (_, i) => {
  await sleep(i * 20);
  try {
    const init = { method: "POST", headers, body: JSON.stringify(body) };
    const response = await fetch(`${service.url}/v1/images/generations`, init);
    const answer = await response.json();
    if (response.status === 200 && answer.data[0].b64_json === images[0]) ending.right++;
    else if (response.status === 503 && answer.error.code === "SHUTTING_DOWN") ending.announced++;
    else if (response.status !== 429) report(`at the end: status ${response.status}`);
  } catch (error) {
    if (error.cause === undefined) throw error;
    ending["connection refused"]++;
  }
});
await sleep(200);
service.child.kill("SIGTERM");
await Promise.all(last);
const code = await service.ended;
if (code !== 0) report(`the server ended with ${code}: ${service.errors()}`);

// ---- the table ----

const OUTCOMES = ["right", "rejected", "gone", "refused", "wrong"];
const rows = Object.entries(tally).map(([kind, outcomes]) => [
  kind,
  ...OUTCOMES.map((outcome) => outcomes[outcome] ?? 0),
]);
const sums = OUTCOMES.map((_, i) => rows.reduce((sum, row) => sum + row[i + 1], 0));
const line = (cells) => `| ${cells.join(" | ")} |`;
const text = `# Load

\`npm run bench:load\`: ${sent} requests in ${took.toFixed(0)} s, ${concurrency} at a time, on ${cpus().length} cores of ${cpus()[0].model.trim()},
Node ${process.versions.node}, commit ${commit()}. The server ran with \`${FLAGS.join(" ")}\`.

"rejected" are bad requests, each with the status that it must have; "gone" are clients that went away; "refused" got
429, since the queue was full.

${line(["requests", ...OUTCOMES])}
${line(["---", ...OUTCOMES.map(() => "---:")])}
${[...rows, ["all", ...sums]].map(line).join("\n")}

| check | found |
| --- | --- |
| wrong answers, and statuses of 500 and above | ${sums.at(-1)} |
| sequences running, waiting, and their bytes after the load | ${held.join(", ")} |
| the engine's requests: with a result, given up, refused | ${figures.unifluid_engine_completed_requests_total}, ${figures.unifluid_engine_cancelled_requests_total}, ${figures.unifluid_engine_refused_requests_total} |
| resident memory after the warm-up, at the end | ${(early / MIB).toFixed(1)} MiB, ${(late / MIB).toFixed(1)} MiB (${growth >= 0 ? "+" : ""}${growth.toFixed(2)} %) |
| event-loop delay of the server, with the 10 ms between its measurements: median, 99th percentile | ${(1000 * figures.nodejs_eventloop_lag_p50_seconds).toFixed(1)} ms, ${(1000 * figures.nodejs_eventloop_lag_p99_seconds).toFixed(1)} ms |
| 24 requests around SIGTERM: ${Object.keys(ending).join(", ")} | ${Object.values(ending).join(", ")} |
| exit code | ${code} |
`;
process.stdout.write(text);
if (values.write) {
  writeFileSync(fileURLToPath(new URL("results/load.md", import.meta.url)), text);
}
console.log(problems.length === 0 ? "all checks hold" : `${problems.length} checks failed`);
process.exitCode = problems.length === 0 ? 0 : 1;
