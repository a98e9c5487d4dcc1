// An exponential moving average of noisy weights in the plane, for any decay and warm-up.
import { axes, bringToLife, drawn, element, sentence, slider } from "./base.js";

/** The weight of the old average after n updates; a warm-up of 1 is none. */
export function betaAt(n, decay, warmup) {
  return Math.min(decay, (1 + n) / (warmup + n));
}

/** The averages along a path, which begin at its first point. */
export function averages(path, decay, warmup) {
  const all = [path[0]];
  path.slice(1).forEach((point, n) => {
    const beta = betaAt(n, decay, warmup);
    all.push(all[n].map((v, axis) => beta * v + (1 - beta) * point[axis]));
  });
  return all;
}

bringToLife("ema", (stage, data, width) => {
  const last = data.path.length - 1, wide = width >= 600;
  const pair = element("div", { class: "t2i-pair" }, stage);
  const panel = (w, height, name, options) => {
    const place = element("div", { style: `flex: 0 1 ${w}px` }, pair);
    return axes(place, { width: w, height, name, ...options });
  };
  const w1 = wide ? 320 : Math.min(width, 310), w2 = wide ? width - w1 - 20 : width;
  const { x, y } = data.range;  // one unit is as long on both axes
  const height = (w1 - 64) * (y[1] - y[0]) / (x[1] - x[0]) + 50;
  const plane = panel(w1, height, "The weights and their average in the plane.", {
    x, y, xlabel: "first weight", ylabel: "second weight",
    ticks: { x: [-2, -1, 0, 1], y: [-1, 0, 1] },
  });
  const steps = [0, 100, 200, 300];
  const chart = panel(w2, wide ? height : 210, "Distance to the minimum over updates.", {
    x: [0, last], y: [0, 3], xlabel: "updates", ylabel: "distance to the minimum",
    ticks: { x: steps, y: [0, 1, 2] },
  });
  for (const level of data.levels) {  // the loss is the same along an ellipse
    const [rx, ry] = data.curvature.map((c) => Math.sqrt(2 * level / c));
    drawn("ellipse", { cx: plane.sx(0), cy: plane.sy(0),
      rx: plane.sx(rx) - plane.sx(0), ry: plane.sy(0) - plane.sy(ry) }, plane.svg);
  }
  const lines = [plane, chart].map(({ svg }) => ["real faint", "fake"].map((kind) =>
    drawn("path", { class: `line ${kind}` }, svg)));
  const ends = ["sample", "dot"].map((kind) =>
    drawn("circle", { class: `${kind} end`, r: 5 }, plane.svg));
  drawn("text", { class: "real", x: chart.sx(last), y: 24, "text-anchor": "end" },
    chart.svg, "blue: weights, orange: average");
  const say = sentence(stage);
  const draw = () => {
    const beta = data.decays[Number(decay.value)], n = Number(step.value);
    const c = data.warmups[Number(warmup.value)];
    const paths = [data.path, averages(data.path, beta, c)].map((p) => p.slice(0, n + 1));
    const far = paths.map((p) => p.map((point) => Math.hypot(...point)));
    paths.forEach((p, k) => {
      const [xs, ys] = [0, 1].map((axis) => p.map((point) => point[axis]));
      lines[0][k].setAttribute("d", plane.path(xs, ys));
      lines[1][k].setAttribute("d", chart.path(p.map((_, i) => i), far[k]));
      ends[k].setAttribute("cx", plane.sx(xs[n]).toFixed(1));
      ends[k].setAttribute("cy", plane.sy(ys[n]).toFixed(1));
    });
    const digits = (v) => v.toFixed(2), recent = Math.min(n, 100);
    const mean = (d) => d.slice(-recent).reduce((a, b) => a + b) / recent;
    const reached = Math.max(0, Math.ceil((c * beta - 1) / (1 - beta) - 1e-9));
    say(`After ${n} updates the weights are ${digits(far[0][n])} from the minimum, the ` +
      `average ${digits(far[1][n])}; over the last ${recent} updates ${
        digits(mean(far[0]))} and ${digits(mean(far[1]))} on average. ` +
      (reached ? `β is now ${betaAt(n, beta, c).toFixed(3)}; it reaches ${beta} after ${
        reached.toLocaleString("en")} updates.` : `β is ${beta} from the first update.`));
  };
  const choose = (label, values, value, words) => slider(stage, label,
    { min: 0, max: values.length - 1, step: 1, value: values.indexOf(value) },
    (i) => words(values[i]), () => draw());
  const decay = choose("decay β max", data.decays, 0.98, (v) => `${v}`);
  const warmup = choose("warm-up c", data.warmups, 10,
    (v) => (v === 1 ? "1 (none)" : `${v}`));
  const step = slider(stage, "updates", { min: 1, max: last, step: 1, value: last },
    (v) => `${v}`, () => draw());
  draw();
});
