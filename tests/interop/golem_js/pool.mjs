// Many tasks in a pool that grows to three machines.
import { order, session } from "./common.mjs";

await session(async (glm) => {
  const pool = await glm.manyOf({ poolSize: { min: 3, max: 3 }, order: order() });
  await pool.ready(60_000);
  const size = pool.getSize();
  const tasks = Array.from({ length: 12 }, (_, number) =>
    pool.withRental(async (rental) => {
      const exe = await rental.getExeUnit();
      const result = await exe.run(`sleep 0.3; echo $((${number} * ${number}))`);
      return { number, square: Number(result.stdout), provider: exe.provider.name };
    }),
  );
  const done = await Promise.all(tasks);
  await pool.drainAndClear();
  return { size, done };
});
