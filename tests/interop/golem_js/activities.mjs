// Several activities, one after the other, in one agreement.
import { order, session } from "./common.mjs";

await session(async (glm) => {
  const rental = await glm.oneOf({ order: order() });
  const seen = [];
  for (let number = 0; number < 3; number++) {
    const exe = await rental.getExeUnit();
    const result = await exe.run("ls /golem/work; echo mark > /golem/work/mark");
    seen.push([exe.activity.id, exe.activity.agreement.id, result.stdout]);
    if (number < 2) await rental.destroyExeUnit();
  }
  await rental.stopAndFinalize();
  return { seen };
});
