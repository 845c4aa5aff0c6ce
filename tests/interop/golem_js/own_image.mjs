// The image lies on this disk and is served from here. Argument: its path.
import { order, session } from "./common.mjs";

await session(async (glm) => {
  const rental = await glm.oneOf({ order: order({ imageUrl: `file://${process.argv[2]}` }) });
  const exe = await rental.getExeUnit();
  const result = await exe.run("echo $MARK");
  await rental.stopAndFinalize();
  return { stdout: result.stdout, message: result.message };
});
