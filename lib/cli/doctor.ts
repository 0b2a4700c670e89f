/** `unifluid doctor`: what this machine computes with, and why; one line each. */

import { availableParallelism, totalmem } from "node:os";
import type { Command } from "commander";
import sharp from "sharp";
import { describeMachine, type LoadedAddon, packageVersion } from "../addon.js";
import { shippedModels } from "../checkpoint/locate.js";
import { surveyDevices } from "../device.js";
import { type OutputFlags, runCommand } from "./context.js";
import { gpuLine, reportGpus, tryAddon } from "./devices.js";
import { chosenInstructionSet, knownSets, originOf, reportMachine } from "./doctor-report.js";
import { addFlags } from "./flags.js";
import { write, writeJson } from "./output.js";
import { formatBytes, formatTable } from "./tables.js";

export function addDoctor(program: Command): void {
  const command = program
    .command("doctor")
    .description("tell which binary, instruction set and device are used, and why");
  addFlags(command, "json").action((flags: OutputFlags) =>
    runCommand(flags, async ({ json }) => {
      const { addon, failure } = tryAddon();
      if (json) {
        await writeJson(await reportMachine(addon));
        if (failure) throw failure;
        return;
      }
      const report: Record<string, string> = {
        package: `unifluid ${packageVersion()}`,
        machine: describeMachine(),
        binary: addon ? describeBinary(addon) : "none",
        ...(addon ? { "instruction set": describeInstructionSet(addon) } : {}),
        ...(addon ? await describeDevices(addon) : { device: "none" }),
        threads: `${availableParallelism()} by default`,
        memory: describeMemory(addon),
        images: `sharp ${sharp.versions.sharp}, libvips ${sharp.versions.vips}`,
        models: (await shippedModels()).join(", ") || "none shipped",
      };
      await write(formatTable(Object.entries(report)));
      if (failure) throw failure;
    }),
  );
}

function describeBinary(addon: LoadedAddon): string {
  const origin = {
    environment: "UNIFLUID_NATIVE names it",
    package: "it came with the package",
    compiled: "it was compiled here",
  }[originOf(addon)];
  return `${addon.path} (${origin})`;
}

/** The instruction set that loading a model would choose. */
function describeInstructionSet({ addon }: LoadedAddon): string {
  const { name, forced, sets } = chosenInstructionSet(addon);
  const known = `of ${knownSets(sets)}`;
  return forced
    ? `${name}, as UNIFLUID_ISA says, ${known}`
    : `${name}, the best that this processor has, ${known}`;
}

/** What `device: "auto"` means here, and each GPU there is. */
async function describeDevices(loaded: LoadedAddon): Promise<Record<string, string>> {
  const survey = await surveyDevices(loaded.addon, loaded.path);
  const { library, reason } = survey;
  const lines: Record<string, string> = {
    device: reason ? `cpu; ${reason}` : "cuda, where a model fits its memory; else cpu",
    ...(library ? { "cuda library": library } : {}),
  };
  for (const [i, gpu] of (await reportGpus(loaded, survey)).entries())
    lines[`cuda:${i}`] = gpuLine(gpu);
  return lines;
}

function describeMemory(loaded: LoadedAddon | undefined): string {
  const total = `${formatBytes(totalmem())} in the machine`;
  return loaded ? `${formatBytes(loaded.addon.availableMemory())} free of ${total}` : total;
}
