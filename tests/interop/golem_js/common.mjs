// What the programs here share: an order, a session that always ends, and the line that the test reads.
import { createRequire } from "node:module";

import { GolemNetwork } from "@golem-sdk/golem-js";

/** The package as CommonJS programs get it: only this form of it can receive data (the other loses its hash function). */
export const { GolemNetwork: ReceivingGolemNetwork } = createRequire(import.meta.url)("@golem-sdk/golem-js");

/** An order for our small image; `workload` and `rest` change it. */
export function order(workload = {}, rest = {}) {
  const image = workload.imageUrl || workload.imageHash ? {} : { imageTag: process.env.IMAGE_TAG };
  const { market = {}, demand = {}, ...others } = rest;
  return {
    demand: { workload: { ...image, ...workload }, ...demand },
    market: {
      rentHours: 0.25,
      pricing: { model: "linear", maxStartPrice: 0.5, maxCpuPerHourPrice: 2.0, maxEnvPerHourPrice: 1.0 },
      ...market,
    },
    ...others,
  };
}

/** Print what the test is to know; the last such line counts. */
export function tell(result) {
  console.log(JSON.stringify(result));
}

/** Connect, work, disconnect whatever happens, and then tell what the work returned. */
export async function session(work, options = {}, Network = GolemNetwork) {
  const glm = new Network(options);
  let result;
  try {
    await glm.connect();
    result = await work(glm);
  } finally {
    await glm.disconnect();
  }
  tell(result);
}

/** A promise that an observable keeps: all that it emits, or its error. */
export function all(observable) {
  return new Promise((resolve, reject) => {
    const seen = [];
    observable.subscribe({ next: (value) => seen.push(value), error: reject, complete: () => resolve(seen) });
  });
}

/** The parts of a command's result that a test compares. */
export function plain({ index, result, stdout, stderr, message, isBatchFinished }) {
  return { index, result, stdout, stderr, message, isBatchFinished };
}

/** How something fails: the error's name and words. */
export async function failure(promise) {
  try {
    await promise;
    return null;
  } catch (error) {
    return { name: error.constructor.name, message: String(error.message), code: error.code ?? null };
  }
}
