// Nobody ends the rental: disconnecting does, and waits for its bill.
import { order, session } from "./common.mjs";

const accepted = [];
await session(async (glm) => {
  glm.payment.events.on("invoiceAccepted", ({ invoice }) => accepted.push(invoice.getStatus()));
  const rental = await glm.oneOf({ order: order({ imageTag: undefined, imageHash: process.env.IMAGE_HASH }) });
  const exe = await rental.getExeUnit();
  const { stdout } = await exe.run("echo still billed");
  return { stdout, accepted };
});
