/** @type {import("jest").Config} */
module.exports = {
  testEnvironment: "node",
  roots: ["<rootDir>/test"],
  testMatch: ["**/*.test.ts"],
  globalSetup: "<rootDir>/test/global-setup.cjs",
  transform: {
    "^.+\\.ts$": [
      "@swc/jest",
      { jsc: { parser: { syntax: "typescript" }, target: "es2022" }, module: { type: "commonjs" } },
    ],
  },
  // Sources name the files that the build writes; jest reads the sources.
  moduleNameMapper: { "^(\\.{1,2}/.*)\\.js$": "$1" },
  // The addon's threads share the machine's cores: more workers would only make each other slow.
  maxWorkers: 2,
  testTimeout: 60_000,
};
