// Starts an activity for another process, and ends it when told (a signal).
import { GolemNetwork } from "@golem-sdk/golem-js";

import { order, tell } from "./common.mjs";

const glm = new GolemNetwork();
await glm.connect();
const rental = await glm.oneOf({ order: order() });
const exe = await rental.getExeUnit();
await exe.run("echo from the first > /golem/work/note");
const told = new Promise((resolve) => process.once("SIGINT", resolve));
const alive = setInterval(() => {}, 1000);
console.log(`activity ${exe.activity.id} ${exe.activity.agreement.demand.id}`);
await told;
clearInterval(alive);
const { stdout } = await exe.run("cat /golem/work/note");
await rental.stopAndFinalize();
await glm.disconnect();
tell({ stdout });
