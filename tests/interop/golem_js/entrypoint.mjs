// The image's own program is started, by a script of one's own. Arguments: the image's address and hash.
import { all, order, plain, session } from "./common.mjs";

const [imageUrl, imageHash] = process.argv.slice(2);

await session(async (glm) => {
  const wish = order({ imageUrl, imageHash, capabilities: ["start-entrypoint"] });
  const rental = await glm.oneOf({ order: wish });
  await rental.getExeUnit();
  await rental.destroyExeUnit();
  const activity = await glm.activity.createActivity(rental.agreement);
  const executor = glm.activity.createScriptExecutor(activity);
  const run = async (commands) => all(executor.getResultsObservable(await executor.execute({ text: JSON.stringify(commands) })));
  const capture = { stdout: { atEnd: { format: "string" } }, stderr: { atEnd: { format: "string" } } };
  const shell = (text) => ({ run: { entry_point: "/bin/sh", args: ["-c", text], capture } });
  const wait = "i=0; while [ ! -s /golem/work/began ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done; cat /golem/work/began";
  const started = await run([{ deploy: { env: { FROM: "the deployment" } } }, { start: { args: ["start-entrypoint"] } }]);
  const found = await run([shell(wait), shell("echo $MOOD $FROM; pwd; id -u")]);
  await glm.activity.destroyActivity(activity);
  await rental.stopAndFinalize();
  return { started: started.map(plain), found: found.map((result) => result.stdout) };
});
