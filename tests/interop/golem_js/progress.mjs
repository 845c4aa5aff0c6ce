// The steps of a deployment and of a transfer, as they happen. Arguments: a file, its target on the way back.
import { order, session } from "./common.mjs";

const [source, target] = process.argv.slice(2);
const progress = { updateInterval: "20ms", updateStep: 1024 * 1024 };

/** Run a script and return the raw events of each command. */
async function watch(glm, activity, commands) {
  const { batchId, batchSize } = await glm.activity.createScriptExecutor(activity).execute({ text: JSON.stringify(commands) });
  return new Promise((resolve, reject) => {
    const events = [];
    const subscription = glm.activity.observeStreamingBatchEvents(activity, batchId).subscribe({
      next: (event) => {
        events.push(event);
        if (event.kind.finished && (event.index + 1 >= batchSize || event.kind.finished.return_code !== 0)) {
          queueMicrotask(() => subscription.unsubscribe());
          resolve(events);
        }
      },
      error: reject,
    });
  });
}

await session(async (glm) => {
  const { market, payment } = glm;
  const wish = order();
  const allocation = await payment.createAllocation({ budget: 1, expirationSec: 1800 });
  const demand = await market.buildDemandDetails(wish.demand, wish.market, allocation);
  const body = demand.prototype;
  for (const name of ["transfer", "deploy"]) body.constraints.push(`(golem.activity.caps.${name}.report-progress=true)`);
  const draft = await new Promise((resolve, reject) => {
    const subscription = market
      .collectDraftOfferProposals({ demandSpecification: demand, pricing: wish.market.pricing })
      .subscribe({
        next: (proposal) => {
          queueMicrotask(() => subscription.unsubscribe());
          resolve(proposal);
        },
        error: reject,
      });
  });
  const agreement = await market.proposeAgreement(draft);
  const rental = glm.rental.createResourceRental(agreement, allocation);
  await rental.getExeUnit();
  await rental.destroyExeUnit();
  const activity = await glm.activity.createActivity(agreement);
  const deploy = await watch(glm, activity, [{ deploy: { progress } }, { start: {} }]);
  const from = await glm.services.storageProvider.publishFile(source);
  const to = await glm.services.storageProvider.receiveFile(target);
  const transfer = await watch(glm, activity, [
    { transfer: { from, to: "container:/golem/work/file", progress } },
    { transfer: { from: "container:/golem/work/file", to, progress } },
  ]);
  await glm.activity.destroyActivity(activity);
  await rental.stopAndFinalize();
  await payment.releaseAllocation(allocation);
  return { deploy, transfer };
});
