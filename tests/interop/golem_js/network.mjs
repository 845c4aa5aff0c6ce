// A network's address book: made, filled, emptied, removed. Arguments: ids of nodes to put into it.
import { failure, session } from "./common.mjs";

const members = process.argv.slice(2);

await session(async (glm) => {
  const network = await glm.createNetwork({ ip: "192.168.7.0/24" });
  const made = network.getNetworkInfo();
  const nodes = [];
  for (const id of members) nodes.push(await glm.network.createNetworkNode(network, id));
  const chosen = await glm.network.createNetworkNode(network, "0x" + "ab".repeat(20), "192.168.7.77");
  const filled = network.getNetworkInfo();
  const told = new Promise((resolve) => process.once("SIGINT", resolve));
  const alive = setInterval(() => {}, 1000);
  console.log(`filled ${network.id}`);
  await told;
  clearInterval(alive);
  const twice = await failure(glm.network.createNetworkNode(network, members[0]));
  for (const node of [...nodes, chosen]) await glm.network.removeNetworkNode(network, node);
  const emptied = network.getNetworkInfo();
  await glm.destroyNetwork(network);
  const after = await failure(glm.network.createNetworkNode(network, members[0]));
  return { made, filled, uri: chosen.getWebsocketUri(80), twice, emptied, removed: network.isRemoved(), after };
});
