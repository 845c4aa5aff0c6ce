// What a program is told of the market, its rental, its activity and its bills.
import { order, session } from "./common.mjs";

const NAMES = {
  market: [
    "demandSubscriptionStarted", "offerProposalReceived", "offerCounterProposalSent", "errorSendingCounterProposal",
    "offerCounterProposalRejected", "offerProposalRejectedByPriceFilter", "offerProposalRejectedByProposalFilter",
    "agreementApproved", "agreementTerminated", "agreementRejected", "agreementCancelled", "demandSubscriptionStopped",
  ],
  activity: [
    "activityCreated", "errorCreatingActivity", "exeUnitInitialized", "errorInitializingExeUnit", "scriptSent", "scriptExecuted",
    "errorExecutingScript", "batchResultsReceived", "errorGettingBatchResults", "activityStateChanged", "activityDestroyed",
    "errorDestroyingActivity", "errorRefreshingActivity",
  ],
  payment: [
    "allocationCreated", "errorCreatingAllocation", "invoiceReceived", "invoiceAccepted", "errorAcceptingInvoice", "debitNoteReceived",
    "debitNoteAccepted", "errorAcceptingDebitNote", "allocationReleased", "errorReleasingAllocation",
  ],
  rental: ["resourceRentalCreated"],
};

const seen = [];
const details = {};
await session(async (glm) => {
  for (const [part, names] of Object.entries(NAMES)) {
    for (const name of names) {
      glm[part].events.on(name, (event) => {
        seen.push(name);
        if (name === "agreementTerminated") {
          details.terminated = { reason: event.reason, by: event.terminatedBy, state: event.agreement.getState() };
        }
        if (name === "invoiceReceived") {
          const { amount, paymentPlatform, recipientId, provider } = event.invoice;
          details.invoice = { amount, paymentPlatform, recipientId, provider, status: event.invoice.getStatus() };
        }
      });
    }
  }
  glm.events.on("disconnected", () => seen.push("disconnected"));
  const rental = await glm.oneOf({ order: order() });
  for (const name of ["exeUnitCreated", "finalized", "error"]) {
    rental.events.on(name, () => seen.push(`rental.${name}`));
  }
  const exe = await rental.getExeUnit();
  await exe.run("echo hello");
  await rental.stopAndFinalize();
  return { seen, details };
});
