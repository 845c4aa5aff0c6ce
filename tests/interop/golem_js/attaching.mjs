// Uses an activity that another process began. Argument: its id.
import { session } from "./common.mjs";

await session(async (glm) => {
  const activity = await glm.activity.findActivityById(process.argv[2]);
  const exe = await glm.activity.createExeUnit(activity);
  const read = await exe.run("cat /golem/work/note; echo from the second >> /golem/work/note");
  const unknown = await glm.activity.findActivityById("0".repeat(32)).then(() => "found", () => "not found");
  return { stdout: read.stdout, state: activity.getState(), provider: activity.provider.id, unknown };
});
