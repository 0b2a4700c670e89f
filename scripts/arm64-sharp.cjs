// Under qemu: sharp is that of 64-bit ARM, which lies in a folder of its own.
const Module = require("node:module");
const { join } = require("node:path");

const resolve = Module._resolveFilename;
Module._resolveFilename = function (request, ...rest) {
  const own = request === "sharp" ? join(process.env.UNIFLUID_ARM64_MODULES, "sharp") : request;
  return resolve.call(this, own, ...rest);
};
