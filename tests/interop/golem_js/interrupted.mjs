// Somebody presses Ctrl-C while a command runs: the program gives everything back.
import { GolemNetwork } from "@golem-sdk/golem-js";

import { order, tell } from "./common.mjs";

const glm = new GolemNetwork();
process.once("SIGINT", () => {
  glm.disconnect().then(() => {
    tell({ ended: "in order" });
    process.exit(0);
  });
});
await glm.connect();
const rental = await glm.oneOf({ order: order() });
const exe = await rental.getExeUnit();
console.log("working");
await exe.run("sleep 300").catch((error) => console.log(`the command ended: ${error.constructor.name}`));
await new Promise(() => setInterval(() => {}, 1000));
