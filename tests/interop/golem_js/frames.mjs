// FlexBuffers by golem-js's own library. Argument: a file with a JSON list of hex frames. Tells what each holds, the type of
// each number, and the frame that it writes of the same.
import { readFile } from "node:fs/promises";

import { encode, toObject } from "flatbuffers/js/flexbuffers.js";

import { tell } from "./common.mjs";

function shown(value) {
  if (typeof value === "bigint") return { bigint: value.toString() };
  if (value instanceof Uint8Array) return { blob: Buffer.from(value).toString("hex") };
  if (Array.isArray(value)) return value.map(shown);
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, shown(item)]));
  }
  return value;
}

function copied(value) {
  // its encoder writes the whole buffer behind a view
  if (value instanceof Uint8Array) return Uint8Array.from(value);
  if (Array.isArray(value)) return value.map(copied);
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, copied(item)]));
  }
  return value;
}

const frames = JSON.parse(await readFile(process.argv[2], "utf8"));
tell(
  frames.map((hex) => {
    const found = toObject(Uint8Array.from(Buffer.from(hex, "hex")).buffer);
    return { holds: shown(found), written: Buffer.from(encode(copied(found))).toString("hex") };
  }),
);
