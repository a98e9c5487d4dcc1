// A GAN on the line, step by step: densities, generated numbers, and the curve of D.
import { axes, bringToLife, drawn, sentence, slider } from "./base.js";

bringToLife("first-gan", (stage, data, width) => {
  const xs = data.at, x = [xs[0], xs[xs.length - 1]], ticks = [-3, -2, -1, 0, 1, 2, 3];
  const top = axes(stage, {
    width, height: 190, x, y: [-0.12, 0.8], xlabel: "value", ylabel: "density",
    ticks: { x: ticks, y: [0, 0.4, 0.8] },
    name: "Densities of real and generated numbers; the sentence below says the shares.",
  });
  const low = axes(stage, {
    width, height: 190, x, y: [-4, 4], xlabel: "value", ylabel: "logit D",
    ticks: { x: ticks, y: [-4, 0, 4] },
    name: "The logit of the discriminator over the line.",
  });
  drawn("path", { class: "line real", d: top.path(xs, data.real) }, top.svg);
  drawn("text", { class: "real", x: top.sx(-2.9), y: top.sy(0.68) }, top.svg,
    "blue: real, orange: generated, with dots");
  drawn("path", { class: "t2i-zero", d: low.path(xs, xs.map(() => 0)),
    stroke: "currentColor", "stroke-dasharray": "2 4", fill: "none" }, low.svg);
  const fake = drawn("path", { class: "line fake" }, top.svg);
  const score = drawn("path", { class: "line score" }, low.svg);
  const dots = data.runs[0].dots[0].map((_, i) => drawn("circle", {
    class: "dot", r: 3, cy: top.sy(-0.06) + (i % 3 - 1) * 5,
  }, top.svg));
  const say = sentence(stage);
  const draw = () => {
    const run = data.runs[Number(gamma.value)], k = Number(step.value);
    fake.setAttribute("d", top.path(xs, run.density[k]));
    score.setAttribute("d", low.path(xs, run.logit[k]));
    run.dots[k].forEach((v, i) => {
      const inside = Math.max(x[0], Math.min(x[1], v));
      dots[i].setAttribute("cx", top.sx(inside).toFixed(1));
    });
    const shares = run.shares[k].map((s) => `${Math.round(100 * s)} %`);
    const steepest = Math.max(...run.logit[k].slice(1).map((v, i) =>
      Math.abs(v - run.logit[k][i]) / (xs[i + 1] - xs[i])));
    say(`Generated numbers at the modes ${data.modes.join(", ")}: ${
      shares.join(", ")}. Steepest slope of D: ${steepest.toFixed(1)} per unit.`);
  };
  const gamma = slider(stage, "strength γ of R1",
    { min: 0, max: data.runs.length - 1, step: 1, value: 0 },
    (v) => `${data.runs[v].gamma}`, () => draw());
  const last = data.steps.length - 1;
  const step = slider(stage, "training step", { min: 0, max: last, step: 1, value: last },
    (v) => `${data.steps[v]}`, () => draw());
  draw();
});
