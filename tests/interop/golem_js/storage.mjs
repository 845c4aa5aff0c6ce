// golem-js's transfer of files by itself, without a rental. Argument: a directory with `given`. Prints URLs that give and take
// files, then what has arrived in memory; ends with the last.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";

// By require: of the library's two builds, the one for import cannot receive into memory (it finds no sha3_256).
const { WebSocketStorageProvider, YagnaApi } = createRequire(import.meta.url)("@golem-sdk/golem-js");

function tell(result) {
  console.log(JSON.stringify(result));
}

const place = process.argv[2];
const api = new YagnaApi();
await api.connect();
const storage = new WebSocketStorageProvider(api, {});
await storage.init();
let arrive;
const arrived = new Promise((resolve) => {
  arrive = resolve;
});

const given = Uint8Array.from(await readFile(join(place, "given")));
tell({
  file: await storage.publishFile(join(place, "given")),
  data: await storage.publishData(given),
  into: await storage.receiveFile(join(place, "taken")),
  memory: await storage.receiveData((data) => arrive(data)),
});
const data = await arrived;
tell({ size: data.length, sha256: createHash("sha256").update(data).digest("hex") });
await storage.close();
await api.disconnect();
