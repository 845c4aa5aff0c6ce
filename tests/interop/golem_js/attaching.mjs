// Uses an activity that another process began. Arguments: its id, and the id of the demand that it was agreed on: this
// client wants to know the demand of every agreement, and no node tells one that is no more.
import { Demand, DemandSpecification } from "@golem-sdk/golem-js";

import { session } from "./common.mjs";

const [activityId, demandId] = process.argv.slice(2);

await session(async (glm) => {
  const specification = new DemandSpecification({ properties: [], constraints: [] }, "erc20-holesky-tglm");
  glm.services.demandRepository.add(new Demand(demandId, specification));
  const activity = await glm.activity.findActivityById(activityId);
  const exe = await glm.activity.createExeUnit(activity);
  const read = await exe.run("cat /golem/work/note; echo from the second >> /golem/work/note");
  const unknown = await glm.activity.findActivityById("0".repeat(32)).then(() => "found", () => "not found");
  return { stdout: read.stdout, state: activity.getState(), provider: activity.provider.id, unknown };
});
