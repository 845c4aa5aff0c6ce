// A service: set up once, asked several times in batches, torn down.
import { all, order, plain, session } from "./common.mjs";

await session(async (glm) => {
  const marks = [];
  const rental = await glm.oneOf({
    order: order(),
    setup: async (exe) => {
      marks.push((await exe.run("echo 10 > /golem/work/state; cat /golem/work/state")).stdout);
    },
    teardown: async (exe) => {
      marks.push((await exe.run("cat /golem/work/state")).stdout);
    },
  });
  const exe = await rental.getExeUnit();
  const add = "echo $(($(cat /golem/work/state) + 1)) > /golem/work/state";
  const first = await exe.beginBatch().run(add).run("cat /golem/work/state").run("/bin/cat", ["/golem/work/state"]).end();
  const second = await exe
    .beginBatch()
    .uploadJson({ from: "a batch" }, "/golem/input/in.json")
    .run("cat /golem/input/in.json")
    .run("cp /golem/input/in.json /golem/output/out.json")
    .end();
  const streamed = await all(await exe.beginBatch().run("echo a").run("sleep 0.5; echo b").run("echo c").endStream());
  const broken = await exe.beginBatch().run("echo before").run("exit 3").run("echo never").end().then(
    (results) => ({ results: results.map(plain) }),
    (error) => ({ error: error.message }),
  );
  const last = await exe.beginBatch().run(add).run("cat /golem/work/state").end();
  await rental.stopAndFinalize();
  const rows = (results) => results.map(plain);
  return { marks, first: rows(first), second: rows(second), streamed: rows(streamed), broken, last: rows(last) };
});
