// Patience that ends: with an offer that nobody makes, with a command that takes too long, with a machine that starts.
import { failure, order, session } from "./common.mjs";

await session(async (glm) => {
  const nobody = await failure(glm.oneOf({ order: order({ minMemGib: 100_000 }), signalOrTimeout: 2_000 }));
  const before = await failure(glm.oneOf({ order: order(), signalOrTimeout: AbortSignal.abort("changed my mind") }));
  const rental = await glm.oneOf({ order: order() });
  const exe = await rental.getExeUnit();
  const begun = Date.now();
  const late = await failure(exe.run("sleep 60", { signalOrTimeout: 1_000 }));
  const waited = Date.now() - begun;
  const running = failure(exe.run("sleep 60"));
  await rental.stopAndFinalize();
  const other = await glm.oneOf({ order: order() });
  const starting = failure(other.getExeUnit());
  await other.stopAndFinalize();
  return { nobody, before, late, waited, running: await running, starting: await starting };
});
