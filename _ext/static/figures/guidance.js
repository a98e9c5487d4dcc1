// Exact guidance in the plane: the formulas of the chapter, for a thousand scales.
import { axes, bringToLife, drawn, sentence, slider } from "./base.js";

/** E[x0 | xt] for equally likely Gaussians of one standard deviation, in the plane. */
export function posteriorMean([x, y], alpha, sigma, means, std) {
  const variance = (alpha * std) ** 2 + sigma ** 2;
  const logits = means.map(([a, b]) =>
    -((x - alpha * a) ** 2 + (y - alpha * b) ** 2) / (2 * variance));
  const top = Math.max(...logits);
  const weights = logits.map((l) => Math.exp(l - top));
  const total = weights.reduce((a, b) => a + b);
  const gain = std ** 2 * alpha / variance;
  return [0, 1].map((i) => means.reduce((sum, m, k) => sum + weights[k] / total *
    (m[i] + gain * ([x, y][i] - alpha * m[i])), 0));
}

/** All noisy points of one sample, from pure noise to the clean end. */
export function trajectory(start, scale, { own, everything, std, levels }) {
  const path = [start];
  let point = start;
  levels.forEach(([alpha, sigma], i) => {
    const c = posteriorMean(point, alpha, sigma, own, std);
    const u = posteriorMean(point, alpha, sigma, everything, std);
    const x0 = u.map((v, k) => v + scale * (c[k] - v));
    const [alpha2, sigma2] = levels[i + 1] ?? [1, 0];
    point = x0.map((v, k) => alpha2 * v + sigma2 * (point[k] - alpha * v) / sigma);
    path.push(point);
  });
  return path;
}

bringToLife("guidance", (stage, data, width) => {
  const side = Math.min(width, 420);
  const { svg, sx, sy } = axes(stage, {
    width: side, height: side, x: [-2.6, 2.6], y: [-2.6, 2.6], xlabel: "x₁",
    ylabel: "x₂", ticks: { x: [-2, -1, 0, 1, 2], y: [-2, -1, 0, 1, 2] },
    name: "Samples in the plane among the six groups; the sentence below counts them.",
  });
  svg.style.maxWidth = `${side}px`;
  for (const m of data.everything) {
    const wanted = data.own.some((o) => o[0] === m[0] && o[1] === m[1]);
    drawn("circle", {
      class: wanted ? "ring wanted" : "ring", cx: sx(m[0]), cy: sy(m[1]),
      r: sx(0.3) - sx(0),
    }, svg);
  }
  const dots = data.start.map(() => drawn("circle", { class: "sample", r: 2.4 }, svg));
  const say = sentence(stage);
  let paths = [], at = null;
  const draw = () => {
    const w = Number(scale.value), n = Number(step.value);
    if (at !== w) paths = data.start.map((z) => trajectory(z, w, data));
    at = w;
    const points = paths.map((p) => p[n]);
    points.forEach(([x, y], i) => {
      dots[i].setAttribute("cx", sx(x).toFixed(1));
      dots[i].setAttribute("cy", sy(y).toFixed(1));
    });
    const near = points.map((p) => data.everything.map((m) =>
      Math.hypot(p[0] - m[0], p[1] - m[1])));
    const share = (test) => `${Math.round(100 * near.filter(test).length / near.length)} %`;
    const best = (d) => d.indexOf(Math.min(...d));
    const wanted = data.own.map((o) => data.everything.findIndex(
      (m) => m[0] === o[0] && m[1] === o[1]));
    say(`At w = ${w.toFixed(1)}, step ${n}, nearest to the three requested groups: ${
      wanted.map((k) => share((d) => best(d) === k)).join(", ")}; to another: ${
      share((d) => !wanted.includes(best(d)))}; outside of all rings: ${
      share((d) => Math.min(...d) > 0.3)}.`);
  };
  const scale = slider(stage, "guidance scale w", { min: 0, max: 10, step: 0.5, value: 1 },
    (v) => v.toFixed(1), () => draw());
  const end = data.levels.length;
  const step = slider(stage, "denoising step", { min: 0, max: end, step: 1, value: end },
    (v) => `${v} of ${end}`, () => draw());
  draw();
});
