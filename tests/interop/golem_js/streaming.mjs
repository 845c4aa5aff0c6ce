// Output as it comes, whole and in order.
import { order, session } from "./common.mjs";

/** Run and collect: the pieces of stdout with the time of each, all of stderr, the end. */
async function watch(exe, command, timeout) {
  const process = await exe.runAndStream(command);
  const pieces = [];
  let errors = "";
  process.stdout.subscribe((text) => pieces.push([Date.now(), text]));
  process.stderr.subscribe((text) => (errors += text));
  const end = await process.waitForExit(timeout);
  return { pieces, text: pieces.map((piece) => piece[1]).join(""), errors, end, finished: process.isFinished() };
}

await session(async (glm) => {
  const rental = await glm.oneOf({ order: order() });
  const exe = await rental.getExeUnit();
  const slow = await watch(exe, "for i in 1 2 3; do echo line $i; sleep 0.4; done; echo oops >&2");
  const fast = await watch(exe, "echo at once");
  const silent = await watch(exe, "true");
  const failed = await watch(exe, "echo dying; exit 5");
  const much = await watch(exe, "i=0; while [ $i -lt 20000 ]; do echo number $i; i=$((i+1)); done", 60_000);
  const expected = Array.from({ length: 20000 }, (_, i) => `number ${i}\n`).join("");
  await rental.stopAndFinalize();
  return {
    slow: slow.text,
    spread: slow.pieces.at(-1)[0] - slow.pieces[0][0],
    errors: slow.errors,
    fast: fast.text,
    silent: [silent.text, silent.end.result, silent.finished],
    failed: [failed.text, failed.end.result, failed.end.message],
    whole: much.text === expected,
    length: much.text.length,
  };
});
