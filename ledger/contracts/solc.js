#!/usr/bin/env node
// The compiler of node_modules with the command line that native solc has, as far as a build needs it.
"use strict";
const fs = require("fs");
const path = require("path");
const solc = require("solc");

const MODULES = path.join(__dirname, "node_modules");

function load(name) {
  try {
    return { contents: fs.readFileSync(path.join(MODULES, name), "utf8") };
  } catch (error) {
    return { error: String(error) };
  }
}

if (process.argv.includes("--version")) {
  process.stdout.write(`solc, the solidity compiler\nVersion: ${solc.version().replace("Emscripten.clang", "Linux.g++")}\n`);
} else {
  const input = fs.readFileSync(0, "utf8");
  process.stdout.write(solc.compile(input, { import: load }));
}
