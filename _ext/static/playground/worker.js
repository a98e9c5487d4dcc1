// Draws in a thread of its own, so that the page stays alive. Each message is a job
// { id, kind, ... }; the answers are { id, progress }, { id, step }, { id, result } and
// { id, error }. A new drawing, or "stop", ends the one that runs.

import { Networks } from "./networks.js";
import { promptGenerator } from "./noise.js";
import { mixTexts, sample } from "./sampler.js";
import { cleanText, Tokenizer } from "./text.js";

const networks = new Networks();
const encoded = new Map();
let tokenizer;
let newest = 0; // the drawing that is wanted
let queue = Promise.resolve();

class Stopped extends Error {}

const pause = () => new Promise((resolve) => setTimeout(resolve)); // messages are read

async function load({ id }) {
  const found = await networks.load((progress) => postMessage({ id, progress }));
  const [first] = found.models;
  tokenizer = new Tokenizer(found.settings[first].tokenizer);
  return found;
}

// The last prompts' vectors are kept: a drag asks for the same ones again and again.
async function encode(model, prompt) {
  const key = `${model} ${prompt}`;
  if (!encoded.has(key)) {
    const { ids, cut } = tokenizer.encode(prompt);
    if (encoded.size > 8) encoded.clear();
    encoded.set(key, {
      text: await networks.encode(model, ids),
      groups: tokenizer.groups(ids),
      cut,
    });
  }
  return encoded.get(key);
}

async function draw({ id, model, prompt, seed, scale, numSteps, sampler, psi, noise }) {
  const settings = networks.settings[model];
  const { text, groups, cut } = await encode(model, prompt);
  const random = promptGenerator(cleanText(prompt), seed);
  const start = performance.now();
  const done = (image, more) => ({
    image,
    groups,
    cut,
    seconds: (performance.now() - start) / 1000,
    ...more,
  });
  if (settings.model_type === "gigagan") {
    const z = random.normal(settings.z_dim);
    const { image, maps } = await networks.generate(model, text, z, psi);
    return done(image, { z, maps });
  }
  let given = noise; // a test may bring its own
  const next = () => {
    const x = given ?? random.normal(3 * settings.size ** 2);
    given = undefined;
    return x;
  };
  const denoiser = (x, t) => networks.denoise(model, text, x, t);
  let last;
  for await (const step of sample(settings, denoiser, next, { scale, numSteps, sampler })) {
    last = step;
    postMessage({ id, step, groups });
    await pause();
    if (newest !== id) throw new Stopped("stopped");
  }
  return done(last.x, { maps: last.maps });
}

// One image of the GAN for a latent that was moved by hand, perhaps between two prompts.
async function move({ model, prompt, second, mix, z, psi }) {
  let { text } = await encode(model, prompt);
  if (second && mix > 0) text = mixTexts(text, (await encode(model, second)).text, mix);
  const { image } = await networks.generate(model, text, z, psi);
  return { image };
}

const JOBS = { load, draw, move, classify: ({ image }) => networks.classify(image) };

addEventListener("message", ({ data }) => {
  if (data.kind === "draw" || data.kind === "stop") newest = data.id;
  if (data.kind === "stop") return;
  queue = queue.then(async () => {
    const { id, kind } = data;
    try {
      if (kind === "draw" && newest !== id) throw new Stopped("stopped");
      postMessage({ id, result: await JOBS[kind](data) });
    } catch (e) {
      const stopped = e instanceof Stopped;
      postMessage({ id, error: String(e?.message ?? e), stopped });
    }
  });
});
