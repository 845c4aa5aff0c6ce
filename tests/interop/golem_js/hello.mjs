// One machine, one command, by the image's tag; the rental is ended by hand.
import { order, session } from "./common.mjs";

await session(async (glm) => {
  const rental = await glm.oneOf({ order: order() });
  const exe = await rental.getExeUnit();
  const result = await exe.run("echo Hello, Golem! 👋");
  const direct = await exe.run("/bin/echo", ["one", "two words", "$HOME"]);
  await rental.stopAndFinalize();
  return {
    stdout: result.stdout,
    direct: direct.stdout,
    provider: exe.provider,
    state: await rental.fetchAgreementState(),
    after: await exe.run("true").then(() => "ran", (error) => error.constructor.name),
  };
});
