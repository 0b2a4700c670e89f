// A route of Express that describes the image that is sent to it, or answers a question about it.
//   PORT=8080 node examples/express-upload.mjs
//   curl --data-binary @photo.png -H "content-type: image/png" "http://127.0.0.1:8080/describe?question=how+many+stars+are+there%3F"
import express from "express";
import { UniFluid } from "unifluid";

const model = await UniFluid.load("shapes-64", { maxQueue: 32 });
const app = express();

function statusOf(code) {
  if (code === "QUEUE_FULL") return 429;
  if (["INSUFFICIENT_MEMORY", "DISPOSED"].includes(code)) return 503;
  return /^(IMAGE_|PROMPT_TOO_LONG$|INVALID_OPTION$)/.test(code) ? 422 : 500;
}

// How the formats begin that are taken: bytes of strangers reach no other decoder, that of SVG above all.
function isPicture(bytes) {
  const head = bytes.subarray(0, 12).toString("latin1");
  return /^(\x89PNG\r\n|\xff\xd8\xff|RIFF.{4}WEBP)/s.test(head);
}

app.post(
  "/describe",
  express.raw({ type: "image/*", limit: "10mb" }),
  async (request, response, next) => {
    const { body } = request;
    if (!Buffer.isBuffer(body) || !isPicture(body)) {
      const message = "expected a PNG, JPEG or WebP image";
      return response.status(422).json({ code: "IMAGE_UNDECODABLE", message });
    }
    const gone = new AbortController();
    // A client that goes away frees its place in the engine.
    response.on("close", () => gone.abort());
    const { signal } = gone;
    try {
      const { question } = request.query;
      const text = question
        ? await model.answer(body, String(question), { signal })
        : await model.caption(body, { signal });
      response.json({ text });
    } catch (error) {
      if (signal.aborted) return;
      // What was sent cannot be used, or too many wait: the code says which. Anything else is no fault of the caller's.
      const status = statusOf(error.code);
      if (status === 500) return next(error);
      response.status(status).json({ code: error.code, message: error.message });
    }
  },
);

const server = app.listen(Number(process.env.PORT ?? 0), () => {
  console.log(`http://127.0.0.1:${server.address().port}`);
});
const end = () => server.close(() => model.dispose());
process.once("SIGTERM", end);
process.once("SIGINT", end);
