// One allocation pays for two rentals, one after the other.
import { order, session } from "./common.mjs";

await session(async (glm) => {
  const allocation = await glm.payment.createAllocation({ budget: 1, expirationSec: 3600 });
  const outputs = [];
  const amounts = [];
  glm.payment.events.on("invoiceAccepted", ({ invoice }) => amounts.push(invoice.amount));
  for (const payment of [{ allocation }, { allocation: allocation.id }]) {
    const rental = await glm.oneOf({ order: order({}, { payment }) });
    const exe = await rental.getExeUnit();
    outputs.push((await exe.run("echo paid from the same purse")).stdout);
    await rental.stopAndFinalize();
  }
  const after = await glm.payment.getAllocation(allocation.id);
  await glm.payment.releaseAllocation(after);
  return {
    outputs,
    amounts,
    total: after.totalAmount,
    spent: after.spentAmount,
    left: after.remainingAmount,
    platform: after.paymentPlatform,
    gone: await glm.payment.getAllocation(allocation.id).then(() => false, () => true),
  };
});
