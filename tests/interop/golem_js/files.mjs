// Files to the machine and back. First argument: the way they travel ("ws" or "gftp"); second: a directory for files.
import { createHash, randomBytes } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { ReceivingGolemNetwork, order, session } from "./common.mjs";

const [way, place] = process.argv.slice(2);
const hash = (bytes) => createHash("sha256").update(bytes).digest("hex");
const MiB = 1024 * 1024;

await session(
  async (glm) => {
    const rental = await glm.oneOf({ order: order() });
    const exe = await rental.getExeUnit();
    const answers = {};
    for (const [name, bytes] of Object.entries({
      empty: Buffer.alloc(0),
      small: Buffer.from("a few words, żółć\n"),
      odd: randomBytes(40960 * 3 + 17),
      large: randomBytes(24 * MiB),
    })) {
      const source = join(place, `${name}.in`);
      const target = join(place, `${name}.out`);
      await writeFile(source, bytes);
      const begun = Date.now();
      const up = await exe.uploadFile(source, `/golem/input/${name}`);
      const middle = Date.now();
      const there = await exe.run(`sha256sum < /golem/input/${name}`);
      const again = Date.now();
      const down = await exe.downloadFile(`/golem/input/${name}`, target);
      answers[name] = {
        results: [up.result, down.result],
        there: String(there.stdout).startsWith(hash(bytes)),
        back: hash(await readFile(target)) === hash(bytes),
        ms: [middle - begun, Date.now() - again],
      };
    }
    const data = randomBytes(3 * MiB + 5);
    const sent = await exe.uploadData(data, "/golem/work/data");
    answers.data = { result: sent.result, there: (await exe.run("sha256sum < /golem/work/data")).stdout.startsWith(hash(data)) };
    const json = { list: [1, 2.5, "three"], nested: { null: null, "ключ": "значение" } };
    await exe.uploadJson(json, "/golem/work/data.json");
    answers.json = { there: JSON.parse((await exe.run("cat /golem/work/data.json")).stdout) };
    if (way === "ws") {
      const back = await exe.downloadData("/golem/work/data");
      answers.data.back = hash(Buffer.from(back.data)) === hash(data);
      answers.json.back = (await exe.downloadJson("/golem/work/data.json")).data;
      const results = await Promise.all([1, 2, 3].map((n) => exe.uploadData(new TextEncoder().encode(`${n}`), `/golem/work/${n}`)));
      answers.atOnce = [results.map((r) => r.result), (await exe.run("cat /golem/work/1 /golem/work/2 /golem/work/3")).stdout];
    }
    await rental.stopAndFinalize();
    return answers;
  },
  { dataTransferProtocol: way },
  ReceivingGolemNetwork,
);
