// A generated cloud in the plane, measured against a real one by balls around points.
import { axes, bringToLife, choices, drawn, element, sentence, slider } from "./base.js";

const distance = (p, q) => Math.hypot(p[0] - q[0], p[1] - q[1]);
const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;

/** Both clouds, as the sliders have them; offset and outlier go up and to the right. */
export function clouds({ groups, spread, offset, outlier }, data) {
  const shift = offset * Math.SQRT1_2, far = outlier * Math.SQRT1_2;
  const generated = data.noise.map((z, i) => z.map((v, axis) =>
    data.centres[i % groups][axis] + spread * data.std * v + shift));
  const real = [...data.real];
  if (outlier) real[real.length - 1] = [far, far];
  return { generated, real };
}

/** How far the ball of each point reaches: to its k-th nearest neighbour. */
export function radii(points, k) {
  return points.map((p) =>  // the nearest of all is the point itself
    points.map((q) => distance(p, q)).sort((a, b) => a - b)[k]);
}

/** The four numbers, and of each point what they count. */
export function neighbourMeasures({ generated, real }, k) {
  const ball = { real: radii(real, k), generated: radii(generated, k) };
  const within = real.map((r, i) => generated.map((g) => distance(r, g) <= ball.real[i]));
  const balls = generated.map((_, j) => within.filter((row) => row[j]).length);
  const covered = within.map((row) => row.includes(true));
  const found = real.map((r) =>
    generated.some((g, j) => distance(r, g) <= ball.generated[j]));
  const values = {
    precision: mean(balls.map((n) => Number(n > 0))),
    recall: mean(found.map(Number)),
    density: mean(balls) / k,
    coverage: mean(covered.map(Number)),
  };
  return { values, ball, balls, covered, found };
}

bringToLife("precision-recall", (stage, data, width) => {
  const pair = element("div", { class: "t2i-pair" }, stage);
  const side = width < 600 ? Math.min(width, 330) : 390;
  const plane = element("div", { style: `flex: 0 1 ${side}px` }, pair);
  const [from, to] = data.range, ticks = [-4, -2, 0, 2, 4];
  const { svg, sx, sy } = axes(plane, {
    width: side, height: side, x: [from, to], y: [from, to], xlabel: "x₁",
    ylabel: "x₂", ticks: { x: ticks, y: ticks },
    name: "Real and generated points with balls; the sentence below says the numbers.",
  });
  const clip = drawn("clipPath", { id: "t2i-precision-recall" }, svg);
  drawn("rect", { x: sx(from), y: sy(to), width: sx(to) - sx(from),
    height: sy(from) - sy(to) }, clip);
  const inside = drawn("g", { "clip-path": "url(#t2i-precision-recall)" }, svg);
  const circles = (kind) => data.noise.map(() => drawn("circle", { class: kind }, inside));
  const balls = circles("ball"), real = circles("sample"), generated = circles("dot");
  drawn("text", { class: "real", x: sx(from) + 8, y: sy(to) + 14 }, svg,
    "blue: real, orange: generated");

  const list = element("div", { class: "t2i-words t2i-measures" }, pair);
  let shown = "precision";
  const names = ["precision", "recall", "density", "coverage"];
  const show = choices(list, names, (k) => {
    shown = names[k];
    draw();
  });
  element("div", {}, list, "choose what the circles show");

  const say = sentence(stage);
  const place = (circle, [x, y], r, kind) => {
    circle.setAttribute("cx", sx(x).toFixed(1));
    circle.setAttribute("cy", sy(y).toFixed(1));
    circle.setAttribute("r", r.toFixed(1));
    circle.setAttribute("class", kind);
  };
  const draw = () => {
    const set = Object.fromEntries(
      Object.entries(controls).map(([name, input]) => [name, Number(input.value)]));
    const points = clouds(set, data), m = neighbourMeasures(points, data.k);
    const around = shown === "recall" ? "generated" : "real";
    points[around].forEach((p, i) => place(balls[i], p, sx(m.ball[around][i]) - sx(0),
      shown === "coverage" && !m.covered[i] ? "ball empty" : "ball"));
    points.real.forEach((p, i) => {
      const missed = { recall: !m.found[i], coverage: !m.covered[i] }[shown];
      place(real[i], p, 3, missed ? "sample missed" : "sample");
    });
    points.generated.forEach((p, j) => {
      const missed = ["precision", "density"].includes(shown) && !m.balls[j];
      const r = shown === "density" ? 2.5 + 0.5 * m.balls[j] : 3;
      place(generated[j], p, r, missed ? "dot missed" : "dot");
    });
    show(names.map((name) => m.values[name]), names.indexOf(shown));
    const count = (flags) => `${flags.filter(Boolean).length} of ${flags.length}`;
    const counted = {
      precision: `${count(m.balls)} generated points lie in the ball of a real one.`,
      recall: `${count(m.found)} real points lie in the ball of a generated one.`,
      density: `A generated point lies in ${mean(m.balls).toFixed(2)} balls on average, ` +
        `divided by k = ${data.k}. The larger a point, the more balls.`,
      coverage: `${count(m.covered)} balls of real points contain a generated one.`,
    };
    const four = names.map((name) => `${name} ${m.values[name].toFixed(2)}`).join(", ");
    say(`With ${set.groups} of ${data.centres.length} groups, spread ${
      set.spread.toFixed(1)}, offset ${set.offset.toFixed(1)}, ${
      set.outlier ? `an outlier at ${set.outlier.toFixed(1)}` : "no outlier"}: ${
      four}. ${counted[shown]}`);
  };
  const digits = (v) => v.toFixed(1), most = data.centres.length;
  const control = (label, range, words) =>
    slider(stage, label, range, words, () => draw());
  const controls = {
    groups: control("groups generated", { min: 1, max: most, step: 1, value: most },
      (v) => `${v} of ${most}`),
    spread: control("spread", { min: 0.1, max: 2, step: 0.1, value: 1 }, digits),
    offset: control("offset", { min: 0, max: 3, step: 0.2, value: 0 }, digits),
    outlier: control("a real outlier at", { min: 0, max: 5, step: 0.5, value: 0 },
      (v) => (v ? digits(v) : "none")),
  };
  draw();
});
