/** `unifluid doctor`: what this machine computes with, and why; one line each. */

import type { Command } from "commander";
import { describeMachine } from "../addon.js";
import { type OutputFlags, runCommand } from "./context.js";
import { gpuLine, tryAddon } from "./devices.js";
import { type MachineReport, reportMachine } from "./doctor-report.js";
import { addFlags } from "./flags.js";
import { write, writeJson } from "./output.js";
import { formatBytes, formatTable } from "./tables.js";

export function addDoctor(program: Command): void {
  const command = program
    .command("doctor")
    .description("show which binary, instruction set and device are used, and why");
  addFlags(command, "json").action((flags: OutputFlags) =>
    runCommand(flags, async ({ json }) => {
      const { addon, failure } = tryAddon();
      const report = await reportMachine(addon);
      if (json) await writeJson(report);
      else await write(formatReport(report));
      if (failure) throw failure;
    }),
  );
}

const ORIGINS = {
  environment: "set by UNIFLUID_NATIVE",
  package: "from the package",
  compiled: "compiled here",
};

function formatReport(report: MachineReport): string {
  const { binary, instructionSet, device, memory } = report;
  const total = `${formatBytes(memory.total)} in the machine`;
  const free = memory.available;
  const rows: ([string, string] | false | null)[] = [
    ["package", `unifluid ${report.version}`],
    ["machine", describeMachine()],
    ["binary", binary ? `${binary.path} (${ORIGINS[binary.origin]})` : "none"],
    instructionSet && ["instruction set", describeInstructionSet(instructionSet)],
    ["device", device ? describeDevice(device) : "none"],
    Boolean(device?.cudaLibrary) && ["cuda library", device!.cudaLibrary!],
    ...(device?.gpus ?? []).map((gpu, i): [string, string] => [`cuda:${i}`, gpuLine(gpu)]),
    ["threads", `${report.threads} by default`],
    ["memory", free === null ? total : `${formatBytes(free)} free of ${total}`],
    ["images", `sharp ${report.sharp}, libvips ${report.libvips}`],
    ["models", report.models.join(", ") || "none included"],
  ];
  return formatTable(rows.filter((row): row is [string, string] => Boolean(row)));
}

function describeInstructionSet(chosen: NonNullable<MachineReport["instructionSet"]>): string {
  const why = chosen.forced ? "set by UNIFLUID_ISA" : "the best this processor has";
  const known = chosen.known.map(({ name, supported, bfloat16 }) => {
    if (!supported) return `${name} (not supported)`;
    return bfloat16 ? `${name} (multiplies bfloat16)` : name;
  });
  return `${chosen.name}, ${why}, of ${known.join(", ")}`;
}

/** What `device: "auto"` means here. */
const describeDevice = ({ reason }: NonNullable<MachineReport["device"]>): string =>
  reason === null ? "cuda if a model fits its memory, else cpu" : `cpu; ${reason}`;
