/** The commands of `unifluid`, one a file, and how they are parsed. */

import { Command, CommanderError } from "commander";
import { packageVersion } from "../addon.js";
import { addAnswer } from "./answer.js";
import { addBatch } from "./batch.js";
import { addBuild } from "./build.js";
import { addCaption } from "./caption.js";
import { addComplete } from "./complete.js";
import { addDoctor } from "./doctor.js";
import { addEdit } from "./edit.js";
import { addEnqueue } from "./enqueue.js";
import { addEval } from "./eval.js";
import { EXIT_CODES_HELP, ExitCode, UsageError } from "./exit-codes.js";
import { addGenerate } from "./generate.js";
import { addInfo } from "./info.js";
import { addInit } from "./init.js";
import { addQueue } from "./queue.js";
import { addScenes } from "./scenes.js";
import { addServe } from "./serve.js";
import { addTokenizer } from "./tokenizer.js";
import { addPrepare, addTrain } from "./train.js";
import { addWorker } from "./worker.js";

/** All commands. What commander would write on standard error goes to `told`. */
function makeProgram(told: (text: string) => void): Command {
  const program = new Command("unifluid")
    .description("Draws, edits and describes images with one model.")
    .version(packageVersion())
    .addHelpText("after", EXIT_CODES_HELP)
    // Commander's own messages become errors, to be told as all others are.
    .exitOverride()
    .configureOutput({ writeErr: told });
  addGenerate(program);
  addEdit(program);
  addCaption(program);
  addAnswer(program);
  addComplete(program);
  addBatch(program);
  addEnqueue(program);
  addWorker(program);
  addQueue(program);
  addServe(program);
  addScenes(program);
  addTokenizer(program);
  addInit(program);
  addPrepare(program);
  addTrain(program);
  addEval(program);
  addInfo(program);
  addDoctor(program);
  addBuild(program);
  return program;
}

/** The command that arguments name, as far as they name one: `unifluid queue status`. */
function commandOf(program: Command, args: readonly string[]): Command {
  let command = program;
  for (const arg of args) {
    const next = command.commands.find((candidate) => candidate.name() === arg);
    if (!next) break;
    command = next;
  }
  return command;
}

function fullName(command: Command): string {
  return command.parent ? `${fullName(command.parent)} ${command.name()}` : command.name();
}

/** Parses arguments and runs their command. Throws `UsageError` for arguments that make no command. */
export async function run(args: readonly string[]): Promise<void> {
  let told = "";
  const program = makeProgram((text) => {
    told += text;
  });
  if (args.length === 0) {
    program.outputHelp();
    return;
  }
  try {
    await program.parseAsync(args, { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    // --help and --version have done their work.
    if (error.exitCode === 0) return;
    if (error.code !== "commander.help") {
      const message = error.message.replace(/^error: /, "").replace(/\s*\n\s*/g, " ");
      throw new UsageError(`${message} (see ${fullName(commandOf(program, args))} --help)`);
    }
    // Help was asked for of what is no command, which as a command is an error that says so.
    const at = args.indexOf("help");
    if (at >= 0 && at < args.length - 1) return run(args.filter((_, i) => i !== at));
    // A group of commands, and none of them named.
    process.stderr.write(told);
    process.exitCode = ExitCode.usage;
  }
}
