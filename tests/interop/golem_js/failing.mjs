// Commands that fail are results; the machine lives on.
import { failure, order, plain, session } from "./common.mjs";

await session(async (glm) => {
  const rental = await glm.oneOf({ order: order() });
  const exe = await rental.getExeUnit();
  const code = await exe.run("echo out; echo err >&2; exit 7");
  const missing = await exe.run("/no/such/program", ["x"]);
  const upload = await exe.uploadData(new Uint8Array([1]), "/outside/of/any/volume").then(plain, (e) => ({ thrown: e.message }));
  const download = await exe.downloadFile("/golem/output/nothing", "/tmp/never-written").then(plain, (e) => ({ thrown: e.message }));
  const nonsense = await exe.transfer("ftp://127.0.0.1/x", "container:/golem/work/x").then(plain, (e) => ({ thrown: e.message }));
  const still = await exe.run("echo still here");
  const { activity } = exe;
  const malformed = await failure(glm.activity.createScriptExecutor(activity).execute({ text: '[{"dance":{}}]' }));
  await rental.stopAndFinalize();
  return { code: plain(code), missing: plain(missing), upload, download, nonsense, still: still.stdout, malformed };
});
