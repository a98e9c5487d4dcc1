// The sampler: a table of numbers that Python computed, and sums of arrays. Its Python
// counterpart is `ExportedModel.denoise` (chapter 41).

// The sum of weighted arrays, [[weight, array], ...]; a weight of 0 is left out.
export function combine(...terms) {
  const used = terms.filter(([weight]) => weight !== 0);
  const sum = new Float32Array(terms.find(([, x]) => x)[1].length);
  for (const [weight, x] of used) for (let i = 0; i < sum.length; i++) sum[i] += weight * x[i];
  return sum;
}

// From what the network predicts to the clean image.
export function toX0(prediction, x, alpha, sigma, type) {
  if (type === "x0") return prediction;
  if (type === "eps") return combine([1 / alpha, x], [-sigma / alpha, prediction]);
  return combine([alpha, x], [-sigma, prediction]);
}

// Classifier-free guidance, u + w (c - u).
export function guide(cond, uncond, scale) {
  return combine([1 - scale, uncond], [scale, cond]);
}

// The value below which a share of all values lies, interpolated as torch.quantile does.
export function quantile(values, share) {
  const sorted = Float32Array.from(values).sort();
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

// Bring a predicted clean image into [-1, 1].
export function threshold(x0, kind, share) {
  if (kind === "none") return x0;
  const s = kind === "dynamic" ? Math.max(1, quantile(x0.map(Math.abs), share)) : 1;
  return x0.map((v) => Math.min(s, Math.max(-s, v)) / s);
}

// Denoise step by step. `denoiser(x, t)` answers with { cond, uncond, maps }; `noise()`
// draws a new array; yields { step, x0, x, maps }.
export async function* sample(settings, denoiser, noise, { scale, numSteps, sampler }) {
  const table = settings.samplers[sampler]?.[numSteps];
  if (!table) throw new Error(`there is no table for ${numSteps} steps of ${sampler}`);
  const { prediction_type: type, thresholding, dynamic_threshold_percentile: share } = settings;
  let x = noise();
  let previous = x;
  for (const [step, [t, alpha, sigma, a, b, c, d]] of table.entries()) {
    const { cond, uncond, maps } = await denoiser(x, t);
    const [x0Cond, x0Uncond] = [cond, uncond].map((y) => toX0(y, x, alpha, sigma, type));
    const x0 = threshold(guide(x0Cond, x0Uncond, scale), thresholding, share);
    x = combine([a, x], [b, x0], [c, previous], [d, d ? noise() : x]);
    previous = x0;
    yield { step, x0, x, maps };
  }
}

// Numbers of steps that there is a table for.
export function stepCounts(settings, sampler) {
  return Object.keys(settings.samplers[sampler])
    .map(Number)
    .sort((a, b) => a - b);
}

// Two texts in one, the first with weight 1 - s: how a walk between prompts is made.
export function mixTexts(first, second, s) {
  const join = (a, b) => Float32Array.from([...a, ...b]);
  return {
    tokens: join(first.tokens, second.tokens),
    weights: join(
      first.weights.map((w) => w * (1 - s)),
      second.weights.map((w) => w * s),
    ),
    pooled: combine([1 - s, first.pooled], [s, second.pooled]),
  };
}
