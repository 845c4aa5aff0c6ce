// What golem-js reads out of a provider's proposal: argv[2] is a JSON file with it, the answer is printed.

import { readFileSync } from "node:fs";
import { OfferProposal } from "@golem-sdk/golem-js";

const given = JSON.parse(readFileSync(process.argv[2], "utf8"));
const proposal = new OfferProposal(
  {
    proposalId: "R-1",
    issuerId: "0x" + "00".repeat(20),
    timestamp: new Date().toISOString(),
    state: given.state,
    properties: given.properties,
    constraints: given.constraints,
  },
  { paymentPlatform: given.platform },
);
console.log(
  JSON.stringify({
    valid: proposal.isValid(),
    draft: proposal.isDraft(),
    provider: proposal.provider,
    pricing: proposal.pricing,
    machine: proposal.getDto(),
    hour: proposal.getEstimatedCost(1),
  }),
);
