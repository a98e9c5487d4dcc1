// The playground's plain parts, by node's own test runner: node --test tests/javascript
// The expected values are Python's: tests/test_playground.py writes them to the file that
// PLAYGROUND_FIXTURE names.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { mapPixels, softmax, toPixels } from "../../_ext/static/playground/draw.js";
import { Networks } from "../../_ext/static/playground/networks.js";
import {
  MersenneTwister,
  promptGenerator,
  sha256,
  streamKey,
} from "../../_ext/static/playground/noise.js";
import {
  combine,
  guide,
  mixTexts,
  quantile,
  sample,
  threshold,
  toX0,
} from "../../_ext/static/playground/sampler.js";
import {
  cleanText,
  promptProblem,
  similarity,
  statedAttributes,
  Tokenizer,
  unknownWords,
  writeCaption,
} from "../../_ext/static/playground/text.js";

const python = JSON.parse(readFileSync(process.env.PLAYGROUND_FIXTURE, "utf8"));
const near = (a, b, most = 1e-5) => {
  assert.equal(a.length, b.length);
  a.forEach((x, i) => assert.ok(Math.abs(x - b[i]) <= most, `${i}: ${x} and ${b[i]}`));
};

test("a prompt is cleaned and split as in Python", () => {
  const tokenizer = new Tokenizer(python.tokenizer);
  for (const { text, clean, ids, unknown } of python.texts) {
    assert.equal(cleanText(text), clean, JSON.stringify(text));
    assert.deepEqual(tokenizer.encode(text).ids, ids, JSON.stringify(text));
    const found = unknownWords(clean, python.tokenizer.words).map((u) => [u.word, u.similar]);
    assert.deepEqual(found, unknown, JSON.stringify(text));
  }
});

test("tokens are grouped by words", () => {
  const tokenizer = new Tokenizer(python.tokenizer);
  const groups = tokenizer.groups(tokenizer.encode("a purple xylophone").ids);
  assert.deepEqual(
    groups.map((g) => g.word),
    ["a", "purple", "xylophone"],
  );
  assert.ok(groups[2].positions.length > 1);
});

test("a prompt that cannot be drawn is refused in one line", () => {
  for (const text of ["", "  \u200b ", "x".repeat(1001)]) {
    assert.equal(promptProblem(text).split("\n").length, 1);
  }
  assert.equal(promptProblem("🐉".repeat(1000)), null);
  assert.match(promptProblem("half \ud83d"), /half a character/);
});

test("captions are written and read back", () => {
  const all = {
    species: "owl",
    body_colour: "red",
    second_colour: "blue",
    eye_colour: "green",
    action: "breathing fire",
    size: "small",
    facing: "left",
  };
  assert.equal(
    writeCaption(all),
    "a small red and blue owl with green eyes, breathing fire, facing left",
  );
  assert.equal(writeCaption({ species: "owl" }), "an owl");
  assert.deepEqual(statedAttributes(writeCaption(all), python.attributes, python.parts), all);
  assert.deepEqual(
    statedAttributes("constructor toString", python.attributes, python.parts),
    {},
  );
  for (const { text, stated } of python.stated)
    assert.deepEqual(statedAttributes(text, python.attributes, python.parts), stated, text);
});

