// Volumes of the user's size, variables for a command, limits on what is kept of its output.
import { ReceivingGolemNetwork, order, session } from "./common.mjs";

await session(async (glm) => {
  const rental = await glm.oneOf({
    order: order({ minStorageGib: 1 }),
    volumes: { results: { path: "/results", sizeGib: 0.25 }, other: { path: "/data/other", sizeGib: 0.25 } },
  });
  const exe = await rental.getExeUnit();
  const written = await exe.run("echo kept > /results/file; cat /results/file; ls -d /data/other /golem/work");
  const sent = await exe.uploadData(new TextEncoder().encode("sent"), "/data/other/sent");
  const read = await exe.downloadData("/data/other/sent");
  const capture = (part) => ({ stdout: { atEnd: { ...part, format: "string" } } });
  const text = "printf 0123456789";
  const head = await exe.run(text, { capture: capture({ head: 3 }) });
  const tail = await exe.run(text, { capture: capture({ tail: 3 }) });
  const binary = await exe.run("printf '\\001\\377'", { capture: { stdout: { atEnd: { format: "binary" } } } });
  const raw = await exe.run("printf '\\001\\377'");
  const env = await exe.run("echo [$COLOUR]", { env: { COLOUR: "blue" } });
  await rental.stopAndFinalize();
  const bytes = (value) => (typeof value === "string" ? value : Array.from(new Uint8Array(value)));
  return {
    written: written.stdout,
    sent: [sent.result, Buffer.from(read.data).toString()],
    head: head.stdout,
    tail: tail.stdout,
    binary: bytes(binary.stdout),
    raw: bytes(raw.stdout),
    env: env.stdout,
  };
}, {}, ReceivingGolemNetwork);
