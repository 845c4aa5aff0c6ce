// Looks at the market without asking for anything. Argument: how many offers to wait for.
import { session } from "./common.mjs";

const wanted = Number(process.argv[2]);

/** The first offers that fit, or as many as come in the time. */
function look(glm, options, count, patience) {
  return new Promise((resolve, reject) => {
    const found = [];
    const end = () => {
      clearTimeout(timer);
      subscription.unsubscribe();
      resolve(found);
    };
    const timer = setTimeout(end, patience);
    const subscription = glm.market.scan(glm.market.buildScanSpecification(options)).subscribe({
      next: (offer) => {
        found.push(offer);
        if (found.length === count) queueMicrotask(end);
      },
      error: reject,
    });
  });
}

await session(async (glm) => {
  const offers = await look(
    glm,
    {
      workload: { runtime: { name: "vm" }, minMemGib: 0.1, minCpuThreads: 1, capabilities: [] },
      subnetTag: "public",
      payment: { network: "holesky" },
    },
    wanted,
    20_000,
  );
  const none = await look(glm, { workload: { minMemGib: 100_000 } }, 1, 1_500);
  return {
    offers: offers.map((offer) => ({
      id: offer.offerId,
      provider: offer.provider,
      runtime: [offer.runtimeName, offer.runtimeVersion, offer.runtimeCapabilities],
      pricing: offer.pricing,
      cost: offer.getEstimatedCost(1),
      memory: offer.memoryGib,
      storage: offer.storageGib,
      threads: offer.cpuThreads,
      cores: offer.cpuCores,
      transfer: offer.transferProtocol,
      platforms: offer.paymentPlatformAddresses,
      created: offer.offerCreateAt,
    })),
    none: none.length,
  };
});