test("SHA-256 and the key of a stream", () => {
  const hex = (text) => Buffer.from(sha256(new TextEncoder().encode(text))).toString("hex");
  assert.equal(hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  assert.equal(
    hex("a".repeat(56)),
    "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a",
  );
  assert.equal(
    streamKey(7, "prompt", 'é "x" 🐉', 1),
    '[7, "prompt", "\\u00e9 \\"x\\" \\ud83d\\udc09", "1"]',
  );
});

test("the Mersenne Twister is the one that everybody has", () => {
  const twister = new MersenneTwister(5489);
  assert.equal(twister.next(), 3499211612);
  for (let i = 1; i < 9999; i++) twister.next();
  assert.equal(twister.next(), 4123659995);
});

test("a seed gives torch's noise", () => {
  for (const { prompt, seed, first, second, sum } of python.noise) {
    const random = promptGenerator(prompt, seed);
    const x = random.normal(3 * 64);
    near(x.slice(0, 20), first);
    near([x.reduce((a, b) => a + b, 0)], [sum], 1e-3);
    near([...random.normal(16)], second);
  }
  assert.throws(() => new MersenneTwister(1).normal(10));
});

test("sums, guidance, thresholds", () => {
  const x = Float32Array.of(1, 2);
  near([...combine([2, x], [0, undefined], [-1, x])], [1, 2]);
  near([...guide(x, Float32Array.of(0, 0), 3)], [3, 6]);
  near([...toX0(Float32Array.of(1, 1), x, 0.6, 0.8, "v")], [-0.2, 0.4], 1e-6);
  near([...toX0(Float32Array.of(1, 1), x, 0.5, 0.5, "eps")], [1, 3], 1e-6);
  assert.equal(quantile([4, 1, 3, 2], 0.5), 2.5);
  near([...threshold(Float32Array.of(-3, 0.5), "static", 1)], [-1, 0.5]);
  near([...threshold(Float32Array.of(-4, 2), "dynamic", 1)], [-1, 0.5]);
  near([...threshold(Float32Array.of(-4, 2), "none", 1)], [-4, 2]);
});

test("the sampler follows the table as Python's does", async () => {
  const { table, start, final } = python.sampler;
  const settings = {
    samplers: { s: { 5: table } },
    prediction_type: "v",
    thresholding: "static",
  };
  const denoiser = async (x, t) => ({
    cond: x.map((v) => Math.tanh(v) * (0.3 + t / 2000)),
    uncond: x.map((v) => Math.sin(v) * 0.2),
    maps: null,
  });
  let last;
  const options = { scale: 2.5, numSteps: 5, sampler: "s" };
  for await (const step of sample(settings, denoiser, () => Float32Array.from(start), options))
    last = step;
  assert.equal(last.step, 4);
  near([...last.x], final, 1e-5);
  await assert.rejects(async () => {
    for await (const _ of sample(settings, denoiser, () => start, { ...options, numSteps: 6 }));
  }, /no table for 6 steps/);
});

test("two texts are mixed by their weights", () => {
  const text = (n, v) => ({
    tokens: new Float32Array(2 * n).fill(v),
    weights: new Float32Array(n).fill(1),
    pooled: Float32Array.of(v, v),
  });
  const mixed = mixTexts(text(2, 1), text(3, 5), 0.25);
  near([...mixed.weights], [0.75, 0.75, 0.25, 0.25, 0.25]);
  near([...mixed.pooled], [2, 2]);
  assert.equal(mixed.tokens.length, 10);
});

test("arrays become pixels", () => {
  assert.deepEqual([...toPixels(Float32Array.of(-1, 0, 7), 1)], [0, 128, 255, 255]);
  assert.deepEqual(
    [...mapPixels(Float32Array.of(0, 1, 2, 3, 9, 9, 9, 9), [0], 2)].filter(
      (_, i) => i % 4 === 0,
    ),
    [0, 85, 170, 255],
  );
  near(softmax([0, 0]), [0.5, 0.5]);
  assert.equal(similarity("dragon", "dragn"), 10 / 11);
});

// The choice between WebAssembly and WebGPU, with sessions and a clock that are made up.
async function choice({ factor = 1, milliseconds = 1, fails = false }) {
  const networks = new Networks();
  const now = performance.now;
  let [time, calls] = [0, 0];
  performance.now = () => time;
  networks.settings.m = {
    size: 1,
    tokenizer: { end: 0 },
    networks: { denoiser: { digest: "d" } },
  };
  const cpu = { run: async () => ((time += 10), { value: 1 }) };
  const gpu = {
    run: async () => {
      calls++;
      if (fails === "lost" && calls > 2) throw new Error("the device is lost");
      time += milliseconds;
      return { value: factor };
    },
  };
  networks.sessions.set("d", cpu);
  networks.open = async () => {
    if (fails === true) throw new Error("no such operation");
    return gpu;
  };
  networks.encode = async () => ({});
  networks.denoise = async () => ({
    cond: Float32Array.of((await networks.run("m", "denoiser", {})).value),
  });
  try {
    await networks.tryGpu({ model: "m", digest: "d", bytes: null });
  } finally {
    performance.now = now;
  }
  return networks;
}

test("WebGPU is used where it is faster and gives the same numbers", async () => {
  assert.equal((await choice({})).onGpu.size, 1);
  assert.equal((await choice({ factor: 1.1 })).onGpu.size, 0);
  assert.equal((await choice({ factor: NaN })).onGpu.size, 0);
  assert.equal((await choice({ milliseconds: 20 })).onGpu.size, 0);
  assert.equal((await choice({ fails: true })).onGpu.size, 0);
});

test("a graphics processor that is lost is replaced by WebAssembly", async () => {
  const networks = await choice({ fails: "lost" });
  assert.equal(networks.onGpu.size, 1);
  assert.equal((await networks.run("m", "denoiser", {})).value, 1);
  assert.equal(networks.onGpu.size, 0);
});
