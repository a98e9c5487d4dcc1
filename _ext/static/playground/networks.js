// The exported networks in onnxruntime-web: WebAssembly in one thread, and the denoiser by
// WebGPU where that is faster. Its Python counterpart is `ExportedModel` (chapter 41).

const MODELS = new URL("models/", import.meta.url);
const VENDOR = new URL("../vendor/", import.meta.url);
const VERSION = "1.30.0";
const RUNTIMES = {
  wasm: { script: "ort.wasm.bundle.min.js", binary: "ort-wasm-simd-threaded.wasm.gz" },
  webgpu: { script: "ort.jspi.bundle.min.js", binary: "ort-wasm-simd-threaded.jspi.wasm.gz" },
};
const RUNTIME_BYTES = 3.7e6; // about; only for the progress bar
const MOST_DIFFERENT = 0.01; // of predictions by both, whose size is about 1
const TRIAL = 6000; // milliseconds that WebGPU has to show that it is faster
let ort; // the chosen runtime

// "webgpu" where there is a graphics processor and a WebAssembly that can wait for it.
// An adapter that is a program on the processor would be slower than WebAssembly.
async function chooseRuntime() {
  if (!("Suspending" in WebAssembly) || !navigator.gpu) return "wasm";
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return adapter && !adapter.info?.isFallbackAdapter ? "webgpu" : "wasm";
}

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
    this.onGpu = new Map(); // the same, of those that WebGPU runs
    this.settings = {}; // of each model, its model.json
  }

  // Load everything; `report({ done, total, what })` says how far it is.
  async load(report, runtime = undefined) {
    runtime ??= await chooseRuntime();
    this.onGpu = new Map(); // a trial that comes too late writes to an old one
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
    const { script, binary } = RUNTIMES[runtime];
    ort = await import(new URL(script, VENDOR));
    ort.env.wasm.numThreads = 1; // a static host does not send what threads need
    ort.env.wasm.wasmBinary = await unpack(
      await fetchBytes(new URL(binary, VENDOR), count("runtime"), VERSION),
    );
    let denoiser;
    for (const { folder, file, digest } of files.values()) {
      const bytes = await fetchBytes(new URL(`${folder}/${file}`, MODELS), count(file), digest);
      this.sessions.set(digest, await this.open(bytes, "wasm"));
      if (file === "denoiser.onnx") denoiser = { model: folder, digest, bytes };
    }
    report({ done: total, total, what: "ready" });
    if (runtime === "webgpu") {
      const late = new Promise((resolve) => setTimeout(resolve, TRIAL, "late"));
      const end = await Promise.race([this.tryGpu(denoiser), late]);
      if (end === "late") return this.load(report, "wasm"); // its files but one are cached
    }
    return { ...index, settings: this.settings, gpu: this.onGpu.size > 0 };
  }

  open(bytes, provider) {
    const options = { executionProviders: [provider], logSeverityLevel: 3 };
    return ort.InferenceSession.create(bytes, options);
  }

  // WebGPU draws if it gives the same numbers as WebAssembly in less time.
  async tryGpu({ model, digest, bytes }) {
    const { onGpu } = this;
    try {
      const gpu = await this.open(bytes, "webgpu");
      const { end } = this.settings[model].tokenizer;
      const text = await this.encode(model, [end, end]);
      const x = new Float32Array(3 * this.settings[model].size ** 2).fill(0.5);
      const measure = async () => {
        await this.denoise(model, text, x, 500); // warms up
        const start = performance.now();
        const { cond } = await this.denoise(model, text, x, 500);
        return { cond, time: performance.now() - start };
      };
      const expected = await measure();
      onGpu.set(digest, gpu);
      const found = await measure();
      const same = found.cond.every((v, i) => Math.abs(v - expected.cond[i]) < MOST_DIFFERENT);
      if (!same || found.time >= expected.time) onGpu.clear();
    } catch {
      onGpu.clear();
    }
  }

  async run(model, network, inputs) {
    const { digest } = this.settings[model].networks[network];
    try {
      if (this.onGpu.has(digest)) return await this.onGpu.get(digest).run(inputs);
    } catch {
      this.onGpu.clear(); // the graphics processor was lost
    }
    return this.sessions.get(digest).run(inputs);
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
