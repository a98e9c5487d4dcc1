// The exported networks in onnxruntime-web (WebAssembly, one thread). Its Python counterpart is
// `ExportedModel` (chapter 41).

import * as ort from "../vendor/ort.wasm.bundle.min.js";

const MODELS = new URL("models/", import.meta.url);
const RUNTIME = new URL("../vendor/ort-wasm-simd-threaded.wasm.gz", import.meta.url);
const RUNTIME_BYTES = 3.8e6; // about; only for the progress bar

// The bytes of a file; `report` is told how many came. A digest in the address lets the
// browser keep the file for as long as it is the same.
async function fetchBytes(url, report = () => {}, digest = "") {
  const address = new URL(url);
  if (digest) address.searchParams.set("v", digest);
  const response = await fetch(address, { cache: digest ? "force-cache" : "default" });
  if (!response.ok) throw new Error(`${address.pathname} is missing (${response.status})`);
  const [parts, reader] = [[], response.body.getReader()];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    report(value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function fetchJson(name) {
  const bytes = await fetchBytes(new URL(name, MODELS));
  return JSON.parse(new TextDecoder().decode(bytes));
}

// Some servers unpack a .gz on the way, most do not.
async function unpack(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

export class Networks {
  constructor() {
    this.sessions = new Map(); // digest of the file -> session
    this.settings = {}; // of each model, its model.json
  }

  // Load everything; `report({ done, total, what })` says how far it is.
  async load(report) {
    const index = await fetchJson("playground.json");
    const folders = [...index.models, "classifier"];
    for (const name of folders) this.settings[name] = await fetchJson(`${name}/model.json`);
    const files = new Map(); // the text encoder is the same for both models
    for (const name of folders) {
      for (const f of Object.values(this.settings[name].networks)) {
        if (!files.has(f.digest)) files.set(f.digest, { ...f, folder: name });
      }
    }
    let total = RUNTIME_BYTES;
    for (const f of files.values()) total += f.bytes;
    let done = 0;
    const count = (what) => (n) => report({ done: (done += n), total, what });
    ort.env.wasm.numThreads = 1; // a static host does not send what threads need
    ort.env.wasm.wasmBinary = await unpack(await fetchBytes(RUNTIME, count("runtime"), "1.30.0"));
    for (const { folder, file, digest } of files.values()) {
      const bytes = await fetchBytes(new URL(`${folder}/${file}`, MODELS), count(file), digest);
      const options = { executionProviders: ["wasm"], logSeverityLevel: 3 };
      this.sessions.set(digest, await ort.InferenceSession.create(bytes, options));
    }
    report({ done: total, total, what: "ready" });
    return { ...index, settings: this.settings };
  }

  async run(model, network, inputs) {
    const session = this.sessions.get(this.settings[model].networks[network].digest);
    return session.run(inputs);
  }

  async encode(model, ids) {
    const row = new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
    const { tokens, pooled } = await this.run(model, "text", { ids: row });
    return {
      tokens: tokens.data,
      pooled: pooled.data,
      weights: new Float32Array(ids.length).fill(1),
    };
  }

  textInputs({ tokens, weights, pooled }) {
    const [n, d] = [weights.length, pooled.length];
    return {
      tokens: new ort.Tensor("float32", tokens, [1, n, d]),
      weights: new ort.Tensor("float32", weights, [1, n]),
      pooled: new ort.Tensor("float32", pooled, [1, d]),
    };
  }

  // Both branches of guidance in one batch, and where each token is used.
  async denoise(model, text, x, t) {
    const size = this.settings[model].size;
    const { prediction, maps } = await this.run(model, "denoiser", {
      xt: new ort.Tensor("float32", x, [1, 3, size, size]),
      t: new ort.Tensor("int64", BigInt64Array.of(BigInt(t)), [1]),
      ...this.textInputs(text),
    });
    const n = x.length;
    return {
      cond: prediction.data.slice(0, n),
      uncond: prediction.data.slice(n),
      maps: { data: maps.data.slice(), side: maps.dims[1] },
    };
  }

  async generate(model, text, z, psi) {
    const { image, maps } = await this.run(model, "generator", {
      z: new ort.Tensor("float32", z, [1, z.length]),
      psi: new ort.Tensor("float32", Float32Array.of(psi), [1]),
      ...this.textInputs(text),
    });
    return { image: image.data.slice(), maps: { data: maps.data.slice(), side: maps.dims[1] } };
  }

  // For each attribute the logits of its values.
  async classify(image) {
    const { size } = this.settings.classifier;
    const input = new ort.Tensor("float32", image, [1, 3, size, size]);
    const found = await this.run("classifier", "classifier", { image: input });
    return Object.fromEntries(Object.entries(found).map(([k, v]) => [k, v.data.slice()]));
  }
}
