/// <reference lib="dom" />
/** The page in a real Chromium. */

import { mkdirSync } from "node:fs";
import { createServer, request as httpRequest } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import type { Browser, BrowserContextOptions, Page } from "playwright-core";
import { UniFluid } from "../../lib/index";
import { findChromium, launchChromium } from "../support/browser";
import { idle, type RunningServer, startServer } from "../support/server";

const photo = join(__dirname, "../fixtures/shapes-64/expected/caption0.png");
/** Set it to a folder to keep pictures of the page. */
const pictures = process.env.PAGE_PICTURES;
const program = findChromium();
const withChromium = program ? describe : describe.skip;

withChromium("the page", () => {
  let model: UniFluid;
  let server: RunningServer;
  let browser: Browser;
  let page: Page;
  let problems: string[];
  beforeAll(async () => {
    model = await UniFluid.load("shapes-64");
    server = await startServer(model);
    browser = await launchChromium(program!);
  });
  afterAll(async () => {
    await browser?.close();
    await server.app.drain(0);
    await model.dispose();
  });

  async function open(options: BrowserContextOptions = {}, url = server.url): Promise<Page> {
    const context = await browser.newContext(options);
    page = await context.newPage();
    problems = [];
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("console", (message) => {
      if (message.type() === "error") problems.push(message.text());
    });
    await page.goto(url);
    return page;
  }
  afterEach(async () => {
    await page.context().close();
    await idle(model);
  });
  const keep = async (name: string) => {
    if (!pictures) return;
    mkdirSync(pictures, { recursive: true });
    await page.screenshot({ path: join(pictures, `${name}.png`) });
  };
  const enabled = (name: string) =>
    page.waitForFunction((text) => {
      const button = document.querySelector<HTMLButtonElement>("#go");
      return button?.textContent === text && !button.disabled;
    }, name);

  test("draws a prompt cell by cell, in random order, and remembers it", async () => {
    await open();
    await enabled("Draw");
    expect(await page.textContent("#model")).toBe("shapes-64");
    await page.fill("#text", "a red circle");
    await page.fill("#seed", "7");
    await page.fill("#steps", "1000");
    await page.selectOption("#order", "random");
    await page.click("#go");
    // In its middle: some cells are lit, not all, and not the first ones of the grid.
    await page.waitForFunction(() => document.querySelectorAll("#cells i.drawn").length >= 3);
    const drawn = await page.$$eval("#cells i", (cells) =>
      cells.flatMap((cell, i) => (cell.classList.contains("drawn") ? [i] : [])),
    );
    await keep("drawing");
    expect(drawn.length).toBeGreaterThanOrEqual(3);
    expect(drawn.length).toBeLessThan(16);
    expect(drawn).not.toEqual(drawn.map((_, i) => i));
    await page.waitForFunction(() =>
      document.querySelector("#caption")?.textContent?.includes("(seed 7)"),
    );
    expect(await page.$$("#cells i")).toHaveLength(0);
    const shown = await page.getAttribute("#picture", "src");
    const expected = await model.generate("a red circle", {
      seed: 7,
      steps: 1000,
      order: "random",
    });
    expect(shown).toBe(`data:image/png;base64,${(await expected.toBuffer()).toString("base64")}`);
    expect(await page.$$("#history li")).toHaveLength(1);
    await keep("light");

    // The picture is the source of an edit, and the history brings the first one back.
    await page.check("input[value=edit]");
    await page.fill("#text", "make the circle blue");
    await page.fill("#steps", "2");
    await page.click("#go");
    await page.waitForFunction(() => document.querySelectorAll("#history li").length === 2);
    expect(await page.getAttribute("#picture", "src")).not.toBe(shown);
    await page.click("#history li:last-child button");
    expect(await page.getAttribute("#picture", "src")).toBe(shown);
    expect(problems).toEqual([]);
  });

  test("describes an image that is chosen, and answers about it", async () => {
    await open({ colorScheme: "dark" });
    await enabled("Draw");
    await page.setInputFiles("#file", photo);
    // Who opens an image wants to know what it is.
    await enabled("Describe");
    await page.click("#go");
    const caption = await model.caption(photo);
    await page.waitForFunction(
      (text) => document.querySelector("#caption")?.textContent === text,
      caption,
    );
    await page.check("input[value=answer]");
    await page.fill("#text", "how many objects are there?");
    await page.click("#go");
    const answer = await model.answer(photo, "how many objects are there?");
    await page.waitForFunction(
      (text) => document.querySelector("#caption")?.textContent === text,
      `how many objects are there? ${answer}`,
    );
    await keep("dark");
    expect(problems).toEqual([]);
  });

  test("can be used with the keyboard alone", async () => {
    await open();
    await enabled("Draw");
    const focused = () => page.evaluate(() => document.activeElement?.id);
    for (let i = 0; i < 10 && (await focused()) !== "text"; i++) await page.keyboard.press("Tab");
    expect(await focused()).toBe("text");
    await page.keyboard.type("a star");
    await page.keyboard.press("Tab");
    await page.keyboard.type("5");
    await page.keyboard.press("Tab");
    await page.keyboard.type("2");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() =>
      document.querySelector("#caption")?.textContent?.includes("a star (seed 5)"),
    );
    // The focus can be seen.
    await page.keyboard.press("Tab");
    const outline = await page.evaluate(
      () => getComputedStyle(document.activeElement!).outlineStyle,
    );
    expect(outline).not.toBe("none");
  });

  test("stops when it is told to, and the server is free", async () => {
    await open();
    await enabled("Draw");
    await page.fill("#text", "a red circle");
    await page.fill("#steps", "1000");
    await page.click("#go");
    await page.waitForFunction(() => document.querySelectorAll("#cells i.drawn").length > 0);
    const { cancelled } = model.stats();
    await page.keyboard.press("Escape");
    await enabled("Draw");
    await idle(model);
    expect(model.stats().cancelled).toBeGreaterThan(cancelled);
    expect(await page.isVisible("#error")).toBe(false);
  });

  test("tells what is wrong", async () => {
    await open();
    await enabled("Draw");
    await page.click("#go");
    expect(await page.textContent("#error")).toBe("Prompt is empty");
    await page.check("input[value=answer]");
    await page.fill("#text", "what is it?");
    await page.click("#go");
    expect(await page.textContent("#error")).toBe("Choose an image first, or draw one");
    await page.check("input[value=generate]");
    await page.fill("#guidance", "99999");
    await page.click("#go");
    await page.waitForFunction(() =>
      document.querySelector("#error")?.textContent?.includes("guidance"),
    );
    await page.setInputFiles("#file", {
      name: "x.png",
      mimeType: "image/png",
      buffer: Buffer.from("x"),
    });
    await page.check("input[value=caption]");
    await page.click("#go");
    await page.waitForFunction(() =>
      /image/i.test(document.querySelector("#error")?.textContent ?? ""),
    );
    await enabled("Describe");
  });

  test("asks for a key where the server wants one", async () => {
    const locked = await startServer(model, { apiKeys: ["sesame"] });
    try {
      await open({}, locked.url);
      await page.waitForSelector("#key-field:not([hidden])");
      await page.fill("#key", "wrong");
      await page.keyboard.press("Tab");
      await page.waitForFunction(() =>
        /key/.test(document.querySelector("#error")?.textContent ?? ""),
      );
      await page.fill("#key", "sesame");
      await page.keyboard.press("Tab");
      await enabled("Draw");
      await page.fill("#text", "a star");
      await page.fill("#steps", "1");
      await page.click("#go");
      await page.waitForFunction(() =>
        document.querySelector("#caption")?.textContent?.includes("a star (seed"),
      );
    } finally {
      await page.goto("about:blank");
      await locked.app.drain(0);
    }
  });

  test("works under a path that a proxy puts it at", async () => {
    const proxy = createServer((incoming, answer) => {
      const path = incoming.url!.replace(/^\/pictures\//, "/");
      // What is asked for beside the path is not there.
      if (path === incoming.url) {
        answer.writeHead(404).end();
        return;
      }
      const { method, headers } = incoming;
      const passed = httpRequest(server.url + path, { method, headers }, (response) => {
        response.pipe(answer.writeHead(response.statusCode!, response.headers));
      });
      incoming.pipe(passed);
    });
    await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
    try {
      const { port } = proxy.address() as AddressInfo;
      await open({}, `http://127.0.0.1:${port}/pictures/`);
      await enabled("Draw");
      await page.fill("#text", "a red circle");
      await page.fill("#steps", "2");
      await page.click("#go");
      await page.waitForFunction(() => document.querySelectorAll("#history li").length === 1);
      expect(problems).toEqual([]);
    } finally {
      await page.goto("about:blank");
      proxy.closeAllConnections();
      proxy.close();
    }
  });

  test("offers only what the model can do", async () => {
    const pali = await UniFluid.load(join(__dirname, "../fixtures/paligemma-tiny"));
    const other = await startServer(pali);
    try {
      await open({}, other.url);
      await enabled("Ask");
      expect(await page.isDisabled("input[value=generate]")).toBe(true);
      expect(await page.isDisabled("input[value=edit]")).toBe(true);
    } finally {
      await page.goto("about:blank");
      await other.app.drain(0);
      await pali.dispose();
    }
  });

  test("fits a phone", async () => {
    await open({ viewport: { width: 375, height: 800 } });
    await enabled("Draw");
    const wider = await page.evaluate(
      () => document.documentElement.scrollWidth > document.documentElement.clientWidth,
    );
    expect(wider).toBe(false);
    await keep("phone");
  });
});
