// A network's address book: made, filled by rentals, emptied, removed.
import { order, session } from "./common.mjs";

await session(async (glm) => {
  const network = await glm.createNetwork({ ip: "192.168.7.0/24" });
  const made = network.getNetworkInfo();
  const pool = await glm.manyOf({ poolSize: { min: 2, max: 2 }, order: order({}, { network }) });
  const ips = await Promise.all(
    [0, 1].map(() =>
      pool.withRental(async (rental) => {
        const exe = await rental.getExeUnit();
        await exe.run("sleep 1");
        return [exe.getIp(), exe.getWebsocketUri(80)];
      }),
    ),
  );
  const filled = network.getNetworkInfo();
  await pool.drainAndClear();
  const emptied = network.getNetworkInfo();
  await glm.destroyNetwork(network);
  return { made, ips, filled, emptied, removed: network.isRemoved() };
});
